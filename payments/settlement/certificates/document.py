"""The certificate of a settlement: what is stated, in which exact text, and whether it follows from the stakes. Pure.

docs/certificate.md is the format for others; docs/verify_settlement.py checks it without this project. Here the same is
checked by the rule that divides pools.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

from markets import parimutuel
from payments.settlement.certificates import merkle

FORMAT = "kasoko-certificate-1"
BET_DOMAIN = b"kasoko-bet-1\n"
SETTLEMENT_DOMAIN = b"kasoko-settlement-1\n"
INLINE = 10_000
RULES = {
    "WINNER": "One outcome won. The pool less the fee is shared among the stakes on it, pro rata.",
    "JOINT": "Joint winners: the winning stakes come back first, the rest is split by weight, then pro rata.",
    "SPLIT": "The pool less the fee is split among the outcomes by weight, then pro rata among the stakes on each.",
    "VOID": "The market is void: every stake goes back whole, and no fee is taken.",
}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_MONEY = re.compile(r"(0|[1-9][0-9]{0,17})\.[0-9]{2}", re.ASCII)


class Differs(Exception):
    """The certificate does not hold; the message names the first place that differs."""


@dataclass(frozen=True)
class Entry:
    """One bet as its line states it, in cents."""

    outcome: str
    stake: int
    result: str
    dividend: int
    placed_at: str


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks, no escapes that JSON does not demand (as RFC 8785)."""
    return _ENCODER.encode(value)


def moment(at: datetime) -> str:
    """A moment in UTC to the microsecond; as text these sort as they happened."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def cents(amount: object) -> int:
    """The cents of an amount as certificates write it. Raises: Differs."""
    if not isinstance(amount, str) or not _MONEY.fullmatch(amount):
        raise Differs(f"{amount!r} is no amount with two decimals")
    return int(amount.replace(".", ""))


def bet_line(
    *, bet_id: str, number: int, outcome: str, stake: Decimal, result: str, dividend: Decimal, placed_at: datetime
) -> str:
    """The canonical line of a bet; `number` is its place in the order in which the bets were placed, from 1."""
    return canonical(
        {
            "id": bet_id,
            "number": number,
            "outcome": outcome,
            "stake": f"{stake:.2f}",
            "result": result,
            "dividend": f"{dividend:.2f}",
            "placed_at": moment(placed_at),
        }
    )


def leaf_of(line: str) -> bytes:
    """The hash of a bet's line as a leaf of the tree."""
    return merkle.leaf(BET_DOMAIN + line.encode())


def settlement_hash(statement: str) -> str:
    """The hash of a settlement's canonical statement, in hex."""
    return hashlib.sha256(SETTLEMENT_DOMAIN + statement.encode()).hexdigest()


def equation(*, staked: str, net: str, fee: str, refunds: str) -> str:
    return f"stakes {staked} = dividends {net} + fee {fee} + refunds {refunds}"


# --- checking --------------------------------------------------------------------------------------------------------


def check(body: Any, lines: Iterable[str] | None = None) -> None:
    """Recompute everything that a certificate states, from the certificate alone.

    `body` is the parsed JSON of the GET; `lines` are those of bets.jsonl, where the body has no bets.
    Raises: Differs, which names the first place that differs.
    """
    try:
        _check(body, lines)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise Differs(f"it cannot be read: {type(error).__name__} {error}") from error


def check_proof(proof: Mapping[str, Any]) -> bool:
    """Whether a bet's line is in the tree whose root the proof names."""
    return merkle.proves(
        leaf_hash=leaf_of(proof["leaf"]),
        index=proof["index"],
        size=proof["tree_size"],
        beside=[bytes.fromhex(one) for one in proof["path"]],
        root_hash=bytes.fromhex(proof["merkle_root"]),
    )


def _check(body: Any, lines: Iterable[str] | None) -> None:
    _same("the fields of the certificate", sorted(body), ["bets", "bets_file", "settlement", "settlement_hash"])
    stated = body["settlement"]
    _same("settlement.format", stated["format"], FORMAT)
    _same("bets_file", body["bets_file"], None if body["bets"] is not None else "bets.jsonl")
    if body["bets"] is not None:
        lines = (canonical(bet) for bet in body["bets"])
    elif lines is None:
        raise Differs("the bets are in bets.jsonl, which was not given")
    outcomes = {outcome["name"]: outcome for outcome in stated["outcomes"]}
    entries, tree = _read(lines, outcomes)
    _same("settlement.bets", stated["bets"], len(entries))
    _check_division(stated, outcomes, entries)
    # Last, so that a line is named where one is wrong.
    _same("settlement.merkle_root", stated["merkle_root"], tree)
    _same("settlement_hash", body["settlement_hash"], settlement_hash(canonical(stated)))


def _read(lines: Iterable[str], outcomes: Mapping[str, Any]) -> tuple[list[Entry], str]:
    entries: list[Entry] = []
    leaves: list[bytes] = []
    blocks: list[bytes] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\n")
        bet = json.loads(line)
        _same(f"bet {number}: its line", line, canonical(bet))
        _same(f"bet {number}: number", bet["number"], number)
        if bet["outcome"] not in outcomes:
            raise Differs(f"bet {number}: the market has no outcome {bet['outcome']!r}")
        stake, dividend = cents(bet["stake"]), cents(bet["dividend"])
        if stake == 0:
            raise Differs(f"bet {number}: nothing is staked")
        entries.append(Entry(bet["outcome"], stake, bet["result"], dividend, bet["placed_at"]))
        leaves.append(leaf_of(line))
        if len(leaves) == merkle.BLOCK:
            blocks.append(merkle.root(leaves))
            leaves = []
    if leaves:
        blocks.append(merkle.root(leaves))
    return entries, merkle.root(blocks).hex()


def _check_division(stated: Mapping[str, Any], outcomes: Mapping[str, Any], entries: list[Entry]) -> None:
    late = stated["effective_close_at"]
    out = [outcomes[one.outcome]["scratched"] or (late is not None and one.placed_at > late) for one in entries]
    stakes = [
        parimutuel.Stake(number, one.outcome, one.stake)
        for number, (one, refunded) in enumerate(zip(entries, out, strict=True), start=1)
        if not refunded
    ]
    weights = {name: Decimal(one["weight"]) for name, one in outcomes.items() if one["weight"] is not None}
    divided, dividends = parimutuel.divide_pool(
        stakes,
        rule=cast(parimutuel.Rule, stated["rule"]),
        outcomes=list(outcomes),
        weights=weights,
        fee_pct=Decimal(stated["fee_pct"]),
        protect_stake=stated["protect_stake"],
    )
    for number, (one, refunded) in enumerate(zip(entries, out, strict=True), start=1):
        if refunded or divided.refund:
            result, due = "REFUNDED", one.stake
        else:
            result, due = "WON" if one.outcome in divided.by_outcome else "LOST", dividends[number]
        _same(f"bet {number}: result", one.result, result)
        _same(f"bet {number}: dividend", money(one.dividend), money(due))

    def total(which: Callable[[Entry], bool]) -> str:
        return money(sum(one.stake for one in entries if which(one)))

    figures = {
        "staked": total(lambda one: True),
        "pool": money(divided.pool),
        "refunds": total(lambda one: one.result == "REFUNDED"),
        "winning_pool": money(divided.winning_pool),
        "fee": money(divided.fee),
        "net": money(0 if divided.refund else divided.net),
    }
    for name, figure in figures.items():
        _same(f"settlement.{name}", stated[name], figure)
    balance = equation(**{name: figures[name] for name in ("staked", "net", "fee", "refunds")})
    _same("settlement.equation", stated["equation"], balance)
    _same("settlement.rule_in_words", stated["rule_in_words"], RULES[stated["rule"]])
    on: dict[str, list[Entry]] = {name: [] for name in outcomes}
    for one in entries:
        on[one.outcome].append(one)
    for name, outcome in outcomes.items():
        of_outcome = {
            "bets": len(on[name]),
            "stakes": money(sum(one.stake for one in on[name])),
            "refunded": money(sum(one.stake for one in on[name] if one.result == "REFUNDED")),
            "fund": money(0 if divided.refund else divided.by_outcome.get(name, 0)),
        }
        for what, counted in of_outcome.items():
            _same(f"outcome {name!r}: {what}", outcome[what], counted)


def _same(what: str, stated: Any, computed: Any) -> None:
    if type(stated) is not type(computed) or stated != computed:
        raise Differs(f"{what}: the certificate says {_shown(stated)}, it must be {_shown(computed)}")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
