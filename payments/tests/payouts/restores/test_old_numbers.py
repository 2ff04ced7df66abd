"""After a restore, a lost request may have paid a number that two people have replaced since."""

import json
from typing import Any

import pytest
from django.db import DatabaseError, transaction

from payments.ledger import journal
from payments.models import Attempt, DayTotal, Transaction
from payments.payouts.operations import actions, reissue
from payments.payouts.restores import detection, procedure
from payments.settlement import undo
from testing import builders
from testing.builders import actor
from testing.lost_commits import deny_later
from testing.payout_steps import (
    ADDRESSES,
    DUPLICATE,
    KES_285,
    after,
    ask_and_answer,
    claims,
    not_found_body,
    put_through,
    resends,
    states,
    status_body,
)
from users.audit import MACHINE
from users.models import CustomUser

pytestmark = pytest.mark.django_db
POLICY = builders.policy()
OLD, NEW = "254712345678", "254798765432"


def advance(second: float) -> None:
    procedure.advance(at=after(second), policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)


def reissued(payout: Transaction, second: float, number: str = NEW) -> None:
    """Change the member's number, and let two people re-issue the payout to it."""
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=number)
    first, other = (actor(builders.operator()) for _ in range(2))
    verdict = reissue.propose(transaction_id=payout.pk, grounds="New SIM card.", by=first, at=after(second))
    reissue.confirm(verdict_id=verdict.pk, by=other, at=after(second))


def reissued_after_a_loss() -> tuple[Transaction, Attempt]:
    """Return a payout whose lost first request went to OLD, and its request to NEW that is asked about first."""
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    Transaction.objects.filter(pk=payout.pk).update(due_at=after(40))
    detection.report(survived_at=after(0), at=after(10), policy=POLICY)
    advance(10)
    deny_later(after(31))
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(32))
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=NEW)
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(33))
    reissued(payout, 34)
    advance(50)
    payout.refresh_from_db()
    attempt = payout.attempts.get()
    assert (attempt.number, attempt.state, attempt.phone_number) == (1, "IN_DOUBT", NEW)
    return payout, attempt


def sent_to_the_new_number(payout: Transaction, second: float) -> Attempt:
    """Send the payout's next request, after M-Pesa has denied it, and book its payment."""
    advance(second)
    attempt = payout.attempts.get(state="IN_DOUBT")
    ask_and_answer(attempt, not_found_body(), after(second + 1))
    (claim,) = resends(after(second + 3))
    assert claim.phone_number == NEW
    put_through(claim, at=after(second + 3))
    ask_and_answer(attempt, status_body(attempt, receipt="SKG7NEWNEW"), after(second + 60))
    return attempt


def test_lost_payment_to_the_old_number_is_misdirected_and_the_payout_leaves() -> None:
    payout, attempt = reissued_after_a_loss()

    # when
    ask_and_answer(attempt, status_body(attempt, phone=OLD), after(51))

    # then: the old number has the money, and the member is still owed
    assert states(payout, attempt) == ("PENDING", "PAID")
    assert attempt.phone_number == OLD
    assert journal.balance(journal.MISDIRECTED) == KES_285
    assert (journal.balance(journal.IN_FLIGHT), journal.owed(payout.pk)) == (0, KES_285)
    assert DayTotal.objects.get(user=payout.user_id).amount == KES_285
    new = sent_to_the_new_number(payout, 60)
    assert (new.number, states(payout, new)) == (2, ("COMPLETED", "PAID"))
    assert journal.balance(journal.MPESA_UTILITY) == -2 * KES_285
    assert (journal.balance(journal.receivable(payout.user_id)), journal.owed(payout.pk)) == (0, 0)


def test_duplicate_of_a_lost_payment_to_the_old_number_is_misdirected() -> None:
    # given: M-Pesa did not find the request, and then called its repetition a duplicate
    payout, attempt = reissued_after_a_loss()
    ask_and_answer(attempt, not_found_body(), after(51))
    (claim,) = resends(after(53))
    put_through(claim, DUPLICATE, after(53))

    # when
    ask_and_answer(attempt, status_body(attempt, phone=f"{OLD[:4]}****{OLD[-3:]}"), after(100))

    # then
    assert states(payout, attempt) == ("PENDING", "PAID")
    assert journal.balance(journal.MISDIRECTED) == KES_285


def test_lost_payment_of_another_amount_to_the_old_number_is_booked_as_paid() -> None:
    payout, attempt = reissued_after_a_loss()
    ask_and_answer(attempt, status_body(attempt, phone=OLD, amount=150), after(51))
    assert states(payout, attempt) == ("PENDING", "PAID")
    assert (journal.balance(journal.MISDIRECTED), journal.owed(payout.pk)) == (150, KES_285)
    assert journal.balance(journal.MPESA_UTILITY) == -150


def test_lost_payment_to_the_members_present_number_completes_the_payout() -> None:
    # given: the re-issue was lost too, so the payout again goes to the old number
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    detection.report(survived_at=after(0), at=after(10), policy=POLICY)
    advance(10)
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=NEW)
    attempt = payout.attempts.get()

    # when
    ask_and_answer(attempt, status_body(attempt, phone=NEW), after(11))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.phone_number == NEW
    assert journal.balance(journal.MISDIRECTED) == 0


@pytest.mark.parametrize("change", [{"phone": "254711111111"}, {"phone": OLD, "ocid": "KASOKO-9-9-ffffffff-1"}])
def test_payment_to_a_number_the_member_never_had_books_nothing(change: dict[str, Any]) -> None:
    payout, attempt = reissued_after_a_loss()
    ask_and_answer(attempt, status_body(attempt, **change), after(51))
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert journal.balance(journal.MPESA_UTILITY) == 0


def test_answer_without_a_receipt_books_no_payment_to_the_old_number() -> None:
    payout, attempt = reissued_after_a_loss()
    body = json.loads(status_body(attempt, phone=OLD))
    parameters = body["Result"]["ResultParameters"]["ResultParameter"]
    body["Result"]["ResultParameters"]["ResultParameter"] = [p for p in parameters if p["Key"] != "ReceiptNo"]
    ask_and_answer(attempt, json.dumps(body).encode(), after(51))
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_usual_request_books_no_payment_to_the_members_other_number() -> None:
    # given: no restore, so nothing but this request can have this id
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    (claim,) = claims()
    attempt = put_through(claim)
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=NEW)

    # when
    ask_and_answer(attempt, status_body(attempt, phone=NEW), after(21))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_misdirected_payment_leaves_a_held_payout_to_a_person() -> None:
    # given
    payout, attempt = reissued_after_a_loss()
    ask_and_answer(attempt, status_body(attempt, "Pending"), after(86_500), POLICY)
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    ask_and_answer(attempt, status_body(attempt, phone=OLD), after(172_900))

    # then
    assert states(payout, attempt) == ("HELD", "PAID")
    assert "old number" in payout.reason
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(173_000))


def test_misdirected_payment_cancels_a_payout_of_an_undone_settlement() -> None:
    # given
    payout, attempt = reissued_after_a_loss()
    assert payout.settlement is not None
    market_id = payout.settlement.market_id
    undo.undo(market_id=market_id, reason="Wrong.", by=MACHINE, at=after(51), policy=POLICY)
    undo.carry_out(market_id=market_id, at=after(52), policy=POLICY, keep_going=lambda: True)

    # when
    ask_and_answer(attempt, status_body(attempt, phone=OLD), after(53))

    # then: the member owes nothing
    assert states(payout, attempt) == ("CANCELLED", "PAID")
    assert journal.balance(journal.receivable(payout.user_id)) == 0
    assert (journal.balance(journal.IN_FLIGHT), journal.balance(journal.MISDIRECTED)) == (0, KES_285)


def test_database_refuses_another_number_without_a_payment_found() -> None:
    _, attempt = reissued_after_a_loss()
    for change in ({"phone_number": OLD}, {"phone_number": OLD, "state": "FAILED"}):
        with pytest.raises(DatabaseError, match="to whom"), transaction.atomic():
            Attempt.objects.filter(pk=attempt.pk).update(**change)
    usual = put_through(claims(transaction_id=builders.payout(285).pk)[0])
    with pytest.raises(DatabaseError, match="to whom"), transaction.atomic():
        Attempt.objects.filter(pk=usual.pk).update(phone_number=OLD, state="PAID")
