"""Explanations of a bet: its figures, its sentence, its payments and its proof."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db.models import Q, Sum

from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import Settlement, Transaction, Transfer
from payments.settlement import status
from payments.settlement.certificates import issuing, sms_text
from payments.settlement.decision import VOID_REASONS

Status = Transaction.Status


@dataclass(frozen=True)
class Figures:
    """Arithmetic of a winning bet, in shillings. `exact` is the dividend floored to six decimals, not cents."""

    pool: Decimal
    winning_pool: Decimal
    fee_pct: Decimal
    fee: Decimal
    net: Decimal
    stakes_on_outcome: Decimal
    fund_of_outcome: Decimal
    share_of_winning_pool_pct: Decimal
    exact: Decimal
    floored: Decimal
    left_over_cent: Decimal
    cents_rule: str
    dividend: Decimal
    tax: Decimal
    set_off: Decimal
    equation: str


@dataclass(frozen=True)
class Payment:
    """One payment to the member. `provisional` is true while it is held, because it may still be corrected."""

    transaction: Transaction
    provisional: bool
    words: str


@dataclass(frozen=True)
class Explanation:
    """An explanation of one bet.

    `payments` are those of all the member's bets on the market, and `together` sums up these bets, in shillings.
    """

    bet: Bet
    words: str
    sentence: str
    figures: Figures | None
    payments: tuple[Payment, ...]
    together: Decimal
    proof: issuing.Proof | None


def explain(bet: Bet, *, at: datetime, with_proof: bool = True) -> Explanation:
    """Explain the result of a bet at the time `at`.

    If `with_proof` is true, the explanation has the proof, for which a block of bets is read.
    """
    if bet.taken_back_at is not None:
        return _taken_back(bet)
    settlement = status.settlement_of(bet)
    if settlement is None or bet.result == Bet.Result.PENDING:
        return _pending(bet, bet.market)
    payments = tuple(payment(part, at=at, settlement=settlement) for part in _transactions(bet, settlement))
    figures = None
    if bet.result == Bet.Result.WON:
        figures = _figures(bet, settlement)
        words, sentence = _won(bet, settlement, figures, payments)
    elif bet.result == Bet.Result.LOST:
        words, sentence = _lost(bet, settlement)
    else:
        words, sentence = _refunded(bet, settlement)
    total = Bet.objects.filter(market=bet.market, user=bet.user_id, taken_back_at=None).aggregate(total=Sum("payout"))[
        "total"
    ]
    return Explanation(
        bet=bet,
        words=words,
        sentence=sentence,
        figures=figures,
        payments=payments,
        together=total,
        proof=issuing.proof(bet) if with_proof else None,
    )


def _won(bet: Bet, settlement: Settlement, figures: Figures, payments: tuple[Payment, ...]) -> tuple[str, str]:
    """Return the long and the short explanation of a winning bet."""
    sentence = sms_text.won(
        outcome=bet.outcome,
        stake=bet.amount,
        question=bet.market.question,
        fund=figures.fund_of_outcome,
        stakes=figures.stakes_on_outcome,
        dividend=bet.payout,
        pool=settlement.pool or journal.ZERO,
        fee=figures.fee,
        tax=figures.tax,
        paid=payments[0].words if payments else "",
    )
    return f"Your stake won its share of the stakes on {bet.outcome}. {figures.cents_rule}", sentence


def _lost(bet: Bet, settlement: Settlement) -> tuple[str, str]:
    winners = [name for name in bet.market.outcome_names if name in settlement.funds]
    sentence = sms_text.lost(
        outcome=bet.outcome,
        stake=bet.amount,
        question=bet.market.question,
        winners=winners,
        pool=settlement.pool or journal.ZERO,
    )
    words = f"{' and '.join(winners)} won. A stake on another outcome goes to the winners, less the platform fee."
    return words, sentence


def _refunded(bet: Bet, settlement: Settlement) -> tuple[str, str]:
    why = _why_refunded(bet, settlement)
    sentence = sms_text.refunded(outcome=bet.outcome, stake=bet.amount, question=bet.market.question, why=why)
    return f"Your stake went back to your wallet whole, without any fee: {why}.", sentence


def payment(part: Transaction, *, at: datetime, settlement: Settlement | None) -> Payment:
    """Describe how one transaction of a settlement left or will leave."""
    waits = part.destination == Transaction.Destination.MPESA and part.status == Status.PENDING
    held = settlement is not None and settlement.release_at is not None and settlement.release_at > at
    return Payment(transaction=part, provisional=waits and held, words=_how(part, provisional=waits and held))


def _how(part: Transaction, *, provisional: bool) -> str:
    """Say in words how a payment left or will leave."""
    if part.destination == Transaction.Destination.WALLET:
        return f"KES {part.amount:.2f} to your wallet."
    if part.status == Status.COMPLETED:
        return f"M-Pesa {part.receipt}: KES {part.amount:.2f}." if part.receipt else part.reason or "Paid by M-Pesa."
    if provisional:
        return "Provisional until it is released to M-Pesa."
    if part.status == Status.CANCELLED:
        return "The payment was cancelled."
    if part.status == Status.FAILED:
        return "M-Pesa refused it. We are looking into it."
    if part.status == Status.HELD:
        return "Our staff are checking it. The money is still owed to you."
    return "It waits to be sent to M-Pesa." if part.status == Status.PENDING else "On its way to M-Pesa."


def _pending(bet: Bet, market: Market) -> Explanation:
    state = {
        Market.Status.OPEN: "open",
        Market.Status.CLOSED: "closed and waits for its result",
    }.get(Market.Status(market.status), "being settled")
    sentence = sms_text.pending(outcome=bet.outcome, stake=bet.amount, state=state, question=market.question)
    return Explanation(
        bet=bet,
        words=f"The market is {state}: this bet has no result yet.",
        sentence=sentence,
        figures=None,
        payments=(),
        together=journal.ZERO,
        proof=None,
    )


def _taken_back(bet: Bet) -> Explanation:
    why = "you took it back after the terms changed"
    return Explanation(
        bet=bet,
        words=f"Your stake went back to your wallet whole, without any fee: {why}.",
        sentence=sms_text.refunded(outcome=bet.outcome, stake=bet.amount, question=bet.market.question, why=why),
        figures=None,
        payments=(),
        together=journal.ZERO,
        proof=None,
    )


def _why_refunded(bet: Bet, settlement: Settlement) -> str:
    """Return the reason for a refund, worded as the last clause of a sentence."""
    if settlement.rule == Settlement.Rule.SCRATCH:
        return "its outcome was scratched"
    if settlement.rule == Settlement.Rule.VOID:
        return VOID_REASONS[settlement.reason]
    late = settlement.effective_close_at is not None and bet.placed_at > settlement.effective_close_at
    return "it was placed after the event ended" if late else "nobody backed the winner"


def _transactions(bet: Bet, settlement: Settlement) -> list[Transaction]:
    """Return the payments of a bet's member, the M-Pesa parts first."""
    refunded = bet.result == Bet.Result.REFUNDED
    kind = Transaction.Type.REFUND if refunded else Transaction.Type.PAYOUT
    payments = Transaction.objects.filter(settlement=settlement, user=bet.user_id, type=kind)
    return list(payments.order_by("destination", "tranche"))


def _figures(bet: Bet, settlement: Settlement) -> Figures:
    fund_of = settlement.funds[bet.outcome]
    stake, stakes, fund = int(bet.amount * 100), fund_of["stakes"], fund_of["fund"]
    floored, remainder = divmod(stake * fund, stakes)
    winning_pool = settlement.winning_pool or journal.ZERO
    # A set-off from a wallet part pays an earlier debt. A set-off from an M-Pesa part settles a double payment.
    taken = Transfer.objects.filter(
        Q(code="tax") | Q(code="setoff", transaction__destination=Transaction.Destination.WALLET),
        transaction__settlement=settlement,
        transaction__user=bet.user_id,
    )
    sums = dict(taken.values_list("code").annotate(total=Sum("amount")).order_by())
    in_shillings = Decimal(fund).scaleb(-2), Decimal(stakes).scaleb(-2)
    return Figures(
        pool=settlement.pool or journal.ZERO,
        winning_pool=winning_pool,
        fee_pct=settlement.fee_pct,
        fee=settlement.fee or journal.ZERO,
        net=Decimal(sum(row["fund"] for row in settlement.funds.values())).scaleb(-2),
        stakes_on_outcome=in_shillings[1],
        fund_of_outcome=in_shillings[0],
        share_of_winning_pool_pct=Decimal(stake * 10**6 // int(winning_pool * 100)).scaleb(-4),
        exact=Decimal(stake * fund * 10**4 // stakes).scaleb(-6),
        floored=Decimal(floored).scaleb(-2),
        left_over_cent=bet.payout - Decimal(floored).scaleb(-2),
        cents_rule=_cents_rule(remainder, fund_of, got_one=int(bet.payout * 100) > floored),
        dividend=bet.payout,
        tax=sums.get("tax", journal.ZERO),
        set_off=sums.get("setoff", journal.ZERO),
        equation=f"{bet.amount:.2f} × {in_shillings[0]:.2f} ÷ {in_shillings[1]:.2f} = {bet.payout:.2f}",
    )


def _cents_rule(remainder: int, fund_of: dict[str, int], *, got_one: bool) -> str:
    """Explain the rounding of one dividend."""
    if fund_of["cutoff_bet"] == 0:
        return "The shares are exact to the cent: no cent was left over."
    cent = "is one of them, so it got one cent more" if got_one else "is not one of them, so it got no further cent"
    return (
        "Each share is rounded down to the cent. The cents left over go one by one to the largest remainders. If two"
        f" are equal, the earlier bet comes first. This bet's remainder, {remainder} of {fund_of['stakes']}, {cent}."
    )
