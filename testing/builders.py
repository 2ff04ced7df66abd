"""What tests start from: members, markets, bets and settlements, made through the project's own services.

Amounts may be given as text, whole numbers or Decimal; they are shillings.
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

from markets import parimutuel
from markets.models import Bet, Market
from payments.models import Attempt, Callback, LedgerAccount, Proposal, Recovery, Settlement, Transaction, Transfer
from payments.policy import Policy
from payments.settlement import resolutions, settling
from payments.settlement import undo as undoing
from payments.wallet import bets as wallet_bets
from users import audit
from users.models import CustomUser

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
    """The rules of payment as `.env.example` has them, with changes."""
    return replace(_POLICY, **changes)


def member(balance: Amount = 0, **fields: Any) -> CustomUser:
    """A member with a phone number of their own, the PIN 1234 and, if wanted, money from `opening` in the wallet."""
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
    """A member of staff, who may use the admin calls."""
    return member(is_staff=True, **fields)


def market(outcomes: Sequence[str] = ("Yes", "No"), fee_pct: Amount = "5.00", **fields: Any) -> Market:
    """An OPEN market with these outcomes, in this order; it ends long after anyone runs this."""
    return Market.objects.create(
        **{
            "question": "Will it rain tomorrow?",
            "end_date": FAR,
            "platform_fee_pct": Decimal(fee_pct),
            "outcome_names": tuple(outcomes),
            **fields,
        }
    )


def bet(
    on: Market, user: CustomUser, outcome: str = "Yes", amount: Amount = 100, *, at: datetime = AT, client_ref: str = ""
) -> Bet:
    """A bet placed by the service, from the member's wallet."""
    return wallet_bets.place(
        user_id=user.pk, market_id=on.pk, outcome=outcome, amount=Decimal(amount), client_ref=client_ref or None, at=at
    ).bet


def orm_bet(on: Market, user: CustomUser, outcome: str = "Yes", amount: Amount = 100, *, at: datetime = AT) -> Bet:
    """A bet made straight through the ORM, as the guide's shell snippet does; settlement books it from `opening`."""
    return Bet.objects.create(market=on, user=user, outcome=outcome, amount=Decimal(amount), placed_at=at)


def resolve(
    of: Market,
    outcome: str | None = "Yes",
    *,
    rule: parimutuel.Rule | None = None,
    weights: Mapping[str, Amount] | None = None,
    by: CustomUser | None = None,
    at: datetime = AT,
    policy: Policy = _POLICY,
    **more: Any,
) -> Any:
    """Declare `outcome` the winner; or a JOINT or SPLIT resolution by `weights`; or VOID. Resolved, or Proposed."""
    if weights is None:
        weights = {} if rule == "VOID" or outcome is None else {outcome: 100}
    return resolutions.resolve(
        market_id=of.pk,
        rule=rule or "WINNER",
        weights={name: Decimal(weight) for name, weight in weights.items()},
        by=actor(by),
        at=at,
        policy=policy,
        reason="cancelled" if rule == "VOID" else "",
        **more,
    )


def actor(user: CustomUser | None = None) -> audit.Actor:
    """Someone who decides, at a loopback address; nobody in particular where no user is given."""
    return audit.Actor(user_id=user.pk if user else None, source="127.0.0.1")


def undo(of: Market, *, by: CustomUser | None = None, at: datetime = AT, policy: Policy = _POLICY) -> None:
    """Undo a settled market to the end, in as many chunks as the policy makes of it."""
    undoing.undo(market_id=of.pk, reason="The wrong outcome.", by=actor(by), at=at, policy=policy)
    undoing.carry_out(market_id=of.pk, at=at, policy=policy, keep_going=lambda: True)
    of.refresh_from_db()


def settle(of: Market, *, at: datetime = AT, policy: Policy = _POLICY) -> settling.Progress:
    """Settle a resolved market to the end, in as many chunks as the policy makes of it."""
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
    """A market on which these members bet (through the ORM, so they need no money), resolved and settled."""
    made = market(outcomes, fee_pct)
    for user, on, amount in bets:
        orm_bet(made, user, on, amount, at=at)
    resolve(made, outcome, rule=rule, weights=weights, at=at, policy=policy)
    settle(made, at=at, policy=policy)
    return made


def payout(
    amount: Amount = 285, *, user: CustomUser | None = None, at: datetime = AT, policy: Policy = _POLICY
) -> Transaction:
    """A PENDING payout over M-Pesa of this many whole shillings (at most the largest payment), due at `at`."""
    user = user or member()
    made = settled_market([(user, "Yes", amount)], fee_pct=0, at=at, policy=policy)
    return Transaction.objects.get(settlement__market=made, destination=Transaction.Destination.MPESA)


def token_of(user: CustomUser) -> str:
    """A bearer token for the REST API."""
    from knox.models import AuthToken

    return AuthToken.objects.create(user=user)[1]


def bearer(user: CustomUser) -> dict[str, str]:
    """The headers of a request by this member: `client.post(..., headers=bearer(user))`."""
    return {"Authorization": f"Bearer {token_of(user)}"}


def transfers(**having: Any) -> list[tuple[str, str, str, Decimal]]:
    """Transfers in the order they were booked: (key, debit account, credit account, amount)."""
    found = Transfer.objects.filter(**having).order_by("pk")
    return list(found.values_list("key", "debit__code", "credit__code", "amount"))


def where_everything_is() -> dict[str, Any]:
    """Counts and sums of everything that money or a state could have moved in."""

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
    """Assert that the block left every count, sum and state as it was."""
    before = where_everything_is()
    yield
    assert where_everything_is() == before


def begin(call: Callable[[], Any]) -> Future[Any]:
    """Start the call in a thread of its own, with its own connection; its `result(timeout)` is the call's answer."""
    future: Future[Any] = Future()

    def make() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        finally:
            connections.close_all()

    Thread(target=make).start()
    return future


def wait_until_one_waits() -> None:
    """Return as soon as another session on this database waits for a lock."""
    for _ in range(2_000):
        with connection.cursor() as cursor:
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
    """Make the calls in threads of their own, started together; return each one's answer, or the exception it raised.

    For tests with `transactional_db`: each thread has its own connection, closed at the end.
    """
    start = Barrier(len(calls))

    def make(call: Callable[[], Any]) -> Any:
        connection.ensure_connection()
        start.wait(timeout=10)
        return call()

    begun = [begin(partial(make, call)) for call in calls]
    return [future.exception(timeout=30) or future.result() for future in begun]
