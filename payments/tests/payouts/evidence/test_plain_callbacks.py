"""The guide's plain callback (its part 4.4), which names a payout by its reference."""

import json
from collections.abc import Callable

import pytest

from payments.models import Callback, Transaction
from payments.payouts.evidence import callbacks
from payments.payouts.operations import actions
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    CHARGE,
    KES_285,
    after,
    balances,
    booked,
    deliver_result,
    nothing_moved_but_callbacks,
    payment_transfers,
    question,
    refused,
    result_body,
    sent,
    states,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db


def plain_body(payout: Transaction, code: int | str = 0, **more: object) -> bytes:
    """Return the body that the guide shows, with its other ids as "..."."""
    result = {
        "ResultCode": code,
        "ResultDesc": "The service request has been processed successfully.",
        "OriginatorConversationID": "...",
        "ConversationID": "...",
        "ExternalReference": payout.external_ref,
        "ResponseDescription": "success",
        **more,
    }
    return json.dumps({"Result": result}).encode()


def apply_plain(body: bytes, seconds: float = 1) -> str:
    """Store and apply a plain callback, and return the outcome in words."""
    return callbacks.apply_plain(
        body=body, source_ip="127.0.0.1", at=after(seconds), policy=payout_steps.POLICY, addresses=ADDRESSES
    )


def test_plain_callback_completes_a_pending_payout(payout: Transaction) -> None:
    # when
    outcome = apply_plain(plain_body(payout))

    # then
    attempt = payout.attempts.get()
    assert outcome == "paid"
    assert attempt.kind == "manual"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)
    stored = Callback.objects.get()
    assert (stored.kind, stored.attempt_id, stored.applied_at, stored.trusted) == ("plain", attempt.pk, after(1), False)
    assert payout_steps.claims(after(100)) == []


@pytest.mark.parametrize(
    "response",
    [payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.NO_CONNECTION, payout_steps.THROTTLED],
    ids=str,
)
def test_plain_callback_completes_the_open_attempt(payout: Transaction, response: payout_steps.Response) -> None:
    # given
    attempt = sent(payout, response)

    # when
    apply_plain(plain_body(payout))

    # then
    assert payout.attempts.get().kind == "b2c"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


def test_plain_callback_completes_a_failed_payout(payout: Transaction) -> None:
    # given
    refused(payout)

    # when
    apply_plain(plain_body(payout), 60)

    # then
    manual = payout.attempts.get(number=2)
    assert (manual.kind, *states(payout, manual)) == ("manual", "COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_plain_callback_completes_a_held_payout(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    apply_plain(plain_body(payout), 86_401)

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_plain_callback_on_a_completed_payout_moves_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved_but_callbacks():
        outcome = apply_plain(plain_body(payout), 2)

    # then
    assert outcome == "COMPLETED already"


def test_plain_callback_on_a_redirected_payout_moves_nothing(payout: Transaction) -> None:
    # given
    refused(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    with nothing_moved_but_callbacks():
        apply_plain(plain_body(payout), 60)

    # then
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"


@pytest.mark.parametrize("state", ["PENDING", "ACCEPTED", "FAILED"])
def test_plain_callback_with_a_wrong_amount_moves_nothing(
    payout: Transaction, alarms: Callable[[], list[str]], state: str
) -> None:
    # given
    if state == "ACCEPTED":
        sent(payout)
    elif state == "FAILED":
        refused(payout)
    amount = {"ResultParameters": {"ResultParameter": [{"Key": "TransactionAmount", "Value": 28_500}]}}

    # when
    with nothing_moved_but_callbacks():
        outcome = apply_plain(plain_body(payout, **amount), 60)

    # then
    assert outcome.startswith("mismatch: ")
    assert len(alarms()) == 1


def test_plain_failure_before_any_request_fails_the_payout(payout: Transaction) -> None:
    # when
    apply_plain(plain_body(payout, 2040))

    # then
    attempt = payout.attempts.get()
    assert (attempt.kind, *states(payout, attempt)) == ("manual", "FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}
    assert actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status == "PENDING"


def test_plain_failure_of_an_unsent_request_fails_the_payout(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    apply_plain(plain_body(payout, 2040))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


def test_plain_fault_of_ours_resends_a_waiting_request(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    apply_plain(plain_body(payout, 1))

    # then
    assert states(payout, attempt) == ("PENDING", "FAILED")
    assert [claim.originator_conversation_id for claim in payout_steps.claims(after(100))] == [
        f"{payout.external_ref}-2"
    ]


def test_plain_failure_of_a_failed_payout_leaves_it_failed(payout: Transaction) -> None:
    # given
    refused(payout)

    # when
    apply_plain(plain_body(payout, 2040), 60)

    # then
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    assert balances(payout) == {"payable": KES_285}


@pytest.mark.parametrize(
    "response", [payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.THROTTLED], ids=str
)
def test_plain_failure_of_a_sent_request_is_asked_about(payout: Transaction, response: payout_steps.Response) -> None:
    # given
    attempt = sent(payout, response)

    # when
    outcome = apply_plain(plain_body(payout, 2040))

    # then
    assert outcome == "reported failed: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


def test_plain_callback_with_an_unknown_reference_stores_nothing(payout: Transaction) -> None:
    # given
    body = plain_body(payout).replace(payout.external_ref.encode(), b"KASOKO-1-1-1613398249.5")

    # then
    with nothing_moved(), pytest.raises(callbacks.UnknownReference):
        apply_plain(body)


def test_plain_callback_does_not_find_a_wallet_payout() -> None:
    # given
    market = builders.settled_market([(builders.member(), "Yes", "9.99")], fee_pct=0)
    to_wallet = Transaction.objects.get(settlement__market=market)

    # then
    with nothing_moved(), pytest.raises(callbacks.UnknownReference):
        apply_plain(plain_body(to_wallet))
