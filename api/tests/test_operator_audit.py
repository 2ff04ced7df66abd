"""Audit trail of operators: person, address, values before and after. Refused acts leave no entry."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import Settings
from django.core.management import CommandError, call_command
from django.db.models import QuerySet
from django.test import Client

from payments.models import Breaker, Transaction
from payments.payouts import breakers
from payments.payouts.operations import bulk_retries, starting
from testing import builders
from testing.builders import AT, PIN, bearer, operator
from testing.payout_steps import READ_TIMEOUT, after, failed, question, sent
from testing.rest import post
from users import audit, auth
from users.audit import Actor
from users.models import AuditEntry

BY = Actor(None, "192.0.2.9")


def entries() -> QuerySet[AuditEntry]:
    """Return the audit trail without the resolutions and settlements that the test data needs."""
    assert audit.verify().difference is None
    return AuditEntry.objects.exclude(action__in=["market.resolve", "market.settle"]).order_by("number")


def trail() -> list[tuple[Any, ...]]:
    return list(entries().values_list("action", "actor", "source", "subject"))


def failed_payout() -> Transaction:
    payout = builders.payout()
    failed(payout)
    return payout


def held_payout(amount: int = 285) -> Transaction:
    payout = builders.payout(amount)
    question(sent(payout, READ_TIMEOUT), after(86_400))
    return payout


@pytest.mark.parametrize("path", ["/api/markets/admin/retry-payout/", "/api/payments/admin/retry-payout/"])
def test_retry_records_the_operator_and_the_address(db: None, client: Client, path: str) -> None:
    # given
    payout, staff = failed_payout(), operator()

    # when
    assert post(client, path, {"transaction_id": payout.pk}, bearer(staff)).status_code == 200
    again = post(client, path, {"transaction_id": payout.pk}, bearer(staff))

    # then: the refused retry left no entry
    assert again.status_code == 409
    assert trail() == [("payout.retry", staff.pk, "127.0.0.1", f"transaction:{payout.pk}")]
    entry = entries().get()
    assert '"status":"FAILED"' in entry.before
    assert entry.after == '{"amount":"285.00","reason":"","receipt":"","status":"PENDING"}'


def test_address_behind_a_trusted_proxy_is_the_callers(db: None, client: Client, settings: Any) -> None:
    settings.TRUSTED_PROXY_HOPS = 1
    payout = failed_payout()
    headers = bearer(operator()) | {"X-Forwarded-For": "203.0.113.1, 198.51.100.7"}
    post(client, "/api/markets/admin/retry-payout/", {"transaction_id": payout.pk}, headers)
    assert [entry[2] for entry in trail()] == ["198.51.100.7"]


def test_each_retry_of_a_batch_is_recorded(db: None) -> None:
    payouts = [failed_payout(), failed_payout()]
    bulk_retries.start(since=AT - timedelta(hours=1), by=BY, at=AT)
    assert [(entry[0], entry[3]) for entry in trail()] == [
        ("payout.retry", f"transaction:{payout.pk}") for payout in payouts
    ]


def test_switch_without_a_change_is_not_recorded(db: None, at: datetime) -> None:
    starting.start(Breaker.Cause.SWITCH, people=[BY], at=at)
    for _ in range(2):
        breakers.switch_off(reason="Odd results", by=BY, at=at)
    for _ in range(2):
        starting.start(Breaker.Cause.SWITCH, people=[BY], at=at)
    assert [entry[0] for entry in trail()] == ["sending.switch_off", "sending.switch_on"]
    assert AuditEntry.objects.order_by("number")[0].reason == "Odd results"


def test_switch_by_command_records_the_system_account(db: None) -> None:
    call_command("sending", "off", reason="Odd results")
    ((action, actor, source, _),) = trail()
    assert (action, actor) == ("sending.switch_off", None)
    assert source.startswith("command by ")


def test_decision_on_held_payout_is_recorded_for_each_person(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    payout, first, second = held_payout(50_000), operator(), operator()
    monkeypatch.setattr("getpass.getpass", lambda prompt: PIN)

    def decide(*by: str) -> None:
        call_command("decide_payout", payout.pk, receipt="SGL12AB34C", grounds="Statement, page 3", by=by, stdout=None)

    # when
    with pytest.raises(CommandError):
        decide(first.phone_number)
    decide(first.phone_number, second.phone_number)

    # then
    logins = [("login.accepted", person.pk, "command", f"member:{person.pk}") for person in (first, first, second)]
    assert trail() == logins + [
        ("payout.decide_paid", person.pk, "command", f"transaction:{payout.pk}") for person in (first, second)
    ]
    last = AuditEntry.objects.order_by("number").last()
    assert last is not None
    assert last.reason == "Statement, page 3"
    assert last.after == '{"amount":"50000.00","reason":"","receipt":"SGL12AB34C","status":"COMPLETED"}'


def test_command_without_its_threshold_is_refused_in_production(db: None, settings: Settings) -> None:
    # given
    payout, settings.PRODUCTION = held_payout(50_000), True

    # when, then: nobody is asked for a PIN.
    with pytest.raises(CommandError, match=r"No threshold is set for payout\.decide"):
        call_command("decide_payout", payout.pk, receipt="SGL12AB34C", grounds="Statement", by=["0712345678"])


# --- logins ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log_in(client: Client) -> Callable[[str, str], int]:
    def call(phone_number: str, pin: str) -> int:
        body = {"phone_number": phone_number, "pin": pin}
        return int(post(client, "/api/users/login/", body).status_code)

    return call


def test_logins_of_staff_but_not_members_are_recorded(db: None, log_in: Callable[[str, str], int]) -> None:
    # given
    staff, other = operator(), builders.member()

    # when
    assert log_in(staff.phone_number, PIN) == 200
    assert log_in(staff.phone_number, "0000") == 401
    assert log_in(other.phone_number, PIN) == 200
    assert log_in(other.phone_number, "0000") == 401
    assert log_in("0799999999", PIN) == 401

    # then
    assert trail() == [
        ("login.accepted", staff.pk, "127.0.0.1", f"member:{staff.pk}"),
        ("login.refused", staff.pk, "127.0.0.1", f"member:{staff.pk}"),
    ]
    refused = AuditEntry.objects.order_by("number").last()
    assert refused is not None
    assert refused.after == '{"failed_logins":1,"locked_until":null}'


def test_repeated_failed_logins_stop_filling_the_trail(db: None, log_in: Callable[[str, str], int]) -> None:
    staff = operator()
    answers = [log_in(staff.phone_number, "0000") for _ in range(8)]
    assert answers == [401] * 4 + [429] * 4
    assert [entry[0] for entry in trail()] == ["login.refused"] * 5


def test_console_logins_are_recorded(db: None, client: Client) -> None:
    staff = operator()
    for pin in ("0000", PIN):
        client.post("/admin/login/", {"username": staff.phone_number, "password": pin})
    assert [(entry[0], entry[2]) for entry in trail()] == [
        ("login.refused", "127.0.0.1"),
        ("login.accepted", "127.0.0.1"),
    ]


def test_refused_login_of_suspended_operator_is_recorded(db: None, at: datetime) -> None:
    staff = operator(is_active=False)
    with pytest.raises(auth.WrongCredentials):
        auth.enter(
            credentials=auth.Credentials(phone_number=staff.phone_number, pin=PIN, source="192.0.2.7"),
            rules=auth.Rules(),
            at=at,
        )
    assert [(entry[0], entry[2]) for entry in trail()] == [("login.refused", "192.0.2.7")]
