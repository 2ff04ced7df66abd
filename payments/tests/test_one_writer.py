"""Single writers: only listed modules insert transfers and payouts, or change states of requests and payouts."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("api", "users", "markets", "payments")

# Patterns of the statements and ORM calls that write each table's rows or states.
INSERTS_TRANSFERS = re.compile(r"INSERT INTO payments_transfer|Transfer\(|Transfer\.objects\.(create|bulk_create)")
INSERTS_PAYOUTS = re.compile(
    r"INSERT INTO payments_transaction|[^\w.]Transaction\(|Transaction\.objects\.(bulk_)?create"
)
UPDATES_STATES = re.compile(r"UPDATE payments_(attempt|transaction)\b")
# Names of variables that hold rows of other state machines.
OTHER_ROWS = {
    "market",
    "settlement",
    "proposal",
    "dispute",
    "recovery",
    "restore",
    "orphan",
    "self",
    "cls",
    "breaker",
    "request",
    "response",
}


def sources() -> dict[str, str]:
    files = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            inside = path.relative_to(ROOT)
            if path.suffix in (".py", ".sql") and not {"tests", "migrations", "models", "demo", "simulator"} & set(
                inside.parts
            ):
                files[str(inside)] = path.read_text(encoding="utf-8")
    return files


def state_changes(source: str) -> list[str]:
    """Find the assignments to `.state` or `.status` of a row, and updates of these columns by a query set."""
    changes = []
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr in ("state", "status"):
                owner = ast.unparse(target.value)
                if owner.split(".")[-1] not in OTHER_ROWS:
                    changes.append(f"{owner}.{target.attr}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            row = re.match(r"(Attempt|Transaction)\.objects", ast.unparse(node.func.value))
            if row and {keyword.arg for keyword in node.keywords} & {"state", "status"}:
                changes.append(f"{row.group(1)}.update")
    return changes


def writers(pattern: re.Pattern[str]) -> set[str]:
    return {name for name, source in sources().items() if pattern.search(source)}


def test_only_the_ledger_settling_and_undo_insert_transfers() -> None:
    allowed = {f"payments/settlement/{name}.py" for name in ("settling", "outside_bets", "undo")}
    others = {name for name in writers(INSERTS_TRANSFERS) if not name.startswith("payments/ledger/")}
    assert {name.removesuffix(".sql").removesuffix(".py") + ".py" for name in others} <= allowed


def test_only_settling_creates_payouts() -> None:
    assert {name for name in writers(INSERTS_PAYOUTS) if Path(name).stem != "settling"} == set()


# Settling creates payouts, undo cancels them in bulk, and requests that may have left before a restore open in doubt.
MAY_CHANGE_STATES = {
    "payments/payouts/attempts.py",
    "payments/payouts/evidence/booking.py",
    "payments/payouts/found.py",
    "payments/payouts/restores/changes.py",
    "payments/settlement/undo.py",
}


def test_only_the_payout_machine_changes_states_of_requests_and_payouts() -> None:
    changes: dict[str, list[str]] = defaultdict(list)
    for name, source in sources().items():
        if not name.startswith("payments/"):
            continue
        if name.endswith(".py"):
            changes[name] += state_changes(source)
        changes[name.removesuffix(".sql").removesuffix(".py") + ".py"] += UPDATES_STATES.findall(source)
    assert {name for name, found in changes.items() if found} - MAY_CHANGE_STATES == set()


@pytest.mark.parametrize(
    "source",
    [
        "attempt.state = 'PAID'",
        "payout.status, payout.reason = 'FAILED', ''",
        "Transaction.objects.filter(pk=1).update(status='FAILED')",
    ],
)
def test_a_state_change_is_noticed(source: str) -> None:
    assert state_changes(source) != []
