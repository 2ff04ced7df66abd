"""Fair queue: settlements of any size share each round, and every payout that may leave is taken."""

from collections import Counter
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from django.db import connection, transaction

from payments.models import Breaker, Settlement, Transaction
from payments.payouts import eligibility
from payments.payouts.sending import canary, fair_queue
from testing import builders, payout_steps
from testing.builders import AT
from testing.payout_steps import POLICY, after, claims

pytestmark = pytest.mark.django_db


def market_of(winners: int, **more: Any) -> int:
    """Settle a market with this many due payouts, and return the id of its settlement."""
    market = builders.settled_market([(builders.member(), "Yes", 100) for _ in range(winners)], fee_pct=0, **more)
    return Settlement.objects.get(market=market).pk


def taken(limit: int, after_settlement: int = 0, seconds: float = 1) -> Counter[int | None]:
    """Count the payouts that the queue returns, by settlement."""
    with transaction.atomic():
        queue = fair_queue.take(at=after(seconds), policy=POLICY, limit=limit, after=after_settlement)
    return Counter(queued.payout.settlement_id for queued in queue)


def test_small_market_does_not_wait_behind_a_large_one() -> None:
    # given
    large, small = market_of(60), market_of(10)

    # when
    first = Counter(claim.settlement_id for claim in claims(after(1), limit=20))

    # then
    assert first == {large: 10, small: 10}
    assert Counter(claim.settlement_id for claim in claims(after(1), limit=20)) == {large: 20}


def test_large_market_fills_the_rest_of_a_round() -> None:
    # given
    large, small, other = market_of(40), market_of(1), market_of(8)

    # then
    assert taken(30) == {large: 21, small: 1, other: 8}


def test_rounds_continue_with_more_markets_than_one_round_serves() -> None:
    # given
    settlements = [market_of(2) for _ in range(3)]

    # when
    rounds = []
    last = 0
    for _ in range(3):
        claimed = claims(after(1), limit=2, last_served=last)
        last = claimed[-1].settlement_id or 0
        rounds.append([claim.settlement_id for claim in claimed])

    # then
    first, second, third = settlements
    assert rounds == [[first, second], [third, first], [second, third]]


def test_claimed_payouts_are_skipped() -> None:
    # given
    market_of(5)
    held = payout_steps.claims(after(1), limit=2)

    # then
    assert [claim.transaction_id for claim in payout_steps.claims(after(1), limit=2)] == [
        claim.transaction_id + 2 for claim in held
    ]


def test_unreleased_settlement_sends_nothing() -> None:
    # given
    held, free = market_of(3), market_of(1)
    Settlement.objects.filter(pk=held).update(release_at=after(100))

    # then
    assert taken(10) == {free: 1}


def turned_away(limit: int) -> list[int]:
    """Claim up to `limit` payouts, which M-Pesa throttles, and return their ids. Sending is then paused."""
    throttled = claims(after(1), limit=limit)
    for claim in throttled:
        payout_steps.put_through(claim, payout_steps.THROTTLED, at=after(1))
    return [claim.transaction_id for claim in throttled]


@pytest.mark.parametrize("others", ["of the same market", "of another"])
def test_turned_away_requests_go_before_new_ones(others: str) -> None:
    # given
    market_of(8 if others == "of the same market" else 2)
    throttled = turned_away(2)
    market_of(8)
    Breaker.objects.update(opened_at=None, probe_at=None)

    # then
    again = claims(after(60), limit=5)
    assert [claim.transaction_id for claim in again[:2]] == throttled
    assert {claim.originator_conversation_id[-2:] for claim in again[:2]} == {"-1"}


def test_turned_away_requests_of_a_stopped_settlement_wait() -> None:
    # given
    settlement = market_of(2)
    turned_away(2)
    Breaker.objects.update(opened_at=None, probe_at=None)
    Settlement.objects.filter(pk=settlement).update(stopped_at=after(2))

    # then
    assert taken(10, seconds=60) == {}


def test_probe_is_a_new_request_while_sending_is_paused() -> None:
    # given
    market_of(3)
    (throttled,) = turned_away(1)

    # when
    (probe,) = claims(after(600), limit=3)

    # then
    assert probe.transaction_id != throttled


@pytest.mark.parametrize("seed", range(15))
def test_taken_payouts_are_exactly_those_that_may_leave(seed: int) -> None:
    # given
    random = Random(seed)
    settlements = [market_of(random.randint(1, 4)) for _ in range(random.randint(1, 4))]
    for settlement in settlements:
        release_at = random.choice([AT, AT, after(1_000)])
        Settlement.objects.filter(pk=settlement).update(release_at=release_at, release_open=random.random() < 0.5)
    for payout in Transaction.objects.all():
        due_at = payout.due_at + timedelta(seconds=random.choice([0, 5, 500]))
        Transaction.objects.filter(pk=payout.pk).update(due_at=due_at)
    policy = builders.policy(canary=(2,))

    # when
    with transaction.atomic():
        queue = fair_queue.take(at=after(5), policy=policy, limit=100, after=random.choice([0, *settlements]))
        is_due = fair_queue.any_due(at=after(5), policy=policy)

    # then
    in_canary = canary.in_canary(at=after(5), policy=policy)
    everything = list(Transaction.objects.values_list("pk", flat=True))
    assert {queued.payout.pk for queued in queue} == eligibility.may_leave(everything, in_canary=in_canary, at=after(5))
    assert is_due is bool(queue)


def test_queue_uses_the_index_without_sorting() -> None:
    # given
    market_of(3)
    parameters = {"at": after(1), "in_canary": [], "after": 0, "last": 2**62, "limit": 10}

    # when
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {fair_queue._WAITING_SETTLEMENTS}", parameters)
        released = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute(
            f"EXPLAIN {fair_queue._LOCK_OF_SETTLEMENTS}",
            {"at": after(1), "ids": [1], "already_taken": [0], "per_settlement": 5},
        )
        of_one = "\n".join(line for (line,) in cursor.fetchall())

    # then
    assert "transaction_due" in released
    assert "Sort" not in released
    assert "transaction_due" in of_one
    assert "Sort" not in of_one
