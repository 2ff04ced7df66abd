"""Tests of markets/locks.py: the registry of advisory lock numbers."""

from importlib import import_module
from pathlib import Path

import pytest

from markets import locks
from users import figure_changes, second_person

ROOT = Path(__file__).resolve().parents[2]
LARGEST_ID = 2**63 - 1


def test_trigger_of_bets_takes_the_number_of_the_market_lock() -> None:
    guards = import_module("markets.migrations.0003_decisions").GUARDS
    assert f"pg_advisory_xact_lock_shared({locks.market_lock(0)} + market_id)" in guards


def test_trigger_of_the_audit_trail_takes_the_registered_number() -> None:
    chain = import_module("users.migrations.0002_audit").CHAIN
    assert f"pg_advisory_xact_lock({locks.AUDIT_CHAIN})" in chain


@pytest.mark.parametrize("row_id", [0, 1, LARGEST_ID])
def test_kinds_of_locks_never_share_a_number(row_id: int) -> None:
    numbers = [
        locks.market_lock(row_id),
        locks.AUDIT_CHAIN,
        locks.certificate_lock(row_id),
        locks.RESTORES,
        locks.receipt_lock(f"SKG{row_id}"),
        second_person.acts_lock("market.resolve", row_id),
        figure_changes.figure_lock(f"figure {row_id}"),
    ]
    assert [number >> 56 for number in numbers] == [7, 8, 9, 10, 11, 12, 13]
    assert max(numbers) < 2**63


def test_only_the_registry_computes_advisory_lock_numbers() -> None:
    # given: each module that takes an advisory lock, apart from tests and migrations
    rooms = [ROOT / room for room in ("api", "users", "markets", "payments")]
    paths = [path for room in rooms for kind in ("*.py", "*.sql") for path in room.rglob(kind)]
    takers = {
        path.relative_to(ROOT).as_posix(): text
        for path in paths
        if not {"tests", "migrations"}.intersection(path.parts)
        and "pg_advisory" in (text := path.read_text(encoding="utf-8"))
    }

    # then: the module names the registry's functions
    assert "payments/wallet/bets.py" in takers
    for path, text in takers.items():
        names = ("locks.market_lock(", "locks.certificate_lock(", "locks.RESTORES", "locks.receipt_lock(", "acts_lock(")
        names += ("figure_lock(",)
        assert path == "markets/locks.py" or any(name in text for name in names), path
