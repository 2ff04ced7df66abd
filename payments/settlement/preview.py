"""Previews: the payments that a decision would make, computed before anyone takes it.

A preview uses the same figures and SQL as the settlement. `figures` hashes everything that decides money. A resolve
with that hash is refused if a figure has changed. `preview` adds the largest payments, the charges, the float, and
members who are not paid as usual. This module writes and locks nothing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from markets import parimutuel, queries
from markets.models import Bet, Market
from payments.ledger import journal, receivables
from payments.payouts import day_limit, float_balance
from payments.policy import Policy
from payments.settlement import allocation
from payments.settlement import division as settlement_division
from payments.settlement.decision import Decision
from users import figures as dated_figures
from users import phone

LARGEST = 10
EXAMPLES = 20
# For at most this many bets, divide_pool computes the figures a second time in memory.
BETS_CHECKED_IN_MEMORY = 2_000


class FiguresDisagree(Exception):
    """SQL and the rule in memory give different dividends. Settle nothing before an engineer has checked them."""


@dataclass(frozen=True)
class Figures:
    """A division, the sums of its winners in shillings, and the hash of everything that decides money."""

    division: settlement_division.Division
    members: Mapping[str, Any]
    preview_hash: str


@dataclass(frozen=True)
class MemberNote:
    """Members who for one reason are not paid as usual. `members` has those with the largest amounts."""

    reason: str
    what: str
    count: int
    amount: Decimal
    members: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Preview:
    """The effects of one decision, in shillings. `float_at` is the time of the latest float reading, if any."""

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


@dataclass(frozen=True)
class _Division:
    """A division with the values that every query about its winners needs."""

    market: Market
    closes_at: datetime | None
    divided: settlement_division.Division

    @property
    def fee_pct(self) -> Decimal:
        return queries.fee_pct_at(self.market, self.closes_at)

    def parameters(self) -> dict[str, Any]:
        funds = self.divided.funds
        return {
            "market": self.market.pk,
            "closed_at": self.closes_at,
            **settlement_division.fund_rows(funds, list(funds)),
        }


def figures(market: Market, decision: Decision, *, at: datetime, policy: Policy) -> Figures:
    """Compute the figures of a decision taken at `at`, and their hash.

    Raises: FiguresDisagree.
    """
    closes_at = decision.closes_at(market)
    fee_pct = queries.fee_pct_at(market, closes_at)
    divided = settlement_division.divide(
        market,
        settlement_division.staked(market),
        rule=decision.rule,
        weights=decision.weights,
        fee_pct=fee_pct,
        protect_stake=policy.protect_stake,
        effective_close_at=closes_at,
    )
    division = _Division(market, closes_at, divided)
    members = _members(division, at, policy)
    _check_in_memory(division, decision, members, policy)
    decides: dict[str, Any] = {
        "market": market.pk,
        "terms_version": market.terms_version,
        "rule": decision.rule,
        "weights": decision.weights_as_text(),
        "effective_close_at": closes_at and closes_at.isoformat(),
    }
    money: dict[str, Any] = {  # A void returns each stake alone. So members who take stakes back cannot delay it.
        "fee_pct": str(fee_pct),
        "bets": [divided.bet_count, divided.last_bet_id, divided.late_count, divided.late_refund],
        "pool": [divided.pool, divided.winning_pool, divided.fee, divided.net, divided.refund],
        "stakes": dict(divided.stakes),
        "funds": {outcome: {key: str(value) for key, value in fund.items()} for outcome, fund in divided.funds.items()},
        "members": {key: str(members[key]) for key in ("winners", "amount", "by_mpesa", "to_wallet", "kept")},
        "payments": policy.destination,
    }
    decides |= {} if decision.rule == "VOID" else money
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Figures(divided, members, hashlib.sha256(canonical.encode()).hexdigest())


def preview(market: Market, decision: Decision, *, at: datetime, policy: Policy) -> Preview:
    """Compute the effects of taking a decision at `at`.

    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; FiguresDisagree.
    """
    decision.check_weights(market)
    computed = figures(market, decision, at=at, policy=policy)
    divided, members, charges = computed.division, computed.members, computed.members["charges"]
    division = _Division(market, decision.closes_at(market), divided)
    reading = float_balance.latest()
    return Preview(
        market_id=market.pk,
        rule=decision.rule,
        weights=decision.weights,
        figures=computed,
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
        notes=_notes(division, members, at, policy),
        equation=settlement_division.equation(
            divided, rule=decision.rule, backed=" or ".join(decision.weights), fee_pct=division.fee_pct
        ),
    )


def choices(market: Market) -> list[Decision]:
    """Return the simple decisions about a market: each running outcome as the winner, and void."""
    winners = [Decision("WINNER", {outcome: Decimal(100)}) for outcome in market.running_outcomes]
    return [*winners, Decision("VOID", {})]


# --- members ---------------------------------------------------------------------------------------------------------

_NO_WINNERS: dict[str, Any] = {
    "winners": 0, "amount": journal.ZERO, "by_mpesa": journal.ZERO, "to_wallet": journal.ZERO, "kept": journal.ZERO,
    "payments": 0, "charges": journal.ZERO, "largest": [], "kept_by_member": {},
}  # fmt: skip


def _won(divided: settlement_division.Division, only: str = "") -> str:
    """Build the query for the sum of each winner's dividends."""
    in_time = "AND b.placed_at <= %(closed_at)s" if divided.late_count else ""
    return f"""
        SELECT b.user_id, sum({settlement_division.DIVIDEND}) AS amount
        FROM markets_bet b JOIN {settlement_division.FUNDS} ON b.outcome = f.outcome
        WHERE b.market_id = %(market)s AND b.taken_back_at IS NULL {in_time} {only}
        GROUP BY b.user_id HAVING sum({settlement_division.DIVIDEND}) > 0"""  # noqa: S608 - fixed text


def _set_offs(division: _Division) -> list[receivables.SetOff]:
    """Return the parts of dividends that stay with us to set off member debts."""
    if division.divided.refund or not receivables.any_to_set_off():
        return []
    owing = "AND b.user_id IN (SELECT user_id FROM payments_recovery WHERE decision = 'SET_OFF')"
    dividends = dict(_rows(_won(division.divided, owing), division.parameters()))
    return receivables.to_set_off(dividends, locked=False)


def _members(division: _Division, at: datetime, policy: Policy) -> dict[str, Any]:
    """Sum up the payments of the winners, in one pass over the winning bets.

    Tariff bands are numbered from 0. A payment's band is the number of bands whose largest amount is below the payment.
    """
    if division.divided.refund:
        return _NO_WINNERS
    set_offs = _set_offs(division)
    prices = dated_figures.bands(at)
    rows = _member_rows(division, set_offs, [largest for largest, _ in prices], policy)
    ((_, winners, amount, by_mpesa, set_off, *_),) = [row for row in rows if row[0] == "sum"]
    bands = {int(row[1]): int(row[2]) for row in rows if row[0] == "band"}
    top = [_member(row[1], row[5], row[2], by_mpesa=row[3]) for row in rows if row[0] == "largest"]
    return {
        "winners": int(winners),
        "amount": amount,
        "by_mpesa": by_mpesa,
        "to_wallet": amount - by_mpesa,
        "kept": set_off,
        "payments": sum(bands.values()),
        "charges": _charges(bands, prices),
        "largest": sorted(top, key=lambda member: (-member["amount"], member["user_id"])),
        "kept_by_member": dict(zip(*receivables.by_member(set_offs).values(), strict=True)),
    }


def _member_rows(
    division: _Division, set_offs: list[receivables.SetOff], largest_of_bands: list[Decimal], policy: Policy
) -> list[tuple[Any, ...]]:
    """Read one row of sums, one row for each tariff band in use, and the LARGEST members."""
    largest = f"(SELECT * FROM split ORDER BY amount DESC, user_id LIMIT {LARGEST})"  # noqa: S608 - a constant
    return _rows(
        f"""
        WITH {allocation.due(_won(division.divided), debtors=bool(set_offs))}
        SELECT 'sum', count(*)::numeric, coalesce(sum(amount), 0), coalesce(sum(by_mpesa), 0), coalesce(sum(kept), 0),
            NULL, NULL FROM split
        UNION ALL
        SELECT 'band', width_bucket(amount - 1, %(prices)s::numeric[]), count(*), sum(amount), 0, NULL, NULL
        FROM due WHERE destination = 'mpesa' GROUP BY 2
        UNION ALL
        SELECT 'largest', c.user_id, c.amount, c.by_mpesa, c.kept, u.phone_number, u.full_name
        FROM {largest} c JOIN users_customuser u ON u.id = c.user_id
        """,  # noqa: S608 - fixed text
        division.parameters()
        | receivables.by_member(set_offs)
        | {
            "by_mpesa": policy.destination == "mpesa",
            "min": policy.min_amount,
            "max": policy.max_amount,
            "prices": largest_of_bands,
        },
    )


def _charges(bands: Mapping[int, int], prices: Sequence[tuple[Decimal, Decimal]]) -> Decimal:
    """Sum up M-Pesa's charges for the payments. `bands` has the number of payments by tariff band."""
    charged = (prices[band][1] * count for band, count in bands.items() if band < len(prices))
    return sum(charged, journal.ZERO)


def _member(user_id: Any, number: str, amount: Decimal, **more: Any) -> dict[str, Any]:
    return {"user_id": int(user_id), "phone": phone.masked(number), "amount": amount, **more}


def _check_in_memory(division: _Division, decision: Decision, members: Mapping[str, Any], policy: Policy) -> None:
    """Compute a small market's division a second time, by the rule in memory, and compare both results.

    Raises: FiguresDisagree.
    """
    market, divided = division.market, division.divided
    if divided.bet_count > BETS_CHECKED_IN_MEMORY:
        return
    bets = Bet.objects.filter(market=market, outcome__in=market.running_outcomes, taken_back_at=None)
    if divided.late_count:
        bets = bets.filter(placed_at__lte=division.closes_at)
    rows = list(bets.values_list("pk", "outcome", "amount", "user_id"))
    funds, dividends = parimutuel.divide_pool(
        [parimutuel.Stake(pk, outcome, settlement_division.cents(amount)) for pk, outcome, amount, _ in rows],
        rule=decision.rule,
        outcomes=market.running_outcomes,
        weights=decision.weights,
        fee_pct=division.fee_pct,
        protect_stake=policy.protect_stake,
    )
    won: Counter[int] = Counter()
    for pk, _, _, user_id in rows if not funds.refund else ():
        won[user_id] += dividends[pk]
    winners = sum(cents > 0 for cents in won.values())
    in_memory = (funds.pool, funds.fee, funds.net, winners, won.total())
    in_sql = (divided.pool, divided.fee, divided.net, members["winners"], settlement_division.cents(members["amount"]))
    top = {member["user_id"]: settlement_division.cents(member["amount"]) for member in members["largest"]}
    if in_sql != in_memory or any(won[user_id] != cents for user_id, cents in top.items()):
        raise FiguresDisagree(
            f"The two computations of market {market.pk} disagree: {in_sql} in SQL, {in_memory} by the rule."
            " Nothing was decided. An engineer must look."
        )


# --- members who are not paid as usual -------------------------------------------------------------------------------


def _notes(division: _Division, members: Mapping[str, Any], at: datetime, policy: Policy) -> tuple[MemberNote, ...]:
    """Find the members who are not paid as usual, for each reason in WHAT_HAPPENS."""
    if division.divided.refund:
        return ()
    debts = members["kept_by_member"]
    rows = _rows(
        f"""
        WITH {allocation.due(_won(division.divided), debtors=bool(debts))}, sent AS (
            SELECT user_id, amount FROM payments_daytotal WHERE day = %(today)s
        ), noted AS (
            SELECT 'suspended' AS reason, c.user_id, c.by_mpesa AS amount FROM split c
            JOIN users_customuser u ON u.id = c.user_id WHERE NOT u.is_active
            UNION ALL
            SELECT 'day_limit', c.user_id, c.by_mpesa + coalesce(sent.amount, 0) - %(day_limit)s
            FROM split c LEFT JOIN sent ON sent.user_id = c.user_id
            WHERE c.by_mpesa > 0 AND c.by_mpesa + coalesce(sent.amount, 0) > %(day_limit)s
            UNION ALL
            SELECT 'below_minimum', c.user_id, c.amount - c.kept FROM split c
            WHERE %(by_mpesa)s AND c.by_mpesa = 0 AND c.amount > c.kept
            UNION ALL
            SELECT 'set_off', c.user_id, c.kept FROM split c WHERE c.kept > 0
        ), placed AS (
            SELECT *, row_number() OVER (PARTITION BY reason ORDER BY amount DESC, user_id) AS place,
                count(*) OVER (PARTITION BY reason) AS members, sum(amount) OVER (PARTITION BY reason) AS total
            FROM noted
        )
        SELECT p.reason, p.members, p.total, p.user_id, u.phone_number, p.amount
        FROM placed p JOIN users_customuser u ON u.id = p.user_id
        WHERE p.place <= {EXAMPLES} ORDER BY p.reason, p.place
        """,  # noqa: S608 - fixed text
        division.parameters()
        | {
            "today": day_limit.day_of(at),
            "day_limit": policy.day_limit,
            "by_mpesa": policy.destination == "mpesa",
            "min": policy.min_amount,
            "max": policy.max_amount,
            "debtors": list(debts),
            "kept": list(debts.values()),
        },
    )
    notes = {}
    for reason, count, total, user_id, _, amount in rows:
        if reason in notes:
            continue
        first = tuple(_member(row[3], row[4], row[5]) for row in rows if row[0] == reason)
        words = WHAT_HAPPENS[reason]
        if reason == "day_limit":  # The first row is the member with the largest amount.
            words += f" The last part leaves on {_last_day(user_id, amount, at, policy):%d %b %Y} at the earliest."
        notes[reason] = MemberNote(reason, words, count, total, first)
    return tuple(notes.values())


def _last_day(user_id: int, over: Decimal, at: datetime, policy: Policy) -> date:
    """Return the day on which a member's last tranche leaves. `over` is what the limit of today holds back."""
    today = day_limit.day_of(at)
    sent = day_limit.sent_on(today, [user_id]).get(user_id, journal.ZERO)
    tranches, rest = divmod(over + policy.day_limit - sent, policy.max_amount)
    amounts = [Decimal(policy.max_amount)] * int(tranches) + ([rest] if rest else [])
    return max(day_limit.plan(amounts, sent_today=sent, at=at, limit=policy.day_limit), default=today)


WHAT_HAPPENS = {
    "suspended": "The member is suspended. The payout still leaves, because the money belongs to the member.",
    "day_limit": "Over M-Pesa's daily limit for one member. This part leaves on the following days.",
    "below_minimum": "Less than the smallest M-Pesa payment. It goes to the wallet.",
    "set_off": "The member owes from an earlier settlement. This part pays the debt.",
}


def _shillings(cents: int) -> Decimal:
    return Decimal(cents) / 100


def _rows(sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()
