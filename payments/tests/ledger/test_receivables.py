"""Receivables: debts of members, their set-off, write-off and repayment."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from payments.ledger import debt_decisions, journal, receivables
from payments.models import Recovery, Settlement, Transaction, Transfer
from testing.builders import (
    AT,
    actor,
    market,
    member,
    nothing_moved,
    operator,
    orm_bet,
    resolve,
    settle,
    settled_market,
    transfers,
)
from users.models import CustomUser


def owe(user: CustomUser, amount: str, key: str = "1", settlement_id: int | None = None) -> Recovery:
    """Add an amount to the member's debt, and book it as receivable."""
    with transaction.atomic():
        receivables.owe(settlement_id=settlement_id, user_id=user.pk, amount=Decimal(amount), at=AT)
        entry = journal.Entry(f"owe:{user.pk}-{key}", journal.receivable(user.pk), journal.OPENING, Decimal(amount))
        journal.post([entry], at=AT)
    return Recovery.objects.get(user=user)


def repay(user: CustomUser, amount: str) -> tuple[Decimal, Decimal]:
    """Record that the member paid an amount back, and book its two parts."""
    with transaction.atomic():
        owed, borne = receivables.record_repayment(settlement_id=None, user_id=user.pk, amount=Decimal(amount))
        parts = [
            journal.Entry(f"repay:{user.pk}", journal.OPENING, journal.receivable(user.pk), owed),
            journal.Entry(f"unwrite:{user.pk}", journal.OPENING, journal.BAD_DEBT, borne),
        ]
        journal.post([part for part in parts if part.amount > 0], at=AT)
    return owed, borne


def test_set_off_is_the_share_floored_to_the_cent_up_to_the_amount_owed(db: None) -> None:
    large, small = owe(member(), "500"), owe(member(), "10")
    for recovery in (large, small):
        debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=33, by=actor(operator()), at=AT)
    dividends = {large.user_id: Decimal("100.01"), small.user_id: Decimal("100.01")}

    with transaction.atomic():
        set_offs = receivables.to_set_off(dividends)

    assert [(part.recovery_id, part.amount) for part in set_offs] == [(large.pk, Decimal("33.00")), (small.pk, 10)]
    assert receivables.by_member(set_offs) == {
        "debtors": [large.user_id, small.user_id],
        "kept": [Decimal("33.00"), Decimal("10.00")],
    }


def test_share_below_a_shilling_is_set_off_too(db: None) -> None:
    recovery = owe(member(), "500")
    debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=50, by=actor(operator()), at=AT)

    with transaction.atomic():
        (part,) = receivables.to_set_off({recovery.user_id: Decimal("0.10")})

    assert part.amount == Decimal("0.05")


def test_only_the_computation_of_a_settlement_locks_the_debts(db: None) -> None:
    recovery = owe(member(), "500")
    debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=50, by=actor(operator()), at=AT)
    dividends = {recovery.user_id: Decimal(100)}

    with transaction.atomic(), CaptureQueriesContext(connection) as preview:
        receivables.to_set_off(dividends, locked=False)
    with transaction.atomic(), CaptureQueriesContext(connection) as settlement:
        receivables.to_set_off(dividends)

    assert ["FOR NO KEY UPDATE" in query["sql"] for query in (preview[0], settlement[0])] == [False, True]


def test_each_debt_is_lowered_by_its_own_set_off_from_the_payout(db: None) -> None:
    # given: each debtor also has a late bet, which goes back to the wallet in the same settlement
    debtors, made = [member(), member()], market(fee_pct=0)
    for user in debtors:
        recovery = owe(user, "100")
        debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=50, by=actor(operator()), at=AT)
        orm_bet(made, user, amount="60.50", at=AT)
        orm_bet(made, user, amount=7, at=AT + timedelta(minutes=2))

    # when
    resolve(made, effective_close_at=AT + timedelta(minutes=1), at=AT + timedelta(minutes=5))
    settle(made, at=AT + timedelta(minutes=5))

    # then: 60 of 60.50 are due by M-Pesa, of which the debt takes 30.25
    assert list(Recovery.objects.values_list("recovered", flat=True)) == [Decimal("30.25")] * 2
    for user in debtors:
        wallet_part = Transaction.objects.get(user=user, destination="wallet", type="PAYOUT")
        assert Transfer.objects.get(code="setoff", debit__user=user).transaction_id == wallet_part.pk


def test_new_debt_stays_set_off_as_decided(db: None) -> None:
    debtor = member()
    recovery = owe(debtor, "100")
    debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=50, by=actor(operator()), at=AT)

    assert owe(debtor, "5", "2").decision == "SET_OFF"


def test_decision_on_changed_receivables_is_refused(db: None) -> None:
    debtor, by = member(), actor(operator())
    recovery = owe(debtor, "100")
    seen = debt_decisions.fingerprint(receivables.owing(recovery_id=recovery.pk))
    owe(debtor, "0.01", "2")

    with nothing_moved(), pytest.raises(debt_decisions.DebtsMoved):
        debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=by, at=AT, expected=seen)

    seen = debt_decisions.fingerprint(receivables.owing(recovery_id=recovery.pk))
    debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=by, at=AT, expected=seen)
    assert journal.balance(journal.BAD_DEBT) == Decimal("100.01")


def test_decision_on_the_debts_of_a_market_locks_no_settlement(db: None) -> None:
    """A settlement's row is the last lock of a claim, so nobody may hold it and wait for other rows."""
    made = settled_market([(member(), "Yes", 100)])
    debtor = member()
    owe(debtor, "100", settlement_id=Settlement.objects.get().pk)

    with CaptureQueriesContext(connection) as queries:
        debt_decisions.write_off(market_id=made.pk, reason="Gone.", by=actor(operator()), at=AT)

    (lock,) = [query["sql"] for query in queries if "JOIN" in query["sql"] and "FOR NO KEY UPDATE" in query["sql"]]
    assert lock.endswith('FOR NO KEY UPDATE OF "payments_recovery"')


def test_decision_on_a_debt_is_refused_inside_a_transaction(db: None) -> None:
    recovery = owe(member(), "100")
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=actor(), at=AT)


def test_debt_after_a_write_off_opens_the_recovery_again(db: None) -> None:
    debtor = member()
    recovery = owe(debtor, "100")
    debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=actor(operator()), at=AT)

    recovery = owe(debtor, "5", "2")
    assert (recovery.decision, recovery.written_off, recovery.outstanding) == ("OPEN", 100, 5)

    debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone too.", by=actor(operator()), at=AT)
    assert [(key, amount) for key, _, _, amount in transfers(code="writeoff")] == [
        (f"writeoff:{recovery.pk}:1", 100),
        (f"writeoff:{recovery.pk}:2", 5),
    ]


def test_repayment_settles_the_debt_first_and_then_the_write_off(db: None) -> None:
    debtor = member()
    recovery = owe(debtor, "100")
    debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=actor(operator()), at=AT)
    owe(debtor, "5", "2")

    assert repay(debtor, "45") == (5, 40)

    recovery.refresh_from_db()
    assert (recovery.recovered, recovery.written_off, recovery.outstanding) == (45, 60, 0)
    assert receivables.still_owed() == (0, 0)


def test_debts_are_listed_and_summed_by_market(db: None) -> None:
    # given: two debts from one market, one from another, and one that is paid
    first, second = (settled_market([(member(), "Yes", 100)]) for _ in range(2))
    settlements = [Settlement.objects.get(market=made).pk for made in (first, second)]
    small, large = owe(member(), "5", settlement_id=settlements[0]), owe(member(), "7", settlement_id=settlements[0])
    other = owe(member(), "11", settlement_id=settlements[1])
    paid = owe(member(), "3")
    repay(paid.user, "3")

    # then: the newest first
    every = [paid.pk, other.pk, large.pk, small.pk]
    assert [debt.pk for debt in receivables.listed(before=2**62, limit=10)] == every
    assert [debt.pk for debt in receivables.listed(before=other.pk, limit=1)] == [large.pk]
    assert [debt.pk for debt in receivables.listed(before=2**62, limit=10, market_id=first.pk)] == every[2:]
    assert receivables.still_owed() == (3, 23)
    assert receivables.still_owed(first.pk) == (2, 12)
    assert receivables.owing(market_id=first.pk) == [(small.pk, 5), (large.pk, 7)]
    assert receivables.owing(recovery_id=other.pk) == [(other.pk, 11)]
    assert receivables.owing(recovery_id=paid.pk) == []
