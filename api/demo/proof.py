"""The demo's proof from three sides: the rule in memory, our books, and the provider's own book."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum

from api.demo.screen import money
from markets import parimutuel
from markets.models import Bet
from payments.ledger import invariants, journal, trial_balance
from payments.models import Attempt, Settlement, Transaction, Transfer


@dataclass(frozen=True)
class Winner:
    """One member's winnings in one market, in shillings. `exact` is stake × net ÷ winning pool before rounding."""

    name: str
    stake: Decimal
    exact: Decimal
    dividend: Decimal
    to_phone: Decimal
    to_wallet: Decimal


@dataclass(frozen=True)
class Comparison:
    """Comparison of the provider's book with ours: rows of figures, and the differences in words."""

    rows: tuple[tuple[str, str, str], ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """A settled market's pool, and the sums of its payouts, fee and refunds, in shillings."""

    market_id: int
    pool: Decimal
    payouts: Decimal
    fee: Decimal
    refunds: Decimal

    @property
    def differences(self) -> list[str]:
        """Return the difference between the pool and its parts in words, or nothing."""
        if self.pool == self.payouts + self.fee + self.refunds:
            return []
        parts = f"{money(self.payouts)} + {money(self.fee)} + {money(self.refunds)}"
        return [f"market {self.market_id}: {money(self.pool)} ≠ {parts}"]


def winners(settlement: Settlement) -> list[Winner]:
    """Return the winners of a settlement, in the order of their first bets."""
    bets: dict[int, list[Bet]] = {}
    for bet in settlement.market.bets.filter(result="WON").select_related("user").order_by("pk"):
        bets.setdefault(bet.user_id, []).append(bet)
    paid = _paid_by_destination(settlement)
    winners = []
    for user_id, won in bets.items():
        stake = sum((bet.amount for bet in won), journal.ZERO)
        winners.append(
            Winner(
                name=won[0].user.full_name,
                stake=stake,
                exact=stake * (settlement.net or journal.ZERO) / (settlement.winning_pool or Decimal(1)),
                dividend=sum((bet.payout for bet in won), journal.ZERO),
                to_phone=paid.get((user_id, "mpesa"), journal.ZERO),
                to_wallet=paid.get((user_id, "wallet"), journal.ZERO),
            )
        )
    return winners


def division(settlement: Settlement) -> Division:
    """Add up the payouts and the refunds of a settlement."""
    sums = dict.fromkeys(("PAYOUT", "REFUND"), journal.ZERO)
    for kind, amount in Transaction.objects.filter(settlement=settlement).values_list("type", "amount"):
        sums[kind] += amount
    return Division(
        market_id=settlement.market_id,
        pool=settlement.pool or journal.ZERO,
        payouts=sums["PAYOUT"],
        fee=settlement.fee or journal.ZERO,
        refunds=sums["REFUND"],
    )


def pool_differences(settlement: Settlement) -> list[str]:
    """Compare a settled market's dividends, fee and payments with the pure rule, and return the differences."""
    market = settlement.market
    bets = list(market.bets.select_related("user").order_by("pk"))
    divided, dividends = parimutuel.divide_pool(
        [parimutuel.Stake(bet.pk, bet.outcome, int(bet.amount * 100)) for bet in bets],
        rule=settlement.rule,  # type: ignore[arg-type]
        outcomes=market.outcome_names,
        weights={outcome: Decimal(weight) for outcome, weight in settlement.weights.items()},
        fee_pct=settlement.fee_pct,
        protect_stake=settings.PAYOUT_PROTECT_STAKE,
    )
    differences = [
        f"bet {bet.pk} of market {market.pk} got {bet.payout}, the rule says {_shillings(dividends[bet.pk])}"
        for bet in bets
        if int(bet.payout * 100) != dividends[bet.pk]
    ]
    if int((settlement.fee or 0) * 100) != divided.fee:
        differences.append(
            f"market {market.pk} took a fee of {settlement.fee}, the rule says {_shillings(divided.fee)}"
        )
    completed = _paid_by_destination(settlement)
    for user in {bet.user for bet in bets}:
        due = _shillings(sum(dividends[bet.pk] for bet in bets if bet.user_id == user.pk))
        paid = sum((completed.get((user.pk, where), journal.ZERO) for where in ("mpesa", "wallet")), journal.ZERO)
        if paid != due:
            differences.append(f"{user} is due {due} from market {market.pk} and has been paid {paid}")
    return differences


def compare(book: Mapping[str, Any], market_ids: Collection[int]) -> Comparison:
    """Compare the provider's book with ours, receipt by receipt.

    `book` is the simulator's answer at /sandbox/book. Each payment in it must be in our books. Each completed payment
    of these markets must be in the simulator's book. Other markets may have been paid through another book.
    """
    provider_payments = {
        payment["ocid"]: (Decimal(payment["amount"]), payment["receipt"], payment["phone"])
        for payment in book["payments"]
        if payment["state"] == "paid"
    }
    attempts = Attempt.objects.filter(state=Attempt.State.PAID, kind=Attempt.Kind.B2C, transaction__status="COMPLETED")
    columns = ("originator_conversation_id", "amount", "receipt", "phone_number")
    of_markets = attempts.filter(transaction__settlement__market__in=market_ids)
    ours = {ocid: rest for ocid, *rest in of_markets.values_list(*columns)}
    known_to_provider = attempts.filter(**{f"{columns[0]}__in": provider_payments})
    ours |= {ocid: rest for ocid, *rest in known_to_provider.values_list(*columns)}
    differences = [
        f"{ocid}: our book has {_describe(ours.get(ocid))}, the provider's {_describe(provider_payments.get(ocid))}"
        for ocid in sorted(ours.keys() | provider_payments.keys())
        if tuple(ours.get(ocid, ())) != provider_payments.get(ocid, ())
    ]
    differences += [
        f"the provider paid {payment['reference']} {len(payment['receipts'])} times" for payment in book["double_paid"]
    ]
    totals = book["totals"]
    paid_by_us = sum((Decimal(amount) for amount, *_ in ours.values()), journal.ZERO)
    rows = (
        ("Payments", f"{len(ours):,}", f"{totals['paid_count']:,}"),
        ("Paid out", money(paid_by_us), money(totals["paid_total"])),
        ("Charges", money(_charges(list(ours))), money(totals["charges"])),
    )
    return Comparison(rows=rows, differences=tuple(differences))


def ledger_differences() -> list[str]:
    """Check the invariants and the trial balance in one snapshot, and return the differences in words."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        differences = [str(difference) for difference in invariants.differences()]
        lines = trial_balance.trial_balance()
    debits = sum((line.debits for line in lines), journal.ZERO)
    credits_ = sum((line.credits for line in lines), journal.ZERO)
    return differences + ([f"the debits are {debits}, the credits {credits_}"] if debits != credits_ else [])


def settlement_of(market_id: int) -> Settlement:
    """Return the settlement that decides a market."""
    return Settlement.objects.select_related("market").get(market=market_id, state=Settlement.State.SETTLED)


def _paid_by_destination(settlement: Settlement) -> dict[tuple[int, str], Decimal]:
    rows = Transaction.objects.filter(settlement=settlement, status="COMPLETED").values_list("user_id", "destination")
    return {(user_id, where): total for user_id, where, total in rows.annotate(total=Sum("amount")).order_by()}


def _charges(ocids: list[str]) -> Decimal:
    ids = Attempt.objects.filter(originator_conversation_id__in=ocids).values_list("pk", flat=True)
    charges = Transfer.objects.filter(key__in=[f"charge:{attempt_id}" for attempt_id in ids])
    return charges.aggregate(total=Sum("amount"))["total"] or journal.ZERO


def _shillings(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)


def _describe(payment: Any) -> str:
    return "nothing" if payment is None else f"{payment[0]} to {payment[2]}, receipt {payment[1] or 'none'}"
