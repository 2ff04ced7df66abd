"""Builders of test data: members, markets, bets and settlements, made by the project's services.

Amounts are shillings, given as text, whole numbers or Decimal.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import Barrier, Thread
from time import sleep
from typing import Any

from django.db import connection, connections
from django.db.models import Count, Sum

from markets import parimutuel, terms
from markets.models import Bet, Market
from payments.models import Attempt, Callback, LedgerAccount, Recovery, Settlement, Transaction, Transfer
from payments.policy import Policy
from payments.settlement import resolutions, settling
from payments.settlement import undo as undoing
from payments.settlement.decision import Decision, Evidence
from payments.wallet import bets as wallet_bets
from users import audit
from users.models import CustomUser, Proposal

AT = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)  # 10:30 in Nairobi
FAR = datetime(2099, 12, 31, 20, 59, tzinfo=UTC)
PIN = "1234"
Amount = Decimal | int | str

_numbers = itertools.count(1)
_POLICY = Policy(
    production=False,
    protect_stake=True,
    destination="mpesa",
    min_amount=10,
    max_amount=250_000,
    day_limit=500_000,
    query_after=timedelta(seconds=20),
    query_gap=timedelta(seconds=60),
    review_after=timedelta(hours=24),
    resend_horizon=timedelta(minutes=30),
    retry_after=timedelta(seconds=15),
    confirm_above=Decimal(50_000),
    settlement_chunk=20_000,
)


def policy(**changes: Any) -> Policy:
    """Return the policy of `.env.example` with these changes."""
    return replace(_POLICY, **changes)


def member(balance: Amount = 0, **fields: Any) -> CustomUser:
    """Create a member with a new phone number, the PIN 1234 and a wallet balance, booked from `opening`."""
    number = next(_numbers)
    return CustomUser.objects.create_user(
        **{
            "phone_number": f"2547{number:08d}",
            "full_name": f"Member {number}",
            "pin": PIN,
            "balance": Decimal(balance),
            **fields,
        }
    )


def operator(**fields: Any) -> CustomUser:
    """Create a member of staff, who may call the admin endpoints."""
    return member(is_staff=True, **fields)


def market(outcomes: Sequence[str] = ("Yes", "No"), fee_pct: Amount = "5.00", **fields: Any) -> Market:
    """Create an OPEN market with these outcomes in this order. It ends in 2099."""
    return Market.objects.create(
        **{
            "question": "Will it rain tomorrow?",
            "end_date": FAR,
            "platform_fee_pct": Decimal(fee_pct),
            "outcome_names": tuple(outcomes),
            **fields,
        }
    )


def changed_terms(of: Market, *, at: datetime = AT, notice: timedelta = timedelta(hours=24), **changes: Any) -> Market:
    """Change the terms of a market at `at`, by two people. If members have bet, the notice runs until `at` + notice."""
    of.refresh_from_db()
    terms.change(
        market_id=of.pk,
        draft=replace(terms.of(of), **changes),
        seen_version=of.terms_version,
        reason="A typing error.",
        by=actor(operator()),
        approved_by=actor(operator()),
        at=at,
        notice=notice,
    )
    of.refresh_from_db()
    return of


def bet(
    on: Market, user: CustomUser, outcome: str = "Yes", amount: Amount = 100, *, at: datetime = AT, client_ref: str = ""
) -> Bet:
    """Place a bet by the service, paid from the member's wallet."""
    return wallet_bets.place(
        user_id=user.pk, market_id=on.pk, outcome=outcome, amount=Decimal(amount), client_ref=client_ref or None, at=at
    ).bet


def orm_bet(on: Market, user: CustomUser, outcome: str = "Yes", amount: Amount = 100, *, at: datetime = AT) -> Bet:
    """Create a bet by the ORM alone, as the guide's shell example does. `settle` books the stake from `opening`."""
    return Bet.objects.create(market=on, user=user, outcome=outcome, amount=Decimal(amount), placed_at=at)


def resolve(  # noqa: PLR0913 - keyword-only, and a test names only those that it is about
    of: Market,
    outcome: str | None = "Yes",
    *,
    rule: parimutuel.Rule | None = None,
    weights: Mapping[str, Amount] | None = None,
    by: CustomUser | None = None,
    at: datetime = AT,
    policy: Policy = _POLICY,
    evidence: Evidence | None = None,
    effective_close_at: datetime | None = None,
    preview_hash: str | None = None,
) -> Any:
    """Resolve a market: `outcome` wins, or `rule` and `weights` decide. Return Resolved or Proposed."""
    if weights is None:
        weights = {} if rule == "VOID" or outcome is None else {outcome: 100}
    return resolutions.resolve(
        market_id=of.pk,
        decision=Decision(
            rule=rule or "WINNER",
            weights={name: Decimal(weight) for name, weight in weights.items()},
            reason="cancelled" if rule == "VOID" else "",
            evidence=evidence or Evidence(),
            effective_close_at=effective_close_at,
        ),
        by=actor(by),
        at=at,
        policy=policy,
        preview_hash=preview_hash,
    )


def actor(user: CustomUser | None = None) -> audit.Actor:
    """Return the actor of a decision, at a loopback address. Without a user the actor has no id."""
    return audit.Actor(user_id=user.pk if user else None, source="127.0.0.1")


def undo(of: Market, *, by: CustomUser | None = None, at: datetime = AT, policy: Policy = _POLICY) -> None:
    """Undo a settled market to the end, in chunks of the policy's size."""
    undoing.undo(market_id=of.pk, reason="The wrong outcome.", by=actor(by), at=at, policy=policy)
    undoing.carry_out(market_id=of.pk, at=at, policy=policy, keep_going=lambda: True)
    of.refresh_from_db()


def settle(of: Market, *, at: datetime = AT, policy: Policy = _POLICY) -> settling.Progress:
    """Settle a resolved market to the end, in chunks of the policy's size."""
    progress = settling.settle(market_id=of.pk, at=at, policy=policy, keep_going=lambda: True)
    of.refresh_from_db()
    return progress


def settled_market(
    bets: Sequence[tuple[CustomUser, str, Amount]],
    outcome: str | None = "Yes",
    *,
    outcomes: Sequence[str] = ("Yes", "No"),
    fee_pct: Amount = "5.00",
    rule: parimutuel.Rule | None = None,
    weights: Mapping[str, Amount] | None = None,
    at: datetime = AT,
    policy: Policy = _POLICY,
) -> Market:
    """Create a market with bets of these members, then resolve and settle it.

    The bets are made by the ORM, so the members need no money.
    """
    settled = market(outcomes, fee_pct)
    for user, on, amount in bets:
        orm_bet(settled, user, on, amount, at=at)
    resolve(settled, outcome, rule=rule, weights=weights, at=at, policy=policy)
    settle(settled, at=at, policy=policy)
    return settled


def payout(
    amount: Amount = 285, *, user: CustomUser | None = None, at: datetime = AT, policy: Policy = _POLICY
) -> Transaction:
    """Create a PENDING M-Pesa payout, due at `at`. The amount is whole shillings, at most one M-Pesa payment."""
    user = user or member()
    settled = settled_market([(user, "Yes", amount)], fee_pct=0, at=at, policy=policy)
    return Transaction.objects.get(settlement__market=settled, destination=Transaction.Destination.MPESA)


def token_of(user: CustomUser) -> str:
    """Create a bearer token for the REST API."""
    from knox.models import AuthToken

    return AuthToken.objects.create(user=user)[1]


def bearer(user: CustomUser) -> dict[str, str]:
    """Return the headers of a request by this member: `client.post(..., headers=bearer(user))`."""
    return {"Authorization": f"Bearer {token_of(user)}"}


def transfers(**having: Any) -> list[tuple[str, str, str, Decimal]]:
    """Return transfers in the order of booking: (key, debit account, credit account, amount)."""
    rows = Transfer.objects.filter(**having).order_by("pk")
    return list(rows.values_list("key", "debit__code", "credit__code", "amount"))


def money_snapshot() -> dict[str, Any]:
    """Return counts and sums of every table in which money or a state can change."""

    def tally(model: Any, by: str, total: str | None = None) -> list[tuple[Any, ...]]:
        sums = {"total": Sum(total)} if total else {}
        return list(model.objects.values_list(by).annotate(count=Count("pk"), **sums).order_by(by))

    return {
        "transfers": tally(Transfer, "code", "amount"),
        "accounts": LedgerAccount.objects.filter(kind="wallet").count(),
        "transactions": tally(Transaction, "status", "amount"),
        "attempts": tally(Attempt, "state", "amount"),
        "callbacks": Callback.objects.count(),
        "proposals": tally(Proposal, "state"),
        "recoveries": tally(Recovery, "decision", "amount"),
        "settlements": tally(Settlement, "state", "pool"),
        "markets": tally(Market, "status"),
        "bets": tally(Bet, "result", "amount"),
        "dividends": Bet.objects.aggregate(total=Sum("payout")),
        "balances": list(CustomUser.objects.order_by("pk").values_list("pk", "balance")),
    }


@contextmanager
def nothing_moved() -> Iterator[None]:
    """Assert that the block changed no count, sum or state."""
    before = money_snapshot()
    yield
    assert money_snapshot() == before


def begin(call: Callable[[], Any]) -> Future[Any]:
    """Start the call in a new thread with its own connection. The future's `result(timeout)` is the call's result."""
    future: Future[Any] = Future()

    def make() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # Raised again by result().
            future.set_exception(error)
        finally:
            connections.close_all()

    Thread(target=make).start()
    return future


def wait_until_one_waits() -> None:
    """Wait until another session on this database waits for a lock."""
    for _ in range(2_000):
        with connection.cursor() as cursor:
            # Inside a transaction PostgreSQL keeps the first list of sessions, which may lack the one that will wait.
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database OR l.database IS NULL"
                " JOIN pg_stat_activity a ON a.pid = l.pid AND a.datname = d.datname"
                " WHERE NOT l.granted AND d.datname = current_database())"
            )
            (waits,) = cursor.fetchone()
        if waits:
            return
        sleep(0.01)
    raise AssertionError("No session waits for a lock.")


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make the calls at the same time in new threads. Return each call's result, or the exception that it raised.

    Only for tests with `transactional_db`, because each thread has its own connection. The connections are closed at
    the end.
    """
    start = Barrier(len(calls))

    def make(call: Callable[[], Any]) -> Any:
        connection.ensure_connection()
        start.wait(timeout=10)
        return call()

    begun = [begin(partial(make, call)) for call in calls]
    return [future.exception(timeout=30) or future.result() for future in begun]
