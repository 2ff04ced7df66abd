"""Certificates for tests: made from stakes by the pure rule, and changed in every field."""

import copy
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

from markets import parimutuel
from payments.settlement.certificates import document, merkle

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "verify_settlement.py"
BEGAN = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)


def script() -> ModuleType:
    """Load the stand-alone script as a module, because a process for each of thousands of cases would be slow."""
    spec = importlib.util.spec_from_file_location("verify_settlement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def certified(
    stakes: Sequence[tuple[str, int]],
    *,
    rule: Any = "WINNER",
    outcomes: Sequence[str] = ("Yes", "No"),
    weights: Mapping[str, Decimal] | None = None,
    fee_pct: Decimal = Decimal("5.00"),
    protect_stake: bool = True,
    effective_close_at: datetime | None = None,
    scratched: Collection[str] = (),
) -> dict[str, Any]:
    """Make the certificate of stakes (outcome, cents), which are placed a second apart and divided by the rule."""
    weights = {"Yes": Decimal(100)} if weights is None else weights
    placed = [BEGAN + timedelta(seconds=number) for number in range(len(stakes))]
    back = [
        outcome in scratched or (effective_close_at is not None and at > effective_close_at)
        for (outcome, _), at in zip(stakes, placed, strict=True)
    ]
    divided, dividends = parimutuel.divide_pool(
        [
            parimutuel.Stake(number, outcome, cents)
            for number, (outcome, cents) in enumerate(stakes, start=1)
            if not back[number - 1]
        ],
        rule=rule,
        outcomes=outcomes,
        weights=weights,
        fee_pct=fee_pct,
        protect_stake=protect_stake,
    )
    bets = []
    for number, (outcome, cents) in enumerate(stakes, start=1):
        refunded = divided.refund or back[number - 1]
        won = outcome in divided.by_outcome
        bets.append(
            {
                "id": str(UUID(int=number)),
                "number": number,
                "outcome": outcome,
                "stake": document.money(cents),
                "result": "REFUNDED" if refunded else "WON" if won else "LOST",
                "dividend": document.money(cents if refunded else dividends[number]),
                "placed_at": document.moment(placed[number - 1]),
            }
        )

    def staked(outcome: str | None = None, result: str | None = None) -> str:
        of = (bet for bet in bets if outcome in (None, bet["outcome"]) and result in (None, bet["result"]))
        return document.money(sum(document.cents(bet["stake"]) for bet in of))

    figures = {
        "staked": staked(),
        "net": document.money(0 if divided.refund else divided.net),
        "fee": document.money(divided.fee),
        "refunds": staked(result="REFUNDED"),
    }
    stated = {
        "format": document.FORMAT,
        "id": str(UUID(int=2**64)),
        "number": 2,
        "market": {"id": 7, "question": "Itanyesha kesho „mjini“?\n\t😀"},
        "rule": rule,
        "rule_in_words": document.RULES[rule],
        "reason": "cancelled" if rule == "VOID" else "",
        "fee_pct": f"{fee_pct:.2f}",
        "protect_stake": protect_stake,
        "effective_close_at": None if effective_close_at is None else document.moment(effective_close_at),
        "resolved_at": document.moment(BEGAN),
        "settled_at": document.moment(BEGAN),
        "bets": len(bets),
        "winning_pool": document.money(divided.winning_pool),
        "pool": document.money(divided.pool),
        **figures,
        "equation": document.equation(**figures),
        "outcomes": [
            {
                "name": name,
                "weight": f"{weights[name]:f}" if name in weights else None,
                "scratched": name in scratched,
                "bets": sum(bet["outcome"] == name for bet in bets),
                "stakes": staked(name),
                "refunded": staked(name, "REFUNDED"),
                "fund": document.money(0 if divided.refund else divided.by_outcome.get(name, 0)),
            }
            for name in outcomes
        ],
        "earlier_runs": [{"number": 1, "state": "UNDONE", "rule": "WINNER", "reason": "", "resolved_at": "x"}],
        "merkle_root": "",
    }
    return sealed({"settlement": stated, "settlement_hash": "", "bets": bets, "bets_file": None})


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """Set the root and the hash that match the body, as a forger would."""
    lines = [document.canonical(bet) for bet in body["bets"]]
    body["settlement"]["merkle_root"] = merkle.root([document.leaf_of(line) for line in lines]).hex()
    body["settlement_hash"] = document.settlement_hash(document.canonical(body["settlement"]))
    return body


def changes(body: Any) -> Iterator[tuple[str, Any]]:
    """Yield each change of one field: a cent more or less, another value, or the field or item removed."""
    for path in _paths(body):
        for value in _other_values(_at(body, path)):
            changed = copy.deepcopy(body)
            _at(changed, path[:-1])[path[-1]] = value
            yield f"{_named(path)} = {value!r}", changed
    for path in _paths(body, leaves=False):
        changed = copy.deepcopy(body)
        del _at(changed, path[:-1])[path[-1]]
        yield f"{_named(path)} removed", changed


def _paths(value: Any, path: tuple[Any, ...] = (), *, leaves: bool = True) -> Iterator[tuple[Any, ...]]:
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        is_leaf = not isinstance(item, dict | list)
        if is_leaf or not leaves:
            yield (*path, key)
        yield from _paths(item, (*path, key), leaves=leaves)


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, str) and re.fullmatch(r"\d+\.\d\d", value):
        cents = document.cents(value)
        return [document.money(cents + 1), *([document.money(cents - 1)] if cents else []), f"{value}0"]
    if isinstance(value, bool):
        return [not value, int(value)]
    if isinstance(value, int):
        return [value + 1, str(value)]
    return ["x", ""] if value is None else [f"{value}x", None]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _named(path: tuple[Any, ...]) -> str:
    return ".".join(str(key) for key in path)


# The GSM 7-bit default alphabet (3GPP TS 23.038, table 1). With any other character an SMS has only 70 characters.
GSM = set(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)


def assert_fits(sentence: str) -> None:
    """Assert that a sentence fits into one SMS."""
    assert len(sentence) <= 160, sentence
    assert set(sentence) <= GSM, sentence
