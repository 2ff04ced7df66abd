"""What the demo proves at its end, from three sides: the rule in memory, our books, and the provider's own book."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum

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
    """The provider's book beside ours: payments, shillings paid, charges; and where they differ."""

    rows: tuple[tuple[str, str, str], ...]
    differences: tuple[str, ...]


def winners(settlement: Settlement) -> list[Winner]:
    """Who won what, by name of the winner's first bet."""
    bets: dict[int, list[Bet]] = {}
    for bet in settlement.market.bets.filter(result="WON").select_related("user").order_by("pk"):
        bets.setdefault(bet.user_id, []).append(bet)
    paid = _paid_by_destination(settlement)
    found = []
    for user_id, won in bets.items():
        stake = sum((bet.amount for bet in won), journal.ZERO)
        found.append(
            Winner(
                name=won[0].user.full_name,
                stake=stake,
                exact=stake * (settlement.net or journal.ZERO) / (settlement.winning_pool or Decimal(1)),
                dividend=sum((bet.payout for bet in won), journal.ZERO),
                to_phone=paid.get((user_id, "mpesa"), journal.ZERO),
                to_wallet=paid.get((user_id, "wallet"), journal.ZERO),
            )
        )
    return found


def pool_differences(settlement: Settlement) -> list[str]:
    """Where a settled market departs from the rule: another dividend, or another sum paid, than the pure rule says."""
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
    found = [
        f"bet {bet.pk} of market {market.pk} got {bet.payout}, the rule says {_shillings(dividends[bet.pk])}"
        for bet in bets
        if int(bet.payout * 100) != dividends[bet.pk]
    ]
    if int((settlement.fee or 0) * 100) != divided.fee:
        found.append(f"market {market.pk} took a fee of {settlement.fee}, the rule says {_shillings(divided.fee)}")
    completed = _paid_by_destination(settlement)
    for user in {bet.user for bet in bets}:
        due = _shillings(sum(dividends[bet.pk] for bet in bets if bet.user_id == user.pk))
        paid = sum((completed.get((user.pk, where), journal.ZERO) for where in ("mpesa", "wallet")), journal.ZERO)
        if paid != due:
            found.append(f"{user} is due {due} from market {market.pk} and has been paid {paid}")
    return found


def compare(book: Mapping[str, Any], market_ids: Collection[int]) -> Comparison:
    """Lay the provider's book beside ours: each of its payments must be ours, and each of these markets' payments its.

    `book` is what the simulator answers at /sandbox/book. Other markets may have been paid elsewhere, so of theirs only
    what the provider knows is compared.
    """
    theirs = {
        payment["ocid"]: (Decimal(payment["amount"]), payment["receipt"], payment["phone"])
        for payment in book["payments"]
        if payment["state"] == "paid"
    }
    attempts = Attempt.objects.filter(state=Attempt.State.PAID, kind=Attempt.Kind.B2C, transaction__status="COMPLETED")
    columns = ("originator_conversation_id", "amount", "receipt", "phone_number")
    of_markets = attempts.filter(transaction__settlement__market__in=market_ids)
    ours = {ocid: rest for ocid, *rest in of_markets.values_list(*columns)}
    ours |= {ocid: rest for ocid, *rest in attempts.filter(**{f"{columns[0]}__in": theirs}).values_list(*columns)}
    found = [
        f"{ocid}: ours {_words(ours.get(ocid))}, the provider's {_words(theirs.get(ocid))}"
        for ocid in sorted(ours.keys() | theirs.keys())
        if tuple(ours.get(ocid, ())) != theirs.get(ocid, ())
    ]
    found += [f"the provider paid {twice['reference']} {len(twice['receipts'])} times" for twice in book["double_paid"]]
    totals = book["totals"]
    rows = (
        ("Payments", f"{len(ours):,}", f"{totals['paid_count']:,}"),
        ("Paid out", _money(sum((Decimal(amount) for amount, *_ in ours.values()), journal.ZERO)),
         _money(Decimal(totals["paid_total"]))),
        ("Charges", _money(_charges(list(ours))), _money(Decimal(totals["charges"]))),
    )  # fmt: skip
    return Comparison(rows=rows, differences=tuple(found))


def ledger_differences() -> list[str]:
    """What does not close in our books, all of it seen at one moment."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found = [str(difference) for difference in invariants.differences()]
        lines = trial_balance.trial_balance()
    debits = sum((line.debits for line in lines), journal.ZERO)
    credits = sum((line.credits for line in lines), journal.ZERO)
    return found + ([f"the debits are {debits}, the credits {credits}"] if debits != credits else [])


def settlement_of(market_id: int) -> Settlement:
    """The settlement that stands."""
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


def _money(amount: Decimal) -> str:
    return f"KES {amount:,.2f}"


def _words(payment: Any) -> str:
    return "nothing" if payment is None else f"{payment[0]} to {payment[2]}, receipt {payment[1] or 'none'}"
