"""Verify a KASOKO settlement from its certificate alone.

    python3 verify_settlement.py certificate.json              the saved answer of GET /api/markets/<id>/settlement/
    python3 verify_settlement.py certificate.json bets.jsonl   the same for a market whose bets are in a second file
    python3 verify_settlement.py explanation.json              the saved explanation of one bet (checks its proof)

This file needs only Python 3.11 or newer: no KASOKO code, no other package, no network. It computes every figure again
from the stakes and compares the figures with the certificate. certificate.md describes the format and the rule.

Exit status: 0 if the file is correct; 1 with the first difference, or if the file cannot be read; 2 for wrong usage.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

FIELDS = ["bets", "bets_file", "settlement", "settlement_hash"]
FORMAT = "kasoko-certificate-1"


class Differs(Exception):
    """The file differs from the computation. The message names the first difference."""


@dataclass(frozen=True)
class Division:
    """The computed division of the pool, in cents. `refunded` and `dividends` have one entry for each bet."""

    pool: int
    winning_pool: int
    fee: int
    funds: dict[str, int]
    refunded: list[bool]
    dividends: list[int]


# --- the whole check -------------------------------------------------------------------------------------------------


def verify(body: Any, lines: Iterable[str]) -> None:
    """Check a certificate: divide the pool again from the stakes, then compare every figure and every hash.

    `lines` are the lines of bets.jsonl. They are read only if the certificate has no bets in itself.
    Raises: Differs.
    """
    same("the certificate's fields", sorted(body), FIELDS)
    same("bets_file", body["bets_file"], "bets.jsonl" if body["bets"] is None else None)
    statement = body["settlement"]
    bets = [json.loads(line) for line in lines] if body["bets"] is None else body["bets"]
    stakes = [cents(bet["stake"]) for bet in bets]
    division = divide(statement, bets, stakes)
    check_bets(bets, stakes, division)
    check_outcomes(statement, bets, stakes, division)
    check_totals(statement, stakes, division)
    same("settlement.merkle_root", statement["merkle_root"], root([leaf(canonical(bet)) for bet in bets]))
    statement_hash = sha256(b"kasoko-settlement-1\n", canonical(statement)).hex()
    same("settlement_hash", body["settlement_hash"], statement_hash)


def verify_proof(proof: Any) -> None:
    """Check the proof in a member's explanation: its path must lead from the bet's line to the tree's root.

    Raises: Differs.
    """
    if proof is None:
        raise Differs("the explanation has no proof yet: save it again after the certificate is issued")
    same("proof.merkle_root", proof["merkle_root"], root_by_path(proof))


def same(place: str, stated: Any, computed: Any) -> None:
    """Compare a value of the file with the computed value, as canonical text. So 1, "1" and true are different."""
    if canonical(stated) != canonical(computed):
        raise Differs(f"{place}: the file says {shown(stated)}, the computation gives {shown(computed)}")


# --- the rule: certificate.md, "The rule", steps 1 to 5 --------------------------------------------------------------


def divide(statement: Any, bets: list[Any], stakes: list[int]) -> Division:
    """Divide the pool among the bets."""
    refunded = left_out(statement, bets)
    counting: dict[str, list[int]] = {outcome["name"]: [] for outcome in statement["outcomes"]}
    for place, bet in enumerate(bets):
        if not refunded[place]:
            counting[bet["outcome"]].append(place)
    staked = {name: sum(stakes[place] for place in places) for name, places in counting.items()}
    pool, weights = sum(staked.values()), backed_weights(statement, staked)
    if statement["rule"] == "VOID" or not weights:  # step 2
        return Division(pool, 0, 0, {}, [True] * len(bets), stakes)
    winning_pool = sum(staked[name] for name in weights)
    fee = platform_fee(statement, pool, winning_pool)
    funds = funds_by_outcome(statement, pool - fee, weights, staked)
    return Division(pool, winning_pool, fee, funds, refunded, dividends(stakes, counting, funds))


def left_out(statement: Any, bets: list[Any]) -> list[bool]:
    """Do step 1: leave out each bet on a scratched outcome, and each bet placed after the event had ended."""
    scratched = {outcome["name"]: bool(outcome["scratched"]) for outcome in statement["outcomes"]}
    closed_at = statement["effective_close_at"]
    return [scratched[bet["outcome"]] or (closed_at is not None and bet["placed_at"] > closed_at) for bet in bets]


def backed_weights(statement: Any, staked: dict[str, int]) -> dict[str, Fraction]:
    """Return the weight of each backed outcome: it has a weight and at least one bet that is not left out."""
    return {
        outcome["name"]: Fraction(outcome["weight"])
        for outcome in statement["outcomes"]
        if outcome["weight"] and staked[outcome["name"]]
    }


def platform_fee(statement: Any, pool: int, winning_pool: int) -> int:
    """Do step 3: the fee is a floored percentage of the pool. With `protect_stake` it never takes winning stakes."""
    fee = int(pool * Fraction(statement["fee_pct"]) // 100)
    if statement["protect_stake"] and statement["rule"] != "SPLIT":
        fee = min(fee, pool - winning_pool)
    return fee


def funds_by_outcome(statement: Any, net: int, weights: dict[str, Fraction], staked: dict[str, int]) -> dict[str, int]:
    """Do step 4: a backed outcome gets its stakes back (not in a SPLIT), then its share of the rest by weight."""
    winning = [staked[name] for name in weights]
    stakes_back = 0 if statement["rule"] == "SPLIT" else min(net, sum(winning))
    first = share(stakes_back, winning)
    rest = share(net - stakes_back, list(weights.values()))
    return {name: first[place] + rest[place] for place, name in enumerate(weights)}


def dividends(stakes: list[int], counting: dict[str, list[int]], funds: dict[str, int]) -> list[int]:
    """Do step 5: share each outcome's fund by stake. A losing outcome has no fund. A bet left out gets its stake."""
    results = list(stakes)
    for name, places in counting.items():
        parts = share(funds.get(name, 0), [stakes[place] for place in places])
        for place, part in zip(places, parts, strict=True):
            results[place] = part
    return results


def share(total: int, weights: Sequence[int | Fraction]) -> list[int]:
    """Share a total by weights: floor each part, then give the left-over cents to the largest remainders.

    If two remainders are equal, the first of them gets the cent.
    """
    whole = sum(weights)
    parts = [int(total * weight // whole) for weight in weights]
    largest_first = sorted(range(len(parts)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in largest_first[: total - sum(parts)]:
        parts[place] += 1
    return parts


# --- the figures -----------------------------------------------------------------------------------------------------


def check_bets(bets: list[Any], stakes: list[int], division: Division) -> None:
    """Compare the number, the stake, the result and the dividend of each bet."""
    for place, bet in enumerate(bets):
        won = bet["outcome"] in division.funds
        result = "REFUNDED" if division.refunded[place] else "WON" if won else "LOST"
        dividend = money(division.dividends[place])
        expected = {"number": place + 1, "stake": money(stakes[place]), "result": result, "dividend": dividend}
        check_fields(f"line {place + 1}", bet, expected)


def check_outcomes(statement: Any, bets: list[Any], stakes: list[int], division: Division) -> None:
    """Compare the count, the stakes, the refunds and the fund of each outcome."""
    for outcome in statement["outcomes"]:
        name = outcome["name"]
        places = [place for place, bet in enumerate(bets) if bet["outcome"] == name]
        expected = {
            "bets": len(places),
            "stakes": money(sum(stakes[place] for place in places)),
            "refunded": money(sum(stakes[place] for place in places if division.refunded[place])),
            "fund": money(division.funds.get(name, 0)),
        }
        check_fields(f"outcome {name}", outcome, expected)


def check_totals(statement: Any, stakes: list[int], division: Division) -> None:
    """Compare the format, the totals and the equation that the settlement states."""
    refunds = sum(stake for stake, back in zip(stakes, division.refunded, strict=True) if back)
    totals = {
        "staked": money(sum(stakes)),
        "net": money(sum(division.funds.values())),
        "fee": money(division.fee),
        "refunds": money(refunds),
    }
    equation = "stakes {staked} = dividends {net} + fee {fee} + refunds {refunds}".format(**totals)
    expected = {"format": FORMAT, "bets": len(stakes), "pool": money(division.pool), **totals, "equation": equation}
    expected["winning_pool"] = money(division.winning_pool)
    check_fields("settlement", statement, expected)


def check_fields(place: str, stated: Any, expected: dict[str, Any]) -> None:
    """Compare the named fields of one object."""
    for name, computed in expected.items():
        same(f"{place}: {name}", stated[name], computed)


# --- the hashes: certificate.md, "The exact text" --------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value: UTF-8, sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def leaf(line: bytes) -> bytes:
    """Hash the line of a bet as a leaf of the tree."""
    return sha256(b"\0kasoko-bet-1\n", line)


def node(left: bytes, right: bytes) -> bytes:
    """Hash two nodes to their parent node."""
    return sha256(b"\1", left, right)


def root(level: list[bytes]) -> str:
    """Return the root of the tree in hex. A node without a partner moves up one level unchanged."""
    while len(level) > 1:
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [node(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return (level or [sha256()])[0].hex()


def root_by_path(proof: Any) -> str:
    """Compute the root in hex from the proof's leaf and path.

    Raises: Differs, if the path is too short or too long for the tree.
    """
    place, last = proof["index"], proof["tree_size"] - 1
    reached, path = leaf(proof["leaf"].encode()), [bytes.fromhex(text) for text in proof["path"]]
    while last > 0:
        if place % 2 or place < last:
            if not path:
                raise Differs("proof.path: it is too short for this tree")
            other = path.pop(0)
            reached = node(other, reached) if place % 2 else node(reached, other)
        place, last = place // 2, last // 2
    if place != 0 or path:
        raise Differs("proof.path: it does not fit the index and the size of this tree")
    return reached.hex()


# --- reading and printing --------------------------------------------------------------------------------------------


def cents(amount: str) -> int:
    """Convert an amount such as "285.00" to cents."""
    return int(amount.replace(".", ""))


def money(amount: int) -> str:
    """Write cents as an amount of the certificate, such as "285.00"."""
    return f"{amount // 100}.{amount % 100:02d}"


def shown(value: Any) -> str:
    """Write a value on one line, shortened, for a message."""
    text = canonical(value).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."


def verify_files(file: str, bets_file: str | None) -> None:
    """Read the files and check them. Raises: Differs; OSError; other errors if a file is no certificate."""
    with open(file, encoding="utf-8") as opened:
        content = json.load(opened)
    if "proof" in content:
        verify_proof(content["proof"])
    elif content["bets"] is not None:
        verify(content, ())
    elif bets_file is None:
        raise Differs("the bets are in bets.jsonl: name that file after the certificate")
    else:
        with open(bets_file, encoding="utf-8") as lines:
            verify(content, lines)


def in_words(error: Exception) -> str:
    """Say in words why a file cannot be read."""
    if isinstance(error, OSError):
        return f"{error.filename} cannot be opened: {error.strerror}"
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"it cannot be read as a certificate or an explanation: {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify a KASOKO settlement from its certificate alone.")
    parser.add_argument("file", help="the saved certificate, or the saved explanation of a bet")
    parser.add_argument("bets", nargs="?", help="the saved bets.jsonl, if the certificate names that file")
    arguments = parser.parse_args()  # exits with status 2 and the usage if the arguments are wrong
    try:
        verify_files(arguments.file, arguments.bets)
    except Differs as difference:
        print(difference, file=sys.stderr)
        return 1
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print("It holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
