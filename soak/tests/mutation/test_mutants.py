"""Mutants: every one compiles, differs from the source and hits a guard, not a text for people."""

import pytest

from soak.mutation import mutants

SOURCE = '''
"""A module about amounts >= 0."""

import logging

log = logging.getLogger(__name__)

_DUE = """
    SELECT t.id FROM payments_transaction t WHERE t.due_at <= %(at)s AND t.receipt IS NULL
    ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED  -- never = wait
"""


def due(payouts, at, *, limit=10):
    """Return the payouts with an amount >= 1."""
    log.info("%s payouts", len(payouts) + 1)
    if not payouts:
        raise ValueError("none")
    chosen = payouts.filter(status="PENDING", due_at__lte=at)
    return [payout for payout in chosen if payout.amount >= 1 and not payout.held][:limit]
'''


def _changes(path: str = "payments/due.py", source: str = SOURCE) -> set[tuple[str, str]]:
    return {
        (" ".join(mutant.before.split()), " ".join(mutant.replacement.split()))
        for mutant in mutants.all_of(path, source)
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (">=", ">"),
        ("not payouts", "(payouts)"),
        ('raise ValueError("none")', "pass"),
        ('status="PENDING",', ""),
        ("due_at__lte=at", ""),
        (".filter", ".exclude"),
        ("and not payout.held", ""),
        ("<=", "<"),
        ("AND", "OR"),
        ("IS NULL", "IS NOT NULL"),
        ("SKIP LOCKED", ""),
    ],
)
def test_guard_has_a_mutant(before: str, after: str) -> None:
    assert (before, after) in _changes()


def test_texts_logging_and_comments_have_no_mutant() -> None:
    for mutant in mutants.all_of("payments/due.py", SOURCE):
        line = SOURCE.splitlines()[mutant.line - 1]
        assert "log." not in line
        assert not line.strip().startswith('"""')
        assert "never = wait" not in line or mutant.before == "SKIP LOCKED"


def test_every_mutant_compiles_and_differs() -> None:
    for mutant in mutants.all_of("payments/due.py", SOURCE):
        changed = mutant.applied(SOURCE)
        compile(changed, "mutant", "exec")
        assert changed != SOURCE


def test_sql_file_has_mutants_outside_comments() -> None:
    found = _changes("payments/ledger/a.sql", "-- a = b\nSELECT id FROM a WHERE b = 1 OR c < 2\n")
    assert found == {("=", "<>"), ("OR", "AND"), ("<", "<=")}


def test_same_seed_draws_the_same_mutants() -> None:
    first = mutants.draw("payments/due.py", SOURCE, count=5, seed=3)
    assert first == mutants.draw("payments/due.py", SOURCE, count=5, seed=3)
    assert len(first) == 5
    assert first != mutants.draw("payments/due.py", SOURCE, count=5, seed=4)
