"""Lost commits of the pure world: the machine goes back to an earlier moment while M-Pesa keeps its book."""

from collections.abc import Callable
from copy import copy
from dataclasses import fields
from typing import Any

from soak.simulation.pure.machine import Machine
from soak.simulation.pure.rows import Attempt, Orphan, Payout, Question

Row = Payout | Attempt | Question | Orphan


def memento(machine: Machine) -> Callable[[], None]:
    """Remember the machine's rows, and return a function that restores them. Later rows disappear.

    A row that survives stays the same object, because M-Pesa's addresses name rows.
    """
    rows: list[Row] = [*machine.payouts, *machine.orphans.values()]
    for payout in machine.payouts:
        rows += [*payout.attempts, *(question for attempt in payout.attempts for question in attempt.questions)]
    columns = [(row, {field.name: _copied(getattr(row, field.name)) for field in fields(row)}) for row in rows]
    payouts, orphans, stored = list(machine.payouts), dict(machine.orphans), set(machine.stored)
    unapplied, paid_late = list(machine.unapplied), dict(machine.paid_late)
    keys, held, total = set(machine.book.keys), machine.book.held.copy(), machine.book.total.copy()

    def restore() -> None:
        for row, values in columns:
            for name, value in values.items():
                setattr(row, name, _copied(value))
        machine.payouts[:], machine.orphans, machine.stored = payouts, orphans, stored
        machine.unapplied[:] = unapplied
        for message in unapplied:
            message.applied = False
        machine.book.keys, machine.book.held, machine.book.total = keys, held, total
        machine.paid_late = dict(paid_late)
        machine.touched.clear()
        machine.touched.update(payouts)

    return restore


def _copied(value: Any) -> Any:
    return copy(value) if isinstance(value, list) else value
