"""Receivables: debts of members, their set-off, write-off and repayment."""

from decimal import Decimal

import pytest
from django.db import transaction

from payments.ledger import debt_decisions, journal, receivables
from payments.models import Recovery
from testing.builders import AT, actor, member, nothing_moved, operator, transfers
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
