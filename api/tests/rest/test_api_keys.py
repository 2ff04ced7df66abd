"""Tests of API keys over REST and in the console."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from payments import wiring
from testing import builders
from testing.builders import PIN
from testing.console_scenes import client_of, market_of_two, page_text, staff
from users import api_keys, audit, authority
from users.models import ApiKey, AuditEntry, CustomUser

STATUS = "/api/markets/admin/settlement-status/{}/"


def make(
    maker: CustomUser, acts: tuple[str, ...] = ("console.view",), addresses: tuple[str, ...] = (), days: int = 30
) -> tuple[ApiKey, str]:
    wanted = api_keys.Request("Reports", acts, addresses, days)
    by = audit.Actor(user_id=maker.pk, source="192.0.2.7")
    return api_keys.make(wanted, may=lambda name: authority.may(maker, name), by=by, at=wiring.now())


def get(path: str, secret: str, **more: Any) -> tuple[int, str]:
    answer = Client().get(path, headers={"Authorization": f"Bearer {secret}"}, **more)
    return answer.status_code, answer.json().get("code", "")


def test_key_opens_the_calls_of_its_acts_and_no_others(db: None) -> None:
    market = builders.market()
    _, secret = make(staff("approver"))
    assert get(STATUS.format(market.pk), secret) == (200, "")
    assert get("/api/payments/admin/recoveries/", secret) == (403, "forbidden")
    for path in ("/api/users/me/", "/api/users/me/notices/", f"/api/markets/{market.pk}/bets/"):
        assert get(path, secret) == (401, "not_authenticated")
    for path in ("/api/users/logout/", "/api/users/logout-everywhere/", "/api/users/me/pin/"):
        answer = Client().post(path, {}, "application/json", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 401
    assert ApiKey.objects.count() == 1
    assert ApiKey.objects.get().last_used_at is not None


def test_only_a_digest_of_the_key_is_stored(db: None) -> None:
    key, secret = make(staff("approver"))
    stored = " ".join(str(value) for value in ApiKey.objects.values().get().values())
    assert secret not in stored
    assert secret.startswith(key.shown)
    assert secret not in " ".join(AuditEntry.objects.values_list("after", flat=True))


def expire(key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(expires_at=wiring.now())


def suspend(key: ApiKey) -> None:
    CustomUser.objects.filter(pk=key.made_by_id).update(is_active=False)


def revoke(key: ApiKey) -> None:
    by = audit.Actor(user_id=key.made_by_id, source="192.0.2.7")
    api_keys.revoke(key_id=key.pk, reason="Lost.", by=by, at=wiring.now())


@pytest.mark.parametrize("end", [expire, suspend, revoke])
def test_key_ends(db: None, end: Any) -> None:
    market = builders.market()
    key, secret = make(staff("approver"))
    end(key)
    assert get(STATUS.format(market.pk), secret) == (401, "key_refused")


def test_key_loses_the_rights_that_its_maker_loses(db: None) -> None:
    market = builders.market()
    key, secret = make(staff("approver"))
    key.made_by.groups.clear()
    CustomUser.objects.get(pk=key.made_by_id).groups.add(*staff("support").groups.all())
    assert get("/api/payments/admin/recoveries/", secret)[0] == 403
    assert get(STATUS.format(market.pk), secret)[0] == 200  # Support may see this page too.


def test_key_is_accepted_from_its_addresses_only(db: None) -> None:
    market = builders.market()
    _, secret = make(staff("approver"), addresses=("198.51.100.0/24", "2001:db8::/32"))
    path = STATUS.format(market.pk)
    assert get(path, secret, REMOTE_ADDR="198.51.100.9") == (200, "")
    assert get(path, secret, REMOTE_ADDR="2001:db8::9") == (200, "")
    assert get(path, secret, REMOTE_ADDR="203.0.113.9") == (401, "key_refused")


@pytest.mark.parametrize("secret", ["kak_", "kak_x", "kak_" + "\u00e9", "kak_" + "x" * 5000])
def test_unknown_key_is_refused(db: None, secret: str) -> None:
    assert get(STATUS.format(builders.market().pk), secret) == (401, "key_refused")


@pytest.mark.parametrize(
    ("acts", "addresses", "days"),
    [
        ((), (), 30),
        (("market.undo",), (), 30),
        (("proposal.approve",), (), 30),
        (("no.act",), (), 30),
        (("market.resolve",), (), 30),  # An approver may not resolve, so neither may the key.
        (("console.view",), ("here",), 30),
        (("console.view",), (), 0),
        (("console.view",), (), 1000),
    ],
)
def test_key_that_may_not_be_made_is_refused(
    db: None, acts: tuple[str, ...], addresses: tuple[str, ...], days: int
) -> None:
    with pytest.raises(api_keys.BadKey):
        make(staff("approver"), acts, addresses, days)
    assert not ApiKey.objects.exists()


def test_key_approves_nothing(db: None, at: datetime) -> None:
    """No act that approves, confirms or rejects can be given to a machine."""
    machine_acts = {act.name for act in authority.ACTS.values() if act.machine}
    assert not {name for name in machine_acts if name.partition(".")[2] in ("approve", "confirm", "reject")}
    _, secret = make(staff())
    headers = {"Authorization": f"Bearer {secret}"}
    for path in ("/api/markets/admin/approve/", "/api/markets/admin/reject/", "/api/payments/admin/retry-payout/"):
        assert Client().post(path, {}, "application/json", headers=headers).status_code == 403


def test_decision_by_a_key_is_a_proposal_that_two_people_approve(db: None) -> None:
    # given
    market = market_of_two()
    _, secret = make(staff(), ("market.resolve", "market.void"))
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"market_id": market.pk, "outcome": "Yes"}

    # when
    answer = Client().post("/api/markets/admin/resolve/", body, "application/json", headers=headers)

    # then
    assert answer.status_code == 202
    market.refresh_from_db()
    assert market.status == "OPEN"
    assert not market.settlements.exists()
    again = Client().post("/api/markets/admin/resolve/", body, "application/json", headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "proposal_waits")

    # when
    proposal = {"proposal_id": answer.json()["proposal_id"], "preview_hash": answer.json()["preview_hash"]}
    for approver, resolved in ((staff("approver"), 0), (staff("approver"), 1)):
        headers = builders.bearer(approver)
        approved = Client().post("/api/markets/admin/approve/", proposal, "application/json", headers=headers)
        assert approved.status_code == 200
        assert market.settlements.count() == resolved


# --- the console -----------------------------------------------------------------------------------------------------


def test_console_makes_shows_once_lists_and_revokes(db: None) -> None:
    # given
    client = client_of(staff("approver"))
    form = {"name": "Reports", "days": "30", "addresses": "192.0.2.0/24, 198.51.100.7", "proof": PIN}
    form |= {act.name: "no" for act in authority.ACTS.values() if act.machine} | {"console.view": "yes"}

    # when
    page = page_text(client.post("/admin/api-keys/make/", form))

    # then
    secret = page.partition("kak_")[2].partition("<")[0].strip()
    key = ApiKey.objects.get()
    assert (key.acts, key.addresses) == (["console.view"], ["192.0.2.0/24", "198.51.100.7"])
    listed = page_text(client.get("/admin/api-keys/"))
    assert key.shown in listed
    assert secret not in listed
    assert key.expires_at - key.made_at == timedelta(days=30)

    # when
    client.post(f"/admin/api-keys/{key.pk}/revoke/", {"reason": "Replaced.", "proof": PIN})

    # then
    assert "revoked" in page_text(client.get("/admin/api-keys/"))
    actions = list(AuditEntry.objects.filter(action__startswith="api_key").values_list("action", "reason"))
    assert actions == [("api_key.make", ""), ("api_key.revoke", "Replaced.")]
