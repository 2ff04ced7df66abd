"""Decisions of staff on members' debts: set off, write off.

A set-off keeps a part of the member's later dividends. A write-off books the debt as our loss.
Lock order: Recoveries by id, then the accounts (ledger), then the end of the audit trail.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import transaction

from payments import own_affairs
from payments.ledger import journal
from payments.models import Recovery, Transfer
from users import audit
from users.refusal import Refusal


class RecoveryNotFound(Refusal):
    """The recovery does not exist, or no member has a debt from that market."""


class NothingOwed(Refusal):
    """The whole debt has already been paid back or written off."""


class DebtsMoved(Refusal):
    """The amounts owed changed after the operator saw them, so nothing was decided."""


@dataclass(frozen=True)
class _Act:
    """A decision on recoveries. `action` and `after` are for the audit trail; `change` changes one recovery."""

    action: str
    change: Callable[[Recovery], None]
    after: dict[str, Any]
    reason: str = ""


def fingerprint(owing: Iterable[tuple[int, Decimal]]) -> str:
    """Hash recoveries (ids in order, shillings owed on each), so that a later change can be noticed."""
    return hashlib.sha256(repr([(pk, f"{owed:.2f}") for pk, owed in owing]).encode()).hexdigest()


def decide_set_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    pct: int,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery]:
    """Set off one recovery, or all recoveries from a market, against up to `pct` % of each later dividend.

    `expected` is the fingerprint of the amounts that the operator saw. If they have changed, nothing is decided.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved.
    """

    def change(recovery: Recovery) -> None:
        recovery.decision, recovery.pct = Recovery.Decision.SET_OFF, pct

    act = _Act("recovery.set_off", change, {"decision": "SET_OFF", "pct": pct})
    return _decide(act, recovery_id, market_id, by=by, at=at, expected=expected)


def write_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    reason: str,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery]:
    """Write off the open amount of one recovery, or of all recoveries from a market. Books bad_debt → receivable.

    `expected` is the fingerprint of the amounts that the operator saw. If they have changed, nothing is decided.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved.
    """

    def change(recovery: Recovery) -> None:
        loss = recovery.outstanding
        number = 1
        while Transfer.objects.filter(key=f"writeoff:{recovery.pk}:{number}").exists():
            number += 1
        owes = journal.receivable(recovery.user_id)
        journal.post([journal.Entry(f"writeoff:{recovery.pk}:{number}", journal.BAD_DEBT, owes, loss)], at=at)
        recovery.written_off += loss
        recovery.decision, recovery.pct, recovery.reason = Recovery.Decision.WRITTEN_OFF, None, reason

    act = _Act("recovery.write_off", change, {"decision": "WRITTEN_OFF"}, reason)
    return _decide(act, recovery_id, market_id, by=by, at=at, expected=expected)


def _decide(
    act: _Act,
    recovery_id: int | None,
    market_id: int | None,
    *,
    by: audit.Actor,
    at: datetime,
    expected: str | None,
) -> list[Recovery]:
    with transaction.atomic(durable=True):
        rows = Recovery.objects.order_by("pk").select_for_update(no_key=True, of=("self",))
        rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
        recoveries = list(rows)
        if not recoveries:
            raise RecoveryNotFound("Nothing is owed under this id or from this market. Nothing was changed.")
        own_affairs.refuse_own_debt(recoveries, by)
        still_open = [recovery for recovery in recoveries if recovery.outstanding > 0]
        if not still_open:
            raise NothingOwed("Everything was paid back or written off already. Nothing was changed.")
        if expected not in (None, fingerprint((recovery.pk, recovery.outstanding) for recovery in still_open)):
            raise DebtsMoved("The amount owed has changed since you saw it. Nothing was decided: check it again.")
        before = {str(recovery.pk): [recovery.decision, recovery.outstanding] for recovery in still_open}
        for recovery in still_open:
            act.change(recovery)
            recovery.decided_by_id, recovery.decided_at = by.user_id, at
            recovery.save()
        audit.record(
            action=act.action,
            by=by,
            subject=f"recovery:{recovery_id}" if recovery_id is not None else f"market:{market_id}",
            before=before,
            after=act.after,
            at=at,
            reason=act.reason,
        )
    return still_open
