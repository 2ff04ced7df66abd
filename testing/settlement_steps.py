"""Steps of settlement tests: markets with bets, decisions on markets, and the resulting payments."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from markets import parimutuel
from markets.models import Bet, Market
from payments.models import Settlement, Transaction
from payments.payouts import eligibility
from payments.payouts.sending import canary
from payments.settlement import approvals, preview, resolutions
from payments.settlement.decision import Decision
from testing import builders
from testing.builders import AT, Amount, actor, bet, member, orm_bet, policy, resolve, settle
from users import proposals
from users.models import CustomUser, Proposal

OUTCOMES = ("A", "B", "C")
Staked = tuple[CustomUser, str, Amount]
# A policy under which a pool above 200 needs a second person.
TWO_PERSON_POLICY = policy(approval_above=Decimal(200))
TWO_PERSON_ACTS = approvals.procedures(TWO_PERSON_POLICY)
NOBODY = actor()


def steps(number: int) -> Callable[[], bool]:
    """Return a `keep_going` that allows `number` more steps."""
    left = iter([True] * number)
    return lambda: next(left, False)


def opened(bets: Sequence[Staked], *, fee_pct: Amount = "5.00", outcomes: Sequence[str] = OUTCOMES) -> Market:
    """Open a market with these bets."""
    market = builders.market(outcomes, fee_pct)
    for user, outcome, amount in bets:
        orm_bet(market, user, outcome, amount)
    return market


def dividends(of: Market) -> list[Decimal]:
    """Return the dividends of a market's bets, in the order of placing."""
    return list(Bet.objects.filter(market=of).order_by("pk").values_list("payout", flat=True))


def due(of: Market, user: CustomUser | None = None) -> list[tuple[str, int, str, Decimal]]:
    """Return destination, tranche, status and amount of a market's transactions, of all members or of one."""
    rows = Transaction.objects.filter(settlement__market=of).order_by("user", "destination", "tranche")
    if user is not None:
        rows = rows.filter(user=user)
    return list(rows.values_list("destination", "tranche", "status", "amount"))


def by_the_rule(
    of: Market, rule: Any, weights: Mapping[str, Decimal], protect_stake: bool
) -> tuple[int, list[Decimal]]:
    """Divide a market's bets by divide_pool. Return the fee in cents and the dividends in shillings."""
    stakes = [
        parimutuel.Stake(pk, outcome, int(amount * 100))
        for pk, outcome, amount in Bet.objects.filter(market=of).values_list("pk", "outcome", "amount")
    ]
    divided, cents = parimutuel.divide_pool(
        stakes,
        rule=rule,
        outcomes=of.outcome_names,
        weights=weights,
        fee_pct=of.platform_fee_pct,
        protect_stake=protect_stake,
    )
    return divided.fee, [Decimal(cents[pk]) / 100 for pk in sorted(cents)]


def seven_bets(users: Sequence[CustomUser]) -> list[Staked]:
    """Return seven bets of three members. The division of their amounts leaves cents over."""
    first, second, third = users
    return [
        (first, "A", "0.01"),
        (second, "A", "1000000.07"),
        (third, "B", "33.33"),
        (first, "B", "66.67"),
        (third, "A", "0.01"),
        (second, "C", "5000.01"),
        (first, "A", "250.50"),
    ]


def settled_at_once(users: Sequence[CustomUser]) -> tuple[list[Decimal], list[Any], Decimal]:
    """Settle the seven bets in one transaction; return dividends, transactions and fee."""
    market = opened(seven_bets(users))
    resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})
    settle(market)
    return dividends(market), due(market), Settlement.objects.get(market=market).fee


def due_tomorrow(of: Market) -> list[int]:
    """Return the ids of a market's payouts that may leave tomorrow."""
    tomorrow = AT + timedelta(days=1)
    payouts = list(Transaction.objects.filter(settlement__market=of).values_list("pk", flat=True))
    in_canary = canary.in_canary(at=tomorrow, policy=policy())
    return sorted(eligibility.may_leave(payouts, in_canary=in_canary, at=tomorrow))


def staked(*, pool: int = 300, **fields: Any) -> Market:
    """Open a market with 100 on Yes and the rest of the pool on No."""
    market = builders.market(**fields)
    orm_bet(market, member(), "Yes", 100)
    orm_bet(market, member(), "No", pool - 100)
    return market


def hash_now(market: Market, outcome: str = "Yes") -> str:
    """Return the preview hash of a winner, from the market's bets now."""
    weights = {outcome: Decimal(100)}
    return preview.figures(market, Decision("WINNER", weights), at=AT, policy=TWO_PERSON_POLICY).preview_hash


def anything(permission: str) -> bool:
    """Hold every permission. The edges' tests are about rights."""
    return True


def approve(proposed: proposals.Proposed, by: CustomUser, preview_hash: str | None = None) -> Any:
    """Approve a proposal with its own hash, or with `preview_hash`."""
    wanted = preview_hash or proposed.preview_hash
    return proposals.approve(
        proposal_id=proposed.proposal_id,
        preview_hash=wanted,
        holds=anything,
        by=actor(by),
        at=AT,
        acts=TWO_PERSON_ACTS,
    )


def reject(proposed: proposals.Proposed, by: CustomUser) -> Proposal:
    """Reject a proposal."""
    return proposals.reject(
        proposal_id=proposed.proposal_id, reason="Not so.", holds=anything, by=actor(by), at=AT, acts=TWO_PERSON_ACTS
    )


def bet_again(on: Market) -> None:
    """Open a market again while a proposal waits, and place a bet on the market."""
    Market.objects.filter(pk=on.pk).update(status="OPEN")
    orm_bet(on, member(), "No", 1)


def scratch(market: Market, outcome: str = "C", at: Any = AT) -> resolutions.Resolved:
    """Scratch an outcome."""
    scratched = resolutions.scratch(
        market_id=market.pk, outcome=outcome, reason="Did not start.", by=NOBODY, at=at, policy=policy()
    )
    assert isinstance(scratched, resolutions.Resolved)
    return scratched


def race(outcomes: Sequence[str] = ("A", "B", "C")) -> tuple[Market, list[CustomUser]]:
    """Open a market with these outcomes and five bets: 100 on A, 50 and 30 on B, 20 and 7 on C."""
    market, users = builders.market(outcomes, fee_pct=0), [member(1000) for _ in range(5)]
    for user, outcome, amount in zip(users, "ABBCC", (100, 50, 30, 20, 7), strict=True):
        bet(market, user, outcome, amount)
    return market, users
