"""What a settlement would pay, before anyone decides it: by the very figures and the very SQL that will pay.

`figures` gives the hash of everything that decides money; a resolve that carries it is refused once a number has moved.
`preview` adds what an operator wants to know besides: whom it pays most, what it costs, whether the float covers it,
and who cannot be paid as they are. Nothing is written, nothing is locked.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from markets import parimutuel
from markets.models import NAIROBI, Bet, Market
from payments.ledger import journal, receivables
from payments.mpesa import tariff
from payments.payouts import float_balance
from payments.policy import Policy
from payments.settlement import allocation
from payments.settlement import division as settlement_division
from users import phone
from users.refusal import Refusal

LARGEST = 10
EXAMPLES = 20
# Up to so many bets the figures are computed a second time in memory, by divide_pool.
SMALL = 2_000


class FiguresDisagree(Refusal):
    """SQL and the rule in memory come to different dividends: nothing may be settled, an engineer must look."""


@dataclass(frozen=True)
class Figures:
    """A division, what it gives its winners in sum (shillings), and the hash of all that decides money."""

    division: settlement_division.Division
    members: Mapping[str, Any]
    preview_hash: str


@dataclass(frozen=True)
class MemberNote:
    """Members who are not paid as they are: why, how many, how much of their payouts it is about, the first of them."""

    reason: str
    what: str
    count: int
    amount: Decimal
    members: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Preview:
    """What one decision would do; amounts in shillings. `float_at` is when the float was last known, if ever."""

    market_id: int
    rule: str
    weights: Mapping[str, Decimal]
    figures: Figures
    outcomes: tuple[Mapping[str, Any], ...]
    largest: tuple[Mapping[str, Any], ...]
    charges: Decimal
    float_needed: Decimal
    float_available: Decimal | None
    float_at: datetime | None
    notes: tuple[MemberNote, ...]
    equation: str


def figures(
    market: Market, *, rule: parimutuel.Rule, weights: Mapping[str, Decimal], at: datetime, policy: Policy
) -> Figures:
    """The figures of deciding a market at `at`, and their hash. Late bets are those after `market.effective_close_at`.

    Raises: FiguresDisagree.
    """
    divided = settlement_division.divide(
        market,
        settlement_division.staked(market),
        rule=rule,
        weights=weights,
        fee_pct=market.platform_fee_pct,
        protect_stake=policy.protect_stake,
        effective_close_at=market.effective_close_at,
    )
    kept = _kept(market, divided)
    prices = tariff.bands(at.astimezone(NAIROBI).date())
    members = _members(market, divided, kept, prices, policy)
    _check_in_memory(market, divided, members, rule=rule, weights=weights, policy=policy)
    decides = {
        "market": market.pk,
        "rule": rule,
        "weights": {outcome: str(weight) for outcome, weight in weights.items()},
        "effective_close_at": market.effective_close_at and market.effective_close_at.isoformat(),
        "fee_pct": str(market.platform_fee_pct),
        "bets": [divided.bet_count, divided.last_bet_id, divided.late_count, divided.late_refund],
        "pool": [divided.pool, divided.winning_pool, divided.fee, divided.net, divided.refund],
        "stakes": dict(divided.stakes),
        "funds": {outcome: {key: str(value) for key, value in fund.items()} for outcome, fund in divided.funds.items()},
        "members": {key: str(members[key]) for key in ("winners", "amount", "by_mpesa", "to_wallet", "kept")},
        "payments": policy.destination,
    }
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Figures(divided, members, hashlib.sha256(canonical.encode()).hexdigest())


def preview(
    market: Market, *, rule: parimutuel.Rule, weights: Mapping[str, Decimal], at: datetime, policy: Policy
) -> Preview:
    """What resolving (or voiding) the market at `at` would do.

    Units: weights are percentages that sum to 100, empty for VOID.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; FiguresDisagree.
    """
    parimutuel.check_weights(rule, weights, market.running_outcomes)
    found = figures(market, rule=rule, weights=weights, at=at, policy=policy)
    divided, members = found.division, found.members
    charges = members["charges"]
    reading = float_balance.latest()
    return Preview(
        market_id=market.pk,
        rule=rule,
        weights=weights,
        figures=found,
        outcomes=tuple(
            {
                "outcome": outcome,
                "staked": _shillings(fund["stakes"]),
                "fund": _shillings(fund["fund"]),
                "per_shilling": (Decimal(fund["fund"]) / fund["stakes"]).quantize(Decimal("0.000001")),
            }
            for outcome, fund in divided.funds.items()
        ),
        largest=tuple(members["largest"]),
        charges=charges,
        float_needed=members["by_mpesa"] + charges,
        float_available=reading.amount if reading else None,
        float_at=reading.read_at if reading else None,
        notes=_notes(market, divided, members, at, policy),
        equation=_equation(market, rule, weights, divided),
    )


def choices(market: Market) -> list[tuple[parimutuel.Rule, dict[str, Decimal]]]:
    """What a market can be decided to be, simply: each running outcome as the winner, and void."""
    winners: list[tuple[parimutuel.Rule, dict[str, Decimal]]] = [
        ("WINNER", {outcome: Decimal(100)}) for outcome in market.running_outcomes
    ]
    return [*winners, ("VOID", {})]


# --- members ---------------------------------------------------------------------------------------------------------

_NOBODY: dict[str, Any] = {
    "winners": 0, "amount": journal.ZERO, "by_mpesa": journal.ZERO, "to_wallet": journal.ZERO, "kept": journal.ZERO,
    "payments": 0, "charges": journal.ZERO, "largest": [], "kept_by_member": {},
}  # fmt: skip


def _won(divided: settlement_division.Division, only: str = "") -> str:
    in_time = "AND b.placed_at <= %(closed_at)s" if divided.late_count else ""
    return f"""
        SELECT b.user_id, sum({settlement_division.DIVIDEND}) AS amount
        FROM markets_bet b JOIN {settlement_division.FUNDS} ON b.outcome = f.outcome
        WHERE b.market_id = %(market)s {in_time} {only}
        GROUP BY b.user_id HAVING sum({settlement_division.DIVIDEND}) > 0"""  # noqa: S608 - our own words


def _span(market: Market, divided: settlement_division.Division) -> dict[str, Any]:
    return {
        "market": market.pk,
        "closed_at": market.effective_close_at,
        **settlement_division.fund_rows(divided.funds, list(divided.funds)),
    }


def _kept(market: Market, divided: settlement_division.Division) -> list[receivables.SetOff]:
    if divided.refund or not receivables.any_to_set_off():
        return []
    owing = "AND b.user_id IN (SELECT user_id FROM payments_recovery WHERE decision = 'SET_OFF')"
    dividends = dict(_rows(_won(divided, owing), _span(market, divided)))
    return receivables.to_set_off(dividends, locked=False)


def _members(
    market: Market,
    divided: settlement_division.Division,
    kept: list[receivables.SetOff],
    prices: Sequence[tuple[Decimal, Decimal]],
    policy: Policy,
) -> dict[str, Any]:
    """What the winners get in sum, in one pass over the winning bets.

    A payment's band is the number of bands whose largest amount (`prices`, in whole shillings) is less than it.
    """
    if divided.refund:
        return _NOBODY
    largest = f"(SELECT * FROM carried ORDER BY amount DESC, user_id LIMIT {LARGEST})"  # noqa: S608 - a constant
    due = allocation.due(_won(divided), debtors=bool(kept))
    rows = _rows(
        f"""
        WITH {due}
        SELECT 'sum', count(*)::numeric, coalesce(sum(amount), 0), coalesce(sum(by_mpesa), 0), coalesce(sum(kept), 0),
            NULL, NULL FROM carried
        UNION ALL
        SELECT 'band', width_bucket(amount - 1, %(prices)s::numeric[]), count(*), sum(amount), 0, NULL, NULL
        FROM due WHERE destination = 'mpesa' GROUP BY 2
        UNION ALL
        SELECT 'largest', c.user_id, c.amount, c.by_mpesa, c.kept, u.phone_number, u.full_name
        FROM {largest} c JOIN users_customuser u ON u.id = c.user_id
        """,  # noqa: S608 - our own words
        _span(market, divided)
        | receivables.by_member(kept)
        | {
            "by_mpesa": policy.destination == "mpesa",
            "min": policy.min_amount,
            "max": policy.max_amount,
            "prices": [largest for largest, _ in prices],
        },
    )
    ((_, winners, amount, by_mpesa, stays, *_),) = [row for row in rows if row[0] == "sum"]
    bands = {int(row[1]): int(row[2]) for row in rows if row[0] == "band"}
    top = [_member(row[1], row[5], row[2], by_mpesa=row[3]) for row in rows if row[0] == "largest"]
    return {
        "winners": int(winners),
        "amount": amount,
        "by_mpesa": by_mpesa,
        "to_wallet": amount - by_mpesa,
        "kept": stays,
        "payments": sum(bands.values()),
        "charges": sum((prices[band][1] * count for band, count in bands.items() if band < len(prices)), journal.ZERO),
        "largest": sorted(top, key=lambda one: (-one["amount"], one["user_id"])),
        "kept_by_member": dict(zip(*receivables.by_member(kept).values(), strict=True)),
    }


def _member(user_id: Any, number: str, amount: Decimal, **more: Any) -> dict[str, Any]:
    return {"user_id": int(user_id), "phone": phone.masked(number), "amount": amount, **more}


def _check_in_memory(
    market: Market,
    divided: settlement_division.Division,
    members: Mapping[str, Any],
    *,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    policy: Policy,
) -> None:
    if divided.bet_count > SMALL:
        return
    bets = Bet.objects.filter(market=market, outcome__in=market.running_outcomes)
    if divided.late_count:
        bets = bets.filter(placed_at__lte=market.effective_close_at)
    found = list(bets.values_list("pk", "outcome", "amount", "user_id"))
    funds, dividends = parimutuel.divide_pool(
        [parimutuel.Stake(pk, outcome, settlement_division.cents(amount)) for pk, outcome, amount, _ in found],
        rule=rule,
        outcomes=market.running_outcomes,
        weights=weights,
        fee_pct=market.platform_fee_pct,
        protect_stake=policy.protect_stake,
    )
    total: dict[int, int] = {}
    for pk, _, _, user_id in found:
        total[user_id] = total.get(user_id, 0) + dividends[pk]
    won = {user_id: cents for user_id, cents in total.items() if cents}
    top = {one["user_id"]: settlement_division.cents(one["amount"]) for one in members["largest"]}
    in_sql = (divided.pool, divided.fee, divided.net, members["winners"], settlement_division.cents(members["amount"]))
    in_memory = (funds.pool, funds.fee, funds.net, len(won), sum(won.values()))
    if funds.refund:
        in_memory = (funds.pool, funds.fee, funds.net, 0, 0)
    if in_sql != in_memory or any(won.get(user_id) != cents for user_id, cents in top.items()):
        raise FiguresDisagree(f"Market {market.pk}: {in_sql} in SQL, {in_memory} by the rule.")


# --- who is not paid as they are -------------------------------------------------------------------------------------


def _notes(
    market: Market, divided: settlement_division.Division, members: Mapping[str, Any], at: datetime, policy: Policy
) -> tuple[MemberNote, ...]:
    if divided.refund:
        return ()
    midnight = at.astimezone(NAIROBI).replace(hour=0, minute=0, second=0, microsecond=0)
    debts = members["kept_by_member"]
    rows = _rows(
        f"""
        WITH {allocation.due(_won(divided), debtors=bool(debts))}, sent AS (
            SELECT t.user_id, sum(a.amount) AS amount FROM payments_attempt a
            JOIN payments_transaction t ON t.id = a.transaction_id
            WHERE a.opened_at >= %(midnight)s AND a.state <> 'FAILED' GROUP BY t.user_id
        ), noted AS (
            SELECT 'suspended' AS reason, c.user_id, c.by_mpesa AS amount FROM carried c
            JOIN users_customuser u ON u.id = c.user_id WHERE NOT u.is_active
            UNION ALL
            SELECT 'day_limit', c.user_id, c.by_mpesa + coalesce(sent.amount, 0) - %(day_limit)s
            FROM carried c LEFT JOIN sent ON sent.user_id = c.user_id
            WHERE c.by_mpesa > 0 AND c.by_mpesa + coalesce(sent.amount, 0) > %(day_limit)s
            UNION ALL
            SELECT 'below_minimum', c.user_id, c.amount - c.kept FROM carried c
            WHERE %(by_mpesa)s AND c.by_mpesa = 0 AND c.amount > c.kept
            UNION ALL
            SELECT 'set_off', c.user_id, c.kept FROM carried c WHERE c.kept > 0
        ), placed AS (
            SELECT *, row_number() OVER (PARTITION BY reason ORDER BY amount DESC, user_id) AS place,
                count(*) OVER (PARTITION BY reason) AS members, sum(amount) OVER (PARTITION BY reason) AS total
            FROM noted
        )
        SELECT p.reason, p.members, p.total, p.user_id, u.phone_number, p.amount
        FROM placed p JOIN users_customuser u ON u.id = p.user_id
        WHERE p.place <= {EXAMPLES} ORDER BY p.reason, p.place
        """,  # noqa: S608 - our own words
        _span(market, divided)
        | {
            "midnight": midnight,
            "day_limit": policy.day_limit,
            "by_mpesa": policy.destination == "mpesa",
            "min": policy.min_amount,
            "max": policy.max_amount,
            "debtors": list(debts),
            "kept": list(debts.values()),
        },
    )
    notes = {}
    for reason, count, total, *_ in rows:
        first = tuple(_member(row[3], row[4], row[5]) for row in rows if row[0] == reason)
        notes[reason] = MemberNote(reason, WHAT_HAPPENS[reason], count, total, first)
    return tuple(notes.values())


WHAT_HAPPENS = {
    "suspended": "The member is suspended; the payout leaves all the same, for the money is theirs.",
    "day_limit": "Over M-Pesa's limit of the day for one member: this part leaves on the following days.",
    "below_minimum": "Less than M-Pesa carries: it goes to the wallet.",
    "set_off": "The member owes from an earlier settlement: this part stays for the debt.",
}


# --- in words --------------------------------------------------------------------------------------------------------


def _equation(market: Market, rule: str, weights: Mapping[str, Decimal], divided: settlement_division.Division) -> str:
    pool, fee, net = (f"{_shillings(part):,.2f}" for part in (divided.pool, divided.fee, divided.net))
    late = ""
    if divided.late_count:
        late = f" Stakes of {_shillings(divided.late_refund):,.2f} came after the event's end and go back first."
    if rule == "VOID":
        return f"Void: every stake goes back whole, {pool} in all, without a fee.{late}"
    if divided.refund:
        return f"Nobody backed {' or '.join(weights)}: every stake goes back whole, {pool} in all, without a fee.{late}"
    shares = "; ".join(
        f"{_shillings(fund['fund']):,.2f} ÷ stakes of {_shillings(fund['stakes']):,.2f} on {outcome}"
        f" = {Decimal(fund['fund']) / fund['stakes']:.6f} for each shilling"
        for outcome, fund in divided.funds.items()
    )
    return f"Pool {pool} − platform fee {fee} ({market.platform_fee_pct} %) = {net}; {shares}.{late}"


def _shillings(cents: int) -> Decimal:
    return Decimal(cents) / 100


def _rows(sql: str, numbers: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.fetchall()
