"""The staff's way through a market under the rules of production: codes, two people, the application's role.

The walk of the user's guide (test_guide.py) has none of them, because the guide's own `.env` is for development.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from django_otp.oath import hotp

from testing.running import PATIENCE_SECONDS, ROOT, Json, Running, running, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

SETTINGS = {
    "PROFILE": "production",
    "DJANGO_SECRET_KEY": "a-key-of-the-production-walk-with-more-than-forty-characters",
    "CALLBACK_TOKEN_KEY": "another-key-of-the-production-walk-with-forty-characters",
    "ALLOWED_HOSTS": "127.0.0.1",
    "SWEEP_EVERY_SECONDS": "1",
}
PIN = "740286"
STAFF = {"operator": "254700000001", "approver": "254700000002", "viewer": "254700000003"}
MEMBERS = {"Achieng": "254712345678", "Baraka": "254712345679"}
THRESHOLD = "250"
STEP = 30
# The shell sets up the staff as the console does, and prints the secret of each app with the time of its last code.
SET_UP_STAFF = f"""
import base64, json, time
from django.contrib.auth.models import Group
from django.utils import timezone
from django_otp.oath import hotp
from users import audit, second_factor
from users.models import CustomUser
for role, phone in {STAFF!r}.items():
    person = CustomUser.objects.create_user(phone_number=phone, full_name=role.title(), pin={PIN!r}, is_staff=True)
    person.groups.add(Group.objects.get(name=role))
    key = base64.b32decode(second_factor.begin(person, at=timezone.now()).secret.replace(" ", ""))
    last = int(time.time()) // {STEP} - 1
    by = audit.Actor(user_id=person.pk, source="console")
    _ = second_factor.confirm(user=person, code=f"{{hotp(key, last):06d}}", by=by, at=timezone.now())
    print("APP", json.dumps([role, key.hex(), last]))
"""
# The command of the owner, once for each act that has a threshold.
SET_THRESHOLDS = f"""
from django.core.management import call_command
from django.utils import timezone
from users import figure_changes
for act_name in figure_changes.unset(timezone.now()):
    call_command("threshold", act_name, "{THRESHOLD}" if act_name.startswith("market.") else "never")
"""
# Production refuses an assigned balance, so each member's money comes from a booked transfer.
SET_UP_MEMBERS = f"""
from decimal import Decimal
from django.db import transaction
from django.utils import timezone
from payments.ledger import journal
from users.models import CustomUser
with transaction.atomic():
    utility, opening = journal.MPESA_UTILITY, journal.OPENING
    entries = [journal.Entry("opening:walk", utility, opening, Decimal("100000.00"))]
    for name, phone in {MEMBERS!r}.items():
        member = CustomUser.objects.create_user(phone_number=phone, full_name=name, pin={PIN!r})
        entries.append(journal.Entry(f"opening:{{member.pk}}", opening, journal.wallet(member.pk), Decimal("1000.00")))
    journal.post(entries, at=timezone.now())
"""
REST_OF_STAFF = (
    ("POST", "/api/markets/admin/create/", {"question": "May a viewer ask?", "end_date": "2030-01-01T00:00:00Z"}),
    ("POST", "/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"}),
    ("POST", "/api/markets/admin/void/", {"market_id": 1, "reason": "cancelled"}),
    ("POST", "/api/markets/admin/undo/", {"market_id": 1, "reason": "none"}),
    ("POST", "/api/markets/admin/close/", {"market_id": 1, "reason": "none"}),
    ("POST", "/api/payments/admin/retry-payout/", {"transaction_id": 1}),
)
OUR_PAYMENTS = """
SELECT t.phone_number, t.amount::int FROM payments_transaction t
JOIN payments_attempt a ON a.transaction_id = t.id AND a.state = 'PAID'
WHERE t.destination = 'mpesa' AND t.status = 'COMPLETED'
"""


@dataclass
class App:
    """An authenticator app. Each code works once, so it never shows the code of the same 30 seconds twice."""

    key: bytes
    last: int

    def code(self) -> str:
        """Return the next unused code. Waits while the server would not accept it yet."""
        until(lambda: self.last <= int(time.time()) // STEP, "the app's next code")
        self.last = max(self.last + 1, int(time.time()) // STEP)
        return f"{hotp(self.key, self.last):06d}"


@dataclass
class Person:
    """A person with a token. A member of staff also has an app."""

    url: str
    phone: str
    app: App | None = None
    token: str = ""

    def log_in(self) -> "Person":
        """Log in with the PIN, and staff with a code."""
        body = {"phone_number": self.phone, "pin": PIN} | ({"code": self.app.code()} if self.app else {})
        answer = self.call("POST", "/api/users/login/", body)
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["token"]
        return self

    def post(self, path: str, body: Json, *, code: str = "") -> requests.Response:
        """POST as this person, with a code of the app if one is given."""
        return self.call("POST", path, body, code=code)

    def call(self, method: str, path: str, body: Json | None = None, *, code: str = "") -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= {"X-Authenticator-Code": code} if code else {}
        return requests.request(
            method, f"{self.url}{path}", json=body, headers=headers, timeout=PATIENCE_SECONDS, proxies={"http": ""}
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, **SETTINGS) as installation:
        if "DATABASE_OWNER_URL" not in installation.environment:
            pytest.skip("These tests run as the owner of the tables, so there is no application's role.")
        yield installation


def test_production_does_not_start_as_the_owner_or_without_thresholds(place: Running) -> None:
    # when: no threshold is set, as after the first migration
    refused = _start(place)

    # then
    assert refused.returncode != 0
    assert "market.resolve" in refused.stderr

    # when
    _set_thresholds(place)

    # then
    started = _start(place)
    assert started.returncode == 0, started.stderr

    # when: the process logs in as the owner of the tables
    as_owner = _start(place, DATABASE_URL=place.owner_url)

    # then
    assert as_owner.returncode != 0
    assert "owns the tables" in as_owner.stderr


def test_market_goes_from_bets_to_paid_winners_by_two_people_with_codes(place: Running, tmp_path: Path) -> None:
    # given
    _set_thresholds(place)
    place.start_simulator()
    place.start_web_and_worker()
    staff = _make_staff(place)
    operator, approver, viewer = (staff[role].log_in() for role in STAFF)
    place.manage("shell", typed=SET_UP_MEMBERS)
    members = [Person(place.url, phone).log_in() for phone in MEMBERS.values()]

    # when
    market_id = _bets_on_a_new_market(operator, members)
    proposal = _proposed(place, operator, market_id)

    # then
    _the_viewer_may_only_read(viewer, market_id, proposal)
    assert place.book()["payments"] == []

    # when
    _approved_by_another_person(operator, approver, proposal)

    # then: the simulator pays the winner once, and the certificate and the books say the same
    until(lambda: place.sql(OUR_PAYMENTS), "the winner to be paid", lambda: place.log("worker")[-4000:])
    book = place.book()
    assert [(paid["phone"], paid["amount"]) for paid in book["payments"]] == [(MEMBERS["Achieng"], 285)]
    assert place.sql(OUR_PAYMENTS) == [(MEMBERS["Achieng"], 285)]
    assert book["double_paid"] == []
    _the_books_close(place, operator, market_id, tmp_path)


def _start(place: Running, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load the web application as gunicorn does, and return its end."""
    names = place.environment.keys() - {"DATABASE_OWNER_URL"}
    return subprocess.run(
        [sys.executable, "-c", "import api.wsgi"],
        cwd=ROOT,
        env={name: place.environment[name] for name in names} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def _set_thresholds(place: Running) -> None:
    place.manage("shell", typed=SET_THRESHOLDS)
    assert "not set" not in place.manage("threshold")


def _make_staff(place: Running) -> dict[str, Person]:
    """Create a person for each role, with an authenticator app."""
    printed = place.manage("shell", typed=SET_UP_STAFF)
    apps = [json.loads(line.removeprefix("APP ")) for line in printed.splitlines() if line.startswith("APP ")]
    return {role: Person(place.url, STAFF[role], App(bytes.fromhex(key), last)) for role, key, last in apps}


def _bets_on_a_new_market(operator: Person, members: list[Person]) -> int:
    """Create a market as the operator, and bet on it as two members. Return its id."""
    terms = {"question": "Will it rain tomorrow?", "end_date": "2030-01-01T18:00:00+03:00"}
    created = operator.post("/api/markets/admin/create/", terms)
    assert created.status_code == 201, created.text
    market_id = created.json()["market_id"]
    for member, outcome, amount in zip(members, ("Yes", "No"), ("100.00", "200.00"), strict=True):
        bet = member.post(f"/api/markets/{market_id}/bets/", {"outcome": outcome, "amount": amount})
        assert bet.status_code == 201, bet.text
    return int(market_id)


def _proposed(place: Running, operator: Person, market_id: int) -> Json:
    """Resolve the market as the operator, which makes a proposal, because the pool is above the threshold."""
    body = {"market_id": market_id, "outcome": "Yes"}

    # when: the last code of this token is too old
    place.sql("UPDATE users_tokenproof SET at = at - interval '1 hour'")
    stale = operator.post("/api/markets/admin/resolve/", body)

    # then
    assert (stale.status_code, stale.json()["code"]) == (403, "fresh_code_required")
    assert operator.call("GET", f"/api/markets/{market_id}/").json()["status"] == "OPEN"

    # when
    assert operator.app is not None
    answer = operator.post("/api/markets/admin/resolve/", body, code=operator.app.code())

    # then
    assert (answer.status_code, answer.json()["status"]) == (202, "proposed"), answer.text
    return dict(answer.json())


def _the_viewer_may_only_read(viewer: Person, market_id: int, proposal: Json) -> None:
    assert viewer.call("GET", f"/api/markets/admin/settlement-status/{market_id}/").status_code == 200
    for method, path, body in REST_OF_STAFF:
        answer = viewer.call(method, path, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
    # The right to approve depends on the proposal's act, so it is asked after the code.
    assert viewer.app is not None
    body = {"proposal_id": proposal["proposal_id"], "preview_hash": proposal["preview_hash"]}
    answer = viewer.post("/api/markets/admin/approve/", body, code=viewer.app.code())
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text


def _approved_by_another_person(operator: Person, approver: Person, proposal: Json) -> None:
    body = {"proposal_id": proposal["proposal_id"], "preview_hash": proposal["preview_hash"]}

    # when: the operator, whose code is fresh, approves their own proposal
    own = operator.post("/api/markets/admin/approve/", body)

    # then
    assert own.status_code == 403, own.text

    # when: the approver has shown no recent code
    stale = approver.post("/api/markets/admin/approve/", body)

    # then
    assert (stale.status_code, stale.json()["code"]) == (403, "fresh_code_required")

    # when
    assert approver.app is not None
    approved = approver.post("/api/markets/admin/approve/", body, code=approver.app.code())

    # then
    assert (approved.status_code, approved.json()["status"]) == (200, "resolved"), approved.text


def _the_books_close(place: Running, operator: Person, market_id: int, directory: Path) -> None:
    status = operator.call("GET", f"/api/markets/admin/settlement-status/{market_id}/").json()
    assert (status["status"], status["completed_payouts"]) == ("SETTLED", "285.00")
    assert "The books close" in place.manage("reconcile")
    assert "The audit trail is intact" in place.manage("verify_audit")
    saved = directory / "certificate.json"

    def certificate_is_issued() -> bool:
        answer = operator.call("GET", f"/api/markets/{market_id}/settlement/")
        saved.write_text(answer.text)
        return answer.status_code == 200 and bool(answer.json().get("settlement_hash"))

    until(certificate_is_issued, "the certificate", lambda: place.log("worker")[-4000:])
    assert "It holds" in place.manage("verify_settlement", str(saved), "--books")
    approvals = "SELECT count(*) FROM users_auditentry WHERE action = 'market.resolve' AND actor_id IS NOT NULL"
    assert place.sql(approvals) == [(1,)]
