"""Manual actions on one payout: retry, redirect, hold, release, ask."""

from datetime import datetime, timedelta

import pytest

from payments.models import Attempt, StatusQuery, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions
from testing import builders, console_scenes, payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    KES_285,
    POLICY,
    after,
    ask_and_answer,
    balances,
    booked,
    claims,
    deliver_result,
    question,
    result_body,
    sent,
    states,
    status_body,
)
from users import audit
from users.audit import MACHINE
from users.models import AuditEntry

pytestmark = pytest.mark.django_db

BY = audit.Actor(user_id=None, source="test")


def recorded() -> list[tuple[str, str, str]]:
    """Return the manual actions in the audit trail: (action, subject, reason)."""
    entries = AuditEntry.objects.filter(action__startswith="payout.").order_by("number")
    return list(entries.values_list("action", "subject", "reason"))


# --- hold and release ------------------------------------------------------------------------------------------------


def test_held_payout_leaves_after_its_release(db: None, at: datetime) -> None:
    # given
    payout = builders.payout(285)

    # when
    actions.hold(transaction_id=payout.pk, reason="The member asked us to wait.", by=BY, at=at)

    # then
    payout.refresh_from_db()
    assert (payout.status, payout.reason) == ("HELD", "Held by a person: The member asked us to wait.")
    assert payout_steps.claims(at + timedelta(days=1)) == []

    # when
    actions.release(transaction_id=payout.pk, by=BY, at=at)

    # then
    (claim,) = payout_steps.claims(at)
    assert claim.transaction_id == payout.pk
    assert recorded() == [
        ("payout.hold", f"transaction:{payout.pk}", "The member asked us to wait."),
        ("payout.release", f"transaction:{payout.pk}", ""),
    ]


def test_release_makes_a_pending_payout_due_now(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    Transaction.objects.filter(pk=payout.pk).update(due_at=at + timedelta(hours=3), reason="It leaves tomorrow.")
    assert payout_steps.claims(at) == []
    actions.release(transaction_id=payout.pk, by=BY, at=at)
    (claim,) = payout_steps.claims(at)
    assert claim.transaction_id == payout.pk


def test_held_payout_with_an_unsent_request_keeps_its_id(db: None, at: datetime) -> None:
    # given: the network failed, so the request waits with its id, and a person holds the payout
    payout = builders.payout(285, at=at)
    attempt = payout_steps.sent(payout, payout_steps.NO_CONNECTION, at=at)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=BY, at=at)
    with pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=BY, at=at)

    # when
    later = at + timedelta(minutes=2)
    actions.release(transaction_id=payout.pk, by=BY, at=later)

    # then
    (claim,) = payout_steps.claims(later, transaction_id=payout.pk)
    assert claim.originator_conversation_id == attempt.originator_conversation_id


@pytest.mark.parametrize("response", [payout_steps.ACCEPTED, console_scenes.TIMED_OUT, payout_steps.REJECTED])
def test_sent_or_failed_payout_cannot_be_held(db: None, at: datetime, response: payout_steps.Response) -> None:
    payout = builders.payout(285, at=at)
    payout_steps.sent(payout, response, at=at)
    with nothing_moved(), pytest.raises(actions.NotToBeHeld):
        actions.hold(transaction_id=payout.pk, reason="Too late.", by=BY, at=at)


def test_payout_in_doubt_sent_or_failed_cannot_be_released(db: None, at: datetime) -> None:
    held = console_scenes.held_in_doubt(300, at)
    sent, failed = builders.payout(285, at=at), builders.payout(285, at=at)
    payout_steps.sent(sent, at=at)
    payout_steps.failed(failed, at=at)
    with nothing_moved():
        with pytest.raises(actions.PayoutNotRetryable):
            actions.release(transaction_id=held.pk, by=BY, at=at)
        for payout in (sent, failed):
            with pytest.raises(actions.NotToBeReleased):
                actions.release(transaction_id=payout.pk, by=BY, at=at)
        with pytest.raises(actions.TransactionNotFound):
            actions.release(transaction_id=10**9, by=BY, at=at)
    assert recorded() == []


# --- ask now ---------------------------------------------------------------------------------------------------------


def test_ask_now_makes_the_status_query_due(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    attempt = payout_steps.sent(payout, at=at)
    soon = at + timedelta(seconds=2)
    actions.ask_now(transaction_id=payout.pk, by=BY, at=soon)
    assert payout_steps.question(attempt, soon).originator_conversation_id == attempt.originator_conversation_id
    assert recorded() == [("payout.ask", f"transaction:{payout.pk}", "")]


def test_ask_now_is_refused_without_an_unknown_result(db: None, at: datetime) -> None:
    pending, failed = builders.payout(285, at=at), builders.payout(285, at=at)
    payout_steps.failed(failed, at=at)
    with nothing_moved():
        for payout in (pending, failed):
            with pytest.raises(actions.NothingToAsk):
                actions.ask_now(transaction_id=payout.pk, by=BY, at=at)


def test_failed_payout_is_retried_with_a_new_id(payout: Transaction) -> None:
    # given
    first = payout_steps.failed(payout)

    # when
    retried = actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    second = sent(payout, at=after(60))

    # then
    assert (retried.status, retried.due_at, retried.failed_at, retried.reason) == ("PENDING", after(60), None, "")
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    assert booked(payout) == [
        (f"send:{first.pk}", "payable", "in_flight", KES_285),
        (f"return:{first.pk}", "in_flight", "payable", KES_285),
        (f"send:{second.pk}", "payable", "in_flight", KES_285),
    ]
    assert deliver_result(second, result_body(second), after(61)) == "paid"


STATES = ["PENDING", "WAITING", "SENDING", "ACCEPTED", "IN_DOUBT", "HELD", "COMPLETED", "REDIRECTED", "RETRIED"]


def bring_to(state: str, payout: Transaction) -> None:
    match state:
        case "WAITING":
            sent(payout, payout_steps.NO_CONNECTION)
        case "SENDING":
            claims()
        case "ACCEPTED":
            sent(payout)
        case "IN_DOUBT":
            sent(payout, payout_steps.READ_TIMEOUT)
        case "HELD":
            question(sent(payout, payout_steps.READ_TIMEOUT), after(86_400))
        case "COMPLETED":
            attempt = sent(payout)
            deliver_result(attempt, result_body(attempt))
        case "REDIRECTED":
            payout_steps.failed(payout)
            actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=AT)
        case "RETRIED":
            payout_steps.failed(payout)
            actions.retry(transaction_id=payout.pk, by=MACHINE, at=AT)


@pytest.mark.parametrize("state", STATES)
def test_payout_that_has_not_failed_is_not_retried(payout: Transaction, state: str) -> None:
    # given
    bring_to(state, payout)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(100_000))


@pytest.mark.parametrize("state", STATES)
def test_payout_that_has_not_failed_is_not_redirected(payout: Transaction, state: str) -> None:
    # given
    bring_to(state, payout)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(100_000))


def test_refunds_and_wallet_payouts_are_not_retried() -> None:
    # given
    builders.settled_market([(builders.member(), "Yes", "9.50")], fee_pct=0)
    builders.settled_market([(builders.member(), "Yes", 500)], rule="VOID")

    # then
    for pk in Transaction.objects.values_list("pk", flat=True):
        with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
            actions.retry(transaction_id=pk, by=MACHINE, at=after(60))


def test_unknown_transaction_is_refused() -> None:
    with pytest.raises(actions.TransactionNotFound):
        actions.retry(transaction_id=2**62, by=MACHINE, at=AT)
    with pytest.raises(actions.TransactionNotFound):
        actions.redirect_to_wallet(transaction_id=2**62, by=MACHINE, at=AT)


@pytest.mark.broken_books
def test_failed_payout_with_an_open_request_is_not_retried(payout: Transaction) -> None:
    # given
    payout_steps.failed(payout)
    Attempt.objects.create(
        transaction=payout, number=9, originator_conversation_id="KASOKO-X-9", token_hash="x", amount=payout.amount,
        phone_number=payout.phone_number, opened_at=AT,
    )  # fmt: skip

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))


@pytest.mark.django_db(transaction=True)
def test_concurrent_retry_and_redirect_do_one_of_them() -> None:
    # given
    payout = builders.payout(285)
    payout_steps.failed(payout)

    # when
    answers = builders.at_once(
        lambda: actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
        lambda: actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
        lambda: actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
    )

    # then
    refused = [answer for answer in answers if isinstance(answer, actions.PayoutNotRetryable)]
    assert len(refused) == 2
    assert balances(payout) in ({"payable": KES_285}, {f"wallet:{payout.user_id}": KES_285})


def test_failed_payout_is_redirected_to_the_wallet(payout: Transaction) -> None:
    # given
    attempt = payout_steps.failed(payout)

    # when
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert states(payout, attempt) == ("COMPLETED", "FAILED")
    assert (payout.completed_at, payout.receipt, payout.reason) == (after(60), "", "Paid into the wallet instead.")
    assert booked(payout)[-1] == (f"redirect:{payout.pk}", "payable", wallet, KES_285)
    assert balances(payout) == {wallet: KES_285}
    payout.user.refresh_from_db()
    assert payout.user.balance == KES_285
    assert claims(after(100_000)) == []


def refused_by_mpesa(payout: Transaction) -> payout_steps.Attempt:
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(2))
    return attempt


def test_retry_asks_about_the_failed_request_first() -> None:
    # given
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)

    # when
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # then
    assert claims(after(60)) == []
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(61))
    assert [claim.originator_conversation_id for claim in claims(after(61))] == [f"{payout.external_ref}-2"]


def test_retry_of_a_paid_payout_sends_nothing() -> None:
    # given
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # when
    ask_and_answer(attempt, status_body(attempt, "Completed"), after(61))

    # then
    assert payout_steps.states(payout, attempt) == ("COMPLETED", "PAID")
    assert claims(after(10_000)) == []


def test_unanswered_retry_leaves_soon_after_many_queries() -> None:
    # given: seven queries before the retry, so the usual gap would be an hour
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)
    for number in range(2, 8):
        StatusQuery.objects.create(attempt=attempt, number=number, token_hash=f"{number:064}", asked_at=AT)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # when: the first worker that asks dies before its POST
    assert len(status_queries.ask(at=after(61), policy=POLICY, addresses=ADDRESSES, limit=10)) == 1
    assert payout_steps.ask(after(80)) == []
    assert claims(after(81)) == []
    assert len(payout_steps.ask(after(81))) == 1

    # then: the retry waits for a query that was put
    assert payout_steps.ask(after(100)) == []
    assert claims(after(100)) == []
    assert payout_steps.ask(after(101)) == []
    assert len(claims(after(101))) == 1


def test_retry_waits_longer_while_a_payment_is_reported() -> None:
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    Attempt.objects.filter(pk=attempt.pk).update(paid_report="untrusted")
    assert len(payout_steps.ask(after(61))) == 1
    assert payout_steps.ask(after(100)) == []
    assert claims(after(4_000)) == []


def test_retry_without_an_answer_leaves_after_one_gap() -> None:
    # given
    payout = builders.payout(285)
    refused_by_mpesa(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    payout_steps.ask(after(61))

    # when
    later = after(61) + timedelta(hours=1)
    again = payout_steps.ask(later)

    # then
    assert again == []
    assert len(claims(later)) == 1
