"""Locks of rows: they leave the key alone, so that a row that refers to a locked one can still be written."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("api", "markets", "payments")


def locks(source: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "select_for_update"
    ]


def leaves_the_key_alone(lock: ast.Call) -> bool:
    return any(
        keyword.arg == "no_key" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in lock.keywords
    )


def test_row_locks_leave_the_key_alone() -> None:
    """FOR UPDATE makes each writer of a callback or transfer about the row wait. FOR NO KEY UPDATE does not."""
    found, wrong = 0, []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if {"tests", "migrations"} & set(path.parts):
                continue
            for lock in locks(path.read_text(encoding="utf-8")):
                found += 1
                wrong += [] if leaves_the_key_alone(lock) else [f"{path.relative_to(ROOT)}:{lock.lineno}"]

    assert found > 40
    assert wrong == []
