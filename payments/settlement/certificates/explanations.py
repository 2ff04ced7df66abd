"""Why a bet came out as it did and how its money left: in figures, in words, and with the proof of the certificate."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Q, Sum

from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import Settlement, Transaction, Transfer
from payments.settlement import status
from payments.settlement.certificates import issuing, sms_text

Status = Transaction.Status

VOID_WORDS = {
    "cancelled": "the market was cancelled",
    "postponed": "the event was postponed",
    "ambiguous": "the result was ambiguous",
    "no_result": "there was no result",
    "error": "the market was made in error",
}


@dataclass(frozen=True)
class Figures:
    """The arithmetic of one bet, in shillings. `exact` is before rounding, floored to six decimals."""

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
    """A part of what the member got from the settlement. `provisional`: it has not left, it may still be corrected."""

    transaction: Transaction
    provisional: bool
    words: str


@dataclass(frozen=True)
class Explanation:
    """`payments` are for all the member's bets of the market together, which are worth `together` shillings."""

    bet: Bet
    words: str
    sentence: str
    figures: Figures | None
    payments: tuple[Payment, ...]
    together: Decimal
    proof: issuing.Proof | None


def explain(bet: Bet, *, at: datetime, proven: bool = True) -> Explanation:
    """Explain a bet as it stands at `at`; without `proven` the proof, which reads a block of bets, is left out."""
    market = bet.market
    run = status.settlement_of(bet)
    if run is None or bet.result == Bet.Result.PENDING:
        return _pending(bet, market)
    parts = tuple(payment(one, at=at, run=run) for one in _transactions(bet, run))
    figures, words = None, ""
    asked: dict[str, Any] = {"outcome": bet.outcome, "stake": bet.amount, "question": market.question}
    pool = run.pool or journal.ZERO
    if bet.result == Bet.Result.WON:
        figures = _figures(bet, run)
        sentence = sms_text.won(
            **asked,
            fund=figures.fund_of_outcome,
            stakes=figures.stakes_on_outcome,
            dividend=bet.payout,
            pool=pool,
            fee=figures.fee,
            tax=figures.tax,
            paid=parts[0].words if parts else "",
        )
        words = f"Your stake won its share of the stakes on {bet.outcome}. {figures.cents_rule}"
    elif bet.result == Bet.Result.LOST:
        winners = [name for name in market.outcome_names if name in run.funds]
        sentence = sms_text.lost(**asked, winners=winners, pool=pool)
        words = f"{' and '.join(winners)} won. A stake on another outcome goes to the winners, less the platform fee."
    else:
        why = _why_refunded(bet, run)
        sentence = sms_text.refunded(**asked, why=why)
        words = f"Your stake went back to your wallet whole, without any fee: {why}."
    return Explanation(
        bet=bet,
        words=words,
        sentence=sentence,
        figures=figures,
        payments=parts,
        together=Bet.objects.filter(market=market, user=bet.user_id).aggregate(total=Sum("payout"))["total"],
        proof=issuing.proof(bet) if proven else None,
    )


def payment(made: Transaction, *, at: datetime, run: Settlement | None) -> Payment:
    """How one transaction left or will leave. `run` is its settlement."""
    waits = made.destination == Transaction.Destination.MPESA and made.status == Status.PENDING
    held_back = run is not None and run.release_at is not None and run.release_at > at
    return Payment(transaction=made, provisional=waits and held_back, words=_how(made, provisional=waits and held_back))


def _how(made: Transaction, *, provisional: bool) -> str:
    if made.destination == Transaction.Destination.WALLET:
        return f"KES {made.amount:.2f} to your wallet."
    if made.status == Status.COMPLETED:
        return f"M-Pesa {made.receipt}: KES {made.amount:.2f}." if made.receipt else made.reason or "Paid by M-Pesa."
    if provisional:
        return "Provisional until it is released to M-Pesa."
    if made.status == Status.CANCELLED:
        return "The payment was cancelled."
    if made.status == Status.FAILED:
        return "M-Pesa refused it; we are looking into it."
    return "On its way to M-Pesa."


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


def _why_refunded(bet: Bet, run: Settlement) -> str:
    if run.rule == Settlement.Rule.SCRATCH:
        return "its outcome was scratched"
    if run.rule == Settlement.Rule.VOID:
        return VOID_WORDS[run.reason]
    late = run.effective_close_at is not None and bet.placed_at > run.effective_close_at
    return "it came after the event had ended" if late else "nobody had backed what won"


def _transactions(bet: Bet, run: Settlement) -> list[Transaction]:
    """M-Pesa's parts first, then the wallet's."""
    refunded = bet.result == Bet.Result.REFUNDED
    kind = Transaction.Type.REFUND if refunded else Transaction.Type.PAYOUT
    mine = Transaction.objects.filter(settlement=run, user=bet.user_id, type=kind)
    return list(mine.order_by("destination", "tranche"))


def _figures(bet: Bet, run: Settlement) -> Figures:
    of = run.funds[bet.outcome]
    stake, stakes, fund = int(bet.amount * 100), of["stakes"], of["fund"]
    floored, remainder = divmod(stake * fund, stakes)
    winning_pool = run.winning_pool or journal.ZERO
    # What is kept for an earlier debt leaves the wallet part; a set-off of an M-Pesa part settles a double payment.
    taken = Transfer.objects.filter(
        Q(code="tax") | Q(code="setoff", transaction__destination=Transaction.Destination.WALLET),
        transaction__settlement=run,
        transaction__user=bet.user_id,
    )
    sums = dict(taken.values_list("code").annotate(total=Sum("amount")).order_by())
    in_shillings = Decimal(fund).scaleb(-2), Decimal(stakes).scaleb(-2)
    return Figures(
        pool=run.pool or journal.ZERO,
        winning_pool=winning_pool,
        fee_pct=run.fee_pct,
        fee=run.fee or journal.ZERO,
        net=Decimal(sum(one["fund"] for one in run.funds.values())).scaleb(-2),
        stakes_on_outcome=in_shillings[1],
        fund_of_outcome=in_shillings[0],
        share_of_winning_pool_pct=Decimal(stake * 10**6 // int(winning_pool * 100)).scaleb(-4),
        exact=Decimal(stake * fund * 10**4 // stakes).scaleb(-6),
        floored=Decimal(floored).scaleb(-2),
        left_over_cent=bet.payout - Decimal(floored).scaleb(-2),
        cents_rule=_cents_rule(remainder, of, got_one=int(bet.payout * 100) > floored),
        dividend=bet.payout,
        tax=sums.get("tax", journal.ZERO),
        set_off=sums.get("setoff", journal.ZERO),
        equation=f"{bet.amount:.2f} × {in_shillings[0]:.2f} ÷ {in_shillings[1]:.2f} = {bet.payout:.2f}",
    )


def _cents_rule(remainder: int, of: dict[str, int], *, got_one: bool) -> str:
    if of["cutoff_bet"] == 0:
        return "The shares came out even to the cent: nothing was left over."
    fate = "so it got one more" if got_one else "so it got none of them"
    side = "among" if got_one else "not among"
    return (
        "Shares are floored to the cent, and the cents left over go one by one to the largest remainders, the earlier"
        f" bet first where two are equal: this bet's remainder, {remainder} of {of['stakes']}, is {side} them, {fate}."
    )
