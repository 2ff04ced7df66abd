"""Verify a KASOKO settlement from its certificate alone: python verify_settlement.py FILE [bets.jsonl]

Standard library only, nothing of the project. Exit status 0, or 1 with the first line that differs (certificate.md).
Given a saved explanation it checks that the member's bet is in the tree of the settlement.
"""

import hashlib
import json
import sys
from fractions import Fraction


def text(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf(line):
    return sha(b"\0kasoko-bet-1\n", line)


def money(cents):
    return f"{cents // 100}.{cents % 100:02d}"


def same(what, stated, computed):
    if text(stated) != text(computed):
        sys.exit(f"{what} differs: stated {stated}, computed {computed}")


def root(level):
    while len(level) > 1:
        level = [sha(b"\1", *level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return (level or [sha()])[0].hex()


def root_by_path(proof):
    place, last, reached = proof["index"], proof["tree_size"] - 1, leaf(proof["leaf"].encode())
    path = [bytes.fromhex(one) for one in proof["path"]]
    while last > 0 and (path or place == last and not place % 2):
        if place % 2:
            reached = sha(b"\1", path.pop(0), reached)
        elif place < last:
            reached = sha(b"\1", reached, path.pop(0))
        place, last = place // 2, last // 2
    return reached.hex() if place == last == len(path) == 0 else "none: the path has another length"


def share(total, weights):  # floored; what is left over goes cent by cent to the largest remainders, ties to the first
    whole = sum(weights)
    parts = [int(total * weight // whole) for weight in weights]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def verify(body, lines):
    same("the list of fields", sorted(body), ["bets", "bets_file", "settlement", "settlement_hash"])
    s, bets = body["settlement"], [json.loads(line) for line in lines] if body["bets"] is None else body["bets"]
    same("bets_file", body["bets_file"], "bets.jsonl" if body["bets"] is None else None)
    # Which stakes go back before anything is divided, and which count, by outcome.
    named, cents = {one["name"]: one for one in s["outcomes"]}, [int(bet["stake"].replace(".", "")) for bet in bets]
    back = [named[bet["outcome"]]["scratched"] or bet["placed_at"] > (s["effective_close_at"] or "~") for bet in bets]
    on = {name: [i for i, bet in enumerate(bets) if bet["outcome"] == name and not back[i]] for name in named}
    stakes = {name: sum(cents[i] for i in on[name]) for name in named}
    # The fee, then the fund of each winning outcome: their stakes first (not in a split), the rest by weight.
    weight = {name: Fraction(one["weight"]) for name, one in named.items() if one["weight"] and stakes[name]}
    pool, winning = sum(stakes.values()), [stakes[name] for name in weight]
    fee, split = int(pool * Fraction(s["fee_pct"]) // 100), s["rule"] == "SPLIT"
    fee = min(fee, pool - sum(winning)) if s["protect_stake"] and not split else fee
    first = 0 if split else min(pool - fee, sum(winning))
    parts = zip(share(first, winning), share(pool - fee - first, list(weight.values())), strict=True)
    funds = {name: stake + rest for name, (stake, rest) in zip(weight, parts, strict=True)}
    if s["rule"] == "VOID" or not weight:
        fee, funds, back, on = 0, {}, [True] * len(bets), dict.fromkeys(named, [])
    # What each bet is due, and the sums of all.
    due = dict(enumerate(cents))
    for name in named:
        due.update(zip(on[name], share(funds.get(name, 0), [cents[i] for i in on[name]]), strict=True))
    for i, bet in enumerate(bets):
        result = "REFUNDED" if back[i] else "WON" if bet["outcome"] in funds else "LOST"
        exact = {"number": i + 1, "stake": money(cents[i]), "result": result, "dividend": money(due[i])}
        same(f"line {i + 1}", bet, bet | exact)
    for name, one in named.items():
        of = [i for i, bet in enumerate(bets) if bet["outcome"] == name]
        sums = {"stakes": sum(cents[i] for i in of), "refunded": sum(cents[i] for i in of if back[i])}
        sums = {key: money(value) for key, value in (sums | {"fund": funds.get(name, 0)}).items()}
        same(f"outcome {name}", one, one | sums | {"bets": len(of)})
    refunds = sum(cents[i] for i in range(len(bets)) if back[i])
    sums = {"staked": sum(cents), "pool": pool, "winning_pool": sum(stakes[name] for name in funds), "fee": fee}
    sums = {key: money(value) for key, value in (sums | {"net": sum(funds.values()), "refunds": refunds}).items()}
    sums["equation"] = "stakes {staked} = dividends {net} + fee {fee} + refunds {refunds}".format(**sums)
    same("settlement", s, s | sums | {"bets": len(bets), "format": "kasoko-certificate-1"})
    same("merkle_root", s["merkle_root"], root([leaf(text(bet)) for bet in bets]))
    same("settlement_hash", body["settlement_hash"], sha(b"kasoko-settlement-1\n", text(s)).hex())


if __name__ == "__main__":
    try:
        content = json.load(open(sys.argv[1], encoding="utf-8"))
        if "proof" in content:
            same("merkle_root", content["proof"]["merkle_root"], root_by_path(content["proof"]))
        else:
            verify(content, open(sys.argv[2], encoding="utf-8") if content["bets"] is None else ())
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        sys.exit(f"it cannot be read: {error!r}")
    print("It holds.")
