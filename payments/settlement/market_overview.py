"""Figures of the market pages: markets to resolve, pools, shares over time, latest bets, settlements so far."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Count, Exists, F, Max, OuterRef, Q, QuerySet, Sum, TextField, Value
from django.db.models.functions import Cast, Concat

from markets import pools as markets_pools
from markets.models import Bet, Market, Outcome
from payments.ledger import journal
from payments.models import Attempt, Recovery, Settlement
from users import proposals
from users.models import CustomUser, Proposal

POINTS = 60


@dataclass(frozen=True)
class Pool:
    """The stakes on one outcome. `share` is in percent of the pool; `dividend` is per shilling, before the fee.

    A scratched outcome has no share and no dividend. Its `stakes` go back to the wallets; they are `returned` if the
    transfers are booked.
    """

    outcome: str
    stakes: Decimal
    bets: int
    share: Decimal
    dividend: Decimal | None
    scratched_at: datetime | None = None
    returned: bool = False


@dataclass(frozen=True)
class Curve:
    """Each outcome's share of the pool over time, in percent: `shares[outcome][n]` is the share at `moments[n]`."""

    moments: list[datetime]
    shares: dict[str, list[float]]


def pools(market: Market) -> list[Pool]:
    """Return the pool of each outcome, in the market's order. Shares and dividends leave out scratched outcomes."""
    sums = markets_pools.pools([market.pk]).get(market.pk, {})
    outcomes = list(market.outcomes.order_by("pk"))
    running = [outcome.name for outcome in outcomes if outcome.scratched_at is None]
    total = sum((sums[name][0] for name in running if name in sums), journal.ZERO)
    returned: set[str] = set()
    if len(running) < len(outcomes):
        scratches = market.settlements.filter(rule=Settlement.Rule.SCRATCH, state=Settlement.State.SETTLED)
        returned = set(scratches.values_list("scratched", flat=True))
    result = []
    for outcome in outcomes:
        stakes, bets = sums.get(outcome.name, (journal.ZERO, 0))
        if outcome.scratched_at is not None:
            is_returned = outcome.name in returned
            result.append(Pool(outcome.name, stakes, bets, Decimal(0), None, outcome.scratched_at, is_returned))
            continue
        share = round(100 * stakes / total, 1) if total else Decimal(0)
        result.append(Pool(outcome.name, stakes, bets, share, round(total / stakes, 2) if stakes else None))
    return result


def curve(market: Market) -> Curve:
    """Return each outcome's share over time, in at most POINTS steps between the first and the last bet.

    A scratched outcome has no curve, and its stakes are in no other outcome's share.
    """
    names = list(market.running_outcomes)
    sums = dict.fromkeys(names, journal.ZERO)
    moments: list[datetime] = []
    shares: dict[str, list[float]] = {name: [] for name in names}
    steps: dict[datetime, dict[str, Decimal]] = {}
    for moment, outcome, stakes in markets_pools.steps(market.pk, points=POINTS):
        if outcome in sums:
            steps.setdefault(moment, {})[outcome] = stakes
    for moment, stakes_of in steps.items():
        for outcome, stakes in stakes_of.items():
            sums[outcome] += stakes
        total = sum(sums.values(), journal.ZERO)
        moments.append(moment)
        for name in names:
            shares[name].append(float(round(100 * sums[name] / total, 1)))
    return Curve(moments, shares)


def latest_bets(market: Market, *, limit: int = 20) -> list[Bet]:
    """Return the latest bets on a market, newest first."""
    return list(market.bets.select_related("user").order_by("-pk")[:limit])


def to_resolve(*, at: datetime) -> QuerySet[Market]:
    """Return the markets that wait for a decision and have no proposal of a person to approve.

    A closed market takes no bets, so it waits for a decision even if its end has not come. A market is closed before
    its end by a decision that was undone or withdrawn later.
    """
    ended = Q(status=Market.Status.CLOSED) | Q(status=Market.Status.OPEN, end_date__lt=at)
    subject = Concat(Value("market:"), Cast(OuterRef("pk"), TextField()))
    waiting = Proposal.objects.filter(subject=subject, state=Proposal.State.OPEN, proposed_by__isnull=False)
    return Market.objects.filter(ended).exclude(Exists(waiting))


@dataclass(frozen=True)
class Listed:
    """A market in the list, with its pool. `to_resolve` is true if it waits for a decision.

    `undoing` is true while its settlement is being undone.
    """

    market: Market
    pool: Decimal
    bets: int
    to_resolve: bool
    to_approve: bool
    undoing: bool


def listed(markets: list[Market], *, at: datetime) -> list[Listed]:
    """Return these markets with their pools. A pool leaves out the stakes on scratched outcomes."""
    ids = [market.pk for market in markets]
    sums = markets_pools.pools(ids)
    scratched = set(Outcome.objects.filter(market__in=ids, scratched_at__isnull=False).values_list("market", "name"))
    waiting = set(to_resolve(at=at).filter(pk__in=ids).values_list("pk", flat=True))
    proposed = proposals.open_subjects("market")
    undone = Settlement.objects.filter(market__in=ids, state=Settlement.State.UNDOING)
    undoing = set(undone.values_list("market", flat=True))
    rows = []
    for market in markets:
        running = [pool for name, pool in sums.get(market.pk, {}).items() if (market.pk, name) not in scratched]
        rows.append(
            Listed(
                market,
                pool=sum((stakes for stakes, _ in running), journal.ZERO),
                bets=sum(bets for _, bets in running),
                to_resolve=market.pk in waiting,
                to_approve=market.pk in proposed,
                undoing=market.pk in undoing,
            )
        )
    return rows


@dataclass(frozen=True)
class PastSettlement:
    """A settlement of a market, with the people who decided and undid it.

    `undo_proposed_by` is the first person of an undo that took two people; `settlement.undone_by` is the second.
    `debts` is the number of members' debts from the undo that are not paid back yet, and `owed` their sum. `recovered`
    and `written_off` are the other parts of all these debts. `in_doubt` is the number of the settlement's payouts whose
    result at M-Pesa is not known. After an undo each of them counts as a debt.
    Units: shillings.
    """

    settlement: Settlement
    undo_proposed_by: CustomUser | None
    debts: int = 0
    owed: Decimal = journal.ZERO
    recovered: Decimal = journal.ZERO
    written_off: Decimal = journal.ZERO
    in_doubt: int = 0

    @property
    def is_taken_back(self) -> bool:
        State = Settlement.State
        return self.settlement.state in (State.UNDOING, State.UNDONE, State.WITHDRAWN)


def settlements(market: Market) -> list[PastSettlement]:
    """Return all settlements of a market, the newest first. A scratch is one of them."""
    people = ("resolved_by", "approved_by", "undone_by")
    rows = list(market.settlements.select_related(*people).order_by("-number"))
    proposers: dict[datetime | None, CustomUser | None] = {}
    debts: dict[int | None, Any] = {}
    in_doubt: dict[int | None, int] = {}
    if any(settlement.undone_at for settlement in rows):
        undos = Proposal.objects.filter(subject=f"market:{market.pk}", act="market.undo", state="APPROVED")
        proposers = {undo.decided_at: undo.proposed_by for undo in undos.select_related("proposed_by")}
        rows_of_debts = (
            Recovery.objects.filter(settlement__market=market)
            .values("settlement")
            .annotate(
                count=Count("pk", filter=Q(amount__gt=F("recovered") + F("written_off"))),
                left=Sum(F("amount") - F("recovered") - F("written_off")),
                repaid=Sum("recovered"),
                lost=Sum("written_off"),
            )
        )
        debts = {row["settlement"]: row for row in rows_of_debts.order_by()}
        doubtful = Attempt.objects.in_doubt().filter(settlement__market=market).values_list("settlement")
        in_doubt = dict(doubtful.annotate(count=Count("pk")).order_by())
    return [
        PastSettlement(
            settlement,
            undo_proposed_by=proposers.get(settlement.undone_at),
            debts=debt["count"] if debt else 0,
            owed=debt["left"] if debt else journal.ZERO,
            recovered=debt["repaid"] if debt else journal.ZERO,
            written_off=debt["lost"] if debt else journal.ZERO,
            in_doubt=in_doubt.get(settlement.pk, 0),
        )
        for settlement in rows
        for debt in [debts.get(settlement.pk)]
    ]


def member_totals(user_id: int) -> dict[str, object]:
    """Sum up the stakes and dividends of a member over all bets, in shillings. Leaves out stakes taken back."""
    return Bet.objects.filter(user_id=user_id, taken_back_at=None).aggregate(
        bets=Count("pk"), stakes=Sum("amount"), dividends=Sum("payout"), last=Max("placed_at")
    )
