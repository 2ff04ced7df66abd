"""Certificate of a settlement: its fields, its canonical text and its check. Pure.

docs/certificate.md describes the format to the public. docs/verify_settlement.py checks a certificate without this
project. This module makes the same checks with the project's own rule for dividing a pool.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

from markets import parimutuel
from payments.settlement.certificates import merkle

FORMAT = "kasoko-certificate-1"
BET_DOMAIN = b"kasoko-bet-1\n"
SETTLEMENT_DOMAIN = b"kasoko-settlement-1\n"
MAX_INLINE_BETS = 10_000
RULES = {
    "WINNER": "One outcome won. The pool less the fee is shared among the stakes on it, pro rata.",
    "JOINT": "Joint winners: the winning stakes come back first, the rest is split by weight, then pro rata.",
    "SPLIT": "The pool less the fee is split among the outcomes by weight, then pro rata among the stakes on each.",
    "VOID": "The market is void: every stake goes back whole, and no fee is taken.",
}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_MONEY = re.compile(r"(0|[1-9][0-9]{0,17})\.[0-9]{2}", re.ASCII)


class Differs(Exception):
    """The certificate is wrong. The message names the first part that differs."""


@dataclass(frozen=True)
class Entry:
    """One bet as stated in its line of the certificate. Amounts are cents."""

    outcome: str
    stake: int
    result: str
    dividend: int
    placed_at: str


def canonical(value: Any) -> str:
    """Write a value as canonical JSON (as RFC 8785): sorted keys, no blanks, and only the escapes that JSON demands."""
    return _ENCODER.encode(value)


def moment(at: datetime) -> str:
    """Write a moment in UTC to the microsecond. The order of such texts is the order of time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def money(cents: int) -> str:
    """Write an amount in cents as shillings with two decimals, such as 285.00."""
    return f"{cents // 100}.{cents % 100:02d}"


def cents(amount: object) -> int:
    """Read an amount such as 285.00 and return it in cents. Raises: Differs."""
    if not isinstance(amount, str) or not _MONEY.fullmatch(amount):
        raise Differs(f"{amount!r} is not an amount with two decimals")
    return int(amount.replace(".", ""))


def bet_line(
    *, bet_id: str, number: int, outcome: str, stake: Decimal, result: str, dividend: Decimal, placed_at: datetime
) -> str:
    """Write the canonical line of a bet. `number` counts a market's bets from 1, in the order of placing."""
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
    """Hash a bet's line as a leaf of the tree."""
    return merkle.leaf(BET_DOMAIN + line.encode())


def settlement_hash(statement: str) -> str:
    """Hash a settlement's canonical statement, in hex."""
    return hashlib.sha256(SETTLEMENT_DOMAIN + statement.encode()).hexdigest()


def equation(*, staked: str, net: str, fee: str, refunds: str) -> str:
    """Write the totals as one equation, which anyone can check."""
    return f"stakes {staked} = dividends {net} + fee {fee} + refunds {refunds}"


# --- checking --------------------------------------------------------------------------------------------------------


def check(body: Any, lines: Iterable[str] | None = None) -> None:
    """Compute every figure of a certificate again, from the certificate alone, and compare.

    `body` is the parsed JSON of the public endpoint. `lines` are the lines of bets.jsonl, if the body has no bets.
    Raises: Differs, which names the first part that differs.
    """
    try:
        _check(body, lines)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise Differs(f"it cannot be read, because a part is missing or malformed: {error}") from error


def check_proof(proof: Mapping[str, Any]) -> bool:
    """Return True if the proof's line is in the tree with the proof's root."""
    return merkle.proves(
        leaf_hash=leaf_of(proof["leaf"]),
        index=proof["index"],
        size=proof["tree_size"],
        siblings=[bytes.fromhex(sibling) for sibling in proof["path"]],
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
    # The hashes come last, so that a wrong figure is named before the hash that it changes.
    _same("settlement.merkle_root", stated["merkle_root"], tree)
    _same("settlement_hash", body["settlement_hash"], settlement_hash(canonical(stated)))


def _read(lines: Iterable[str], outcomes: Mapping[str, Any]) -> tuple[list[Entry], str]:
    """Read the bets and compute the root of their tree, one block at a time. Return the bets and the root in hex."""
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
    """Divide the pool again by the rule, and compare each bet, the totals and each outcome."""
    closed_at = stated["effective_close_at"]
    late = [closed_at is not None and entry.placed_at > closed_at for entry in entries]
    left_out = [outcomes[entry.outcome]["scratched"] or is_late for entry, is_late in zip(entries, late, strict=True)]
    funds, dividends = _divided(stated, outcomes, entries, left_out)
    _check_bets(entries, left_out, funds, dividends)
    _check_totals(stated, entries, funds)
    by_outcome: dict[str, list[Entry]] = {name: [] for name in outcomes}
    for entry in entries:
        by_outcome[entry.outcome].append(entry)
    for name, outcome in outcomes.items():
        fund = 0 if funds.refund else funds.by_outcome.get(name, 0)
        _check_outcome(name, outcome, by_outcome[name], fund)


def _divided(
    stated: Mapping[str, Any], outcomes: Mapping[str, Any], entries: list[Entry], left_out: list[bool]
) -> tuple[parimutuel.Funds, Mapping[int, int]]:
    """Divide the pool without the bets that are left out. A bet's key in the dividends is its number."""
    stakes = [
        parimutuel.Stake(number, entry.outcome, entry.stake)
        for number, (entry, is_left_out) in enumerate(zip(entries, left_out, strict=True), start=1)
        if not is_left_out
    ]
    weights = {name: Decimal(outcome["weight"]) for name, outcome in outcomes.items() if outcome["weight"] is not None}
    return parimutuel.divide_pool(
        stakes,
        rule=cast(parimutuel.Rule, stated["rule"]),
        outcomes=list(outcomes),
        weights=weights,
        fee_pct=Decimal(stated["fee_pct"]),
        protect_stake=stated["protect_stake"],
    )


def _check_bets(
    entries: list[Entry], left_out: list[bool], funds: parimutuel.Funds, dividends: Mapping[int, int]
) -> None:
    for number, (entry, is_left_out) in enumerate(zip(entries, left_out, strict=True), start=1):
        if is_left_out or funds.refund:
            result, dividend = "REFUNDED", entry.stake
        else:
            result, dividend = "WON" if entry.outcome in funds.by_outcome else "LOST", dividends[number]
        _same(f"bet {number}: result", entry.result, result)
        _same(f"bet {number}: dividend", money(entry.dividend), money(dividend))


def _check_totals(stated: Mapping[str, Any], entries: list[Entry], funds: parimutuel.Funds) -> None:
    figures = {
        "staked": money(_staked(entries)),
        "pool": money(funds.pool),
        "refunds": money(_staked(entries, "REFUNDED")),
        "winning_pool": money(funds.winning_pool),
        "fee": money(funds.fee),
        "net": money(0 if funds.refund else funds.net),
    }
    figures["equation"] = equation(**{name: figures[name] for name in ("staked", "net", "fee", "refunds")})
    figures["rule_in_words"] = RULES[stated["rule"]]
    for name, figure in figures.items():
        _same(f"settlement.{name}", stated[name], figure)


def _check_outcome(name: str, outcome: Mapping[str, Any], entries: list[Entry], fund: int) -> None:
    """Compare an outcome's figures with the sums of its bets."""
    figures = {
        "bets": len(entries),
        "stakes": money(_staked(entries)),
        "refunded": money(_staked(entries, "REFUNDED")),
        "fund": money(fund),
    }
    for field, figure in figures.items():
        _same(f"outcome {name!r}: {field}", outcome[field], figure)


def _staked(entries: list[Entry], result: str | None = None) -> int:
    """Sum up the stakes of all bets, or of the bets with one result."""
    return sum(entry.stake for entry in entries if result in (None, entry.result))


def _same(place: str, stated: Any, computed: Any) -> None:
    if type(stated) is not type(computed) or stated != computed:
        raise Differs(f"{place}: the certificate says {_shown(stated)}, it must be {_shown(computed)}")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
