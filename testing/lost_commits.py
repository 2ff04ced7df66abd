"""Steps of tests in which the server loses its last commits while M-Pesa keeps its book.

A lost commit is a savepoint that is rolled back: rows disappear and sequences go on, as after a failover.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import product

from django.db import transaction

from markets.models import Market
from payments.models import Attempt, Callback, Transaction
from payments.payouts.evidence import callbacks, orphans
from payments.payouts.operations import actions
from payments.policy import Policy
from testing import builders, payout_steps
from testing.payout_steps import ADDRESSES, POLICY
from users.audit import MACHINE
from users.models import CustomUser


class Loss:
    """A market whose settlement and requests are lost. `lost` are the attempts as they were before the loss."""

    def __init__(self, stake: builders.Amount = 285, *, losing: builders.Amount = 0) -> None:
        self.user: CustomUser = builders.member()
        self.market: Market = builders.market(fee_pct=0)
        builders.orm_bet(self.market, self.user, "Yes", stake)
        if losing:
            builders.orm_bet(self.market, builders.member(), "No", losing)
        self._savepoint = transaction.savepoint()
        self.lost: list[Attempt] = []

    def send(self, *responses: payout_steps.Response) -> None:
        """Settle the market, and send its payout once for each response. A refused payout is sent again."""
        payout = self.settle()
        for number, response in enumerate(responses):
            if number:
                actions.retry(transaction_id=payout.pk, by=MACHINE, at=payout_steps.after(1))
            self.lost.append(payout_steps.sent(payout, response, at=payout_steps.after(2 * number)))

    def lose(self) -> None:
        """Lose every commit since the bets were placed."""
        transaction.savepoint_rollback(self._savepoint)
        self.market.refresh_from_db()

    def settle(self, *, policy: Policy = POLICY) -> Transaction:
        """Resolve and settle the market, and return the member's M-Pesa payout."""
        builders.resolve(self.market, "Yes", policy=policy)
        builders.settle(self.market, policy=policy)
        return Transaction.objects.get(settlement__market=self.market, user=self.user, destination="mpesa")


def store_result(
    attempt: Attempt, body: bytes, at: datetime, *, trusted: bool = True, kind: str = Callback.Kind.RESULT
) -> None:
    """Store the result of a request that may be lost, under the token of its id."""
    token = ADDRESSES.token(attempt.originator_conversation_id)
    store(kind, token, body, at, trusted=trusted)


def store(kind: str, token: str, body: bytes, at: datetime, *, trusted: bool = True) -> None:
    """Store a callback."""
    callbacks.store(kind=kind, token=token, body=body, source_ip=None, trusted=trusted, at=at, addresses=ADDRESSES)


def sweep(at: datetime, policy: Policy = POLICY) -> list[str]:
    """Place the orphans and apply the stored callbacks, as the sweep does, and return the outcomes in words."""
    ids: Iterable[int] = orphans.to_place(limit=100)
    outcomes = [orphans.place(orphan_id=pk, at=at, policy=policy, addresses=ADDRESSES) for pk in ids]
    orphans.stop_for_unclaimed(at=at)
    stored = callbacks.to_apply(after=0, limit=100)
    single = callbacks.apply_paid(callback_ids=stored, at=at, policy=policy) if stored else []
    return outcomes + [callbacks.apply(callback_id=pk, at=at, policy=policy) for pk in single]


def answer_about_orphan(body: bytes, at: datetime, policy: Policy = POLICY) -> None:
    """Ask M-Pesa about the only orphan, and store the answer a second later."""
    (query,) = orphans.ask(at=at, policy=policy, addresses=ADDRESSES, limit=10)
    orphans.record_put(query)
    store(Callback.Kind.STATUS, query.token, body, at)


def deny_later(at: datetime, policy: Policy = POLICY) -> int:
    """Let M-Pesa deny twice the later requests that a restore may have lost, as far as their queries are due.

    Returns the number of the requests.
    """
    return len(answer_later(at, {}, policy, times=2))


def answer_later(at: datetime, known: Mapping[str, bytes], policy: Policy = POLICY, *, times: int = 1) -> list[str]:
    """Ask about the later requests that are due, answer those in `known` by id, and deny the others.

    The answers come so many `times`, a `query_gap` apart. Returns the ids that were asked about.
    """
    queries = orphans.ask(at=at, policy=policy, addresses=ADDRESSES, limit=1_000, supposed=True)
    for query in queries:
        orphans.record_put(query)
    for query, number in product(queries, range(times)):
        # A later answer of M-Pesa has another id. The same body to one address is stored once.
        received_at = at + number * policy.query_gap
        own_id = f'"MBN-{received_at.timestamp()}"'.encode()
        denied = payout_steps.not_found_body().replace(b'"MBN0000000"', own_id)
        body = known.get(query.originator_conversation_id, denied)
        store(Callback.Kind.STATUS, query.token, body, received_at)
    for pk in orphans.to_place(limit=1_000):
        orphans.place(orphan_id=pk, at=at, policy=policy, addresses=ADDRESSES)
    return [query.originator_conversation_id for query in queries]
