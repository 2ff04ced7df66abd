"""Whose turn it is: markets take turns, whatever their sizes, and nothing that may leave is forgotten."""

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
    """A settled market with so many payouts due; the id of its settlement."""
    made = builders.settled_market([(builders.member(), "Yes", 100) for _ in range(winners)], fee_pct=0, **more)
    return Settlement.objects.get(market=made).pk


def taken(limit: int, after_settlement: int = 0, seconds: float = 1) -> Counter[int | None]:
    with transaction.atomic():
        found = fair_queue.take(at=after(seconds), policy=POLICY, limit=limit, after=after_settlement)
    return Counter(turn.payout.settlement_id for turn in found)


def test_a_market_of_ten_does_not_wait_behind_a_large_one() -> None:
    # given
    large, small = market_of(60), market_of(10)

    # when
    first = Counter(claim.settlement_id for claim in claims(after(1), limit=20))

    # then
    assert first == {large: 10, small: 10}
    assert Counter(claim.settlement_id for claim in claims(after(1), limit=20)) == {large: 20}


def test_what_a_small_market_does_not_need_goes_to_the_others() -> None:
    # given
    large, small, other = market_of(40), market_of(1), market_of(8)

    # then
    assert taken(30) == {large: 21, small: 1, other: 8}


def test_with_fewer_places_than_markets_the_turns_go_round() -> None:
    # given
    runs = [market_of(2) for _ in range(3)]

    # when
    rounds = []
    last = 0
    for _ in range(3):
        claimed = claims(after(1), limit=2, last_turn=last)
        last = claimed[-1].settlement_id or 0
        rounds.append([claim.settlement_id for claim in claimed])

    # then
    assert rounds == [[runs[0], runs[1]], [runs[2], runs[0]], [runs[1], runs[2]]]


def test_a_payout_that_another_worker_holds_is_passed_over_and_the_next_takes_its_place() -> None:
    # given
    market_of(5)
    held = payout_steps.claims(after(1), limit=2)

    # then
    assert [claim.transaction_id for claim in payout_steps.claims(after(1), limit=2)] == [
        claim.transaction_id + 2 for claim in held
    ]


def test_a_settlement_that_is_not_released_has_no_turn() -> None:
    # given
    held, free = market_of(3), market_of(1)
    Settlement.objects.filter(pk=held).update(release_at=after(100))

    # then
    assert taken(10) == {free: 1}


def turned_away(limit: int) -> list[int]:
    """Claim so many, which M-Pesa turns away for now, and sending is paused. The payouts' ids."""
    begun = claims(after(1), limit=limit)
    for claim in begun:
        payout_steps.put_through(claim, payout_steps.THROTTLED, at=after(1))
    return [claim.transaction_id for claim in begun]


@pytest.mark.parametrize("others", ["of the same market", "of another"])
def test_what_was_turned_away_goes_before_a_million_others_while_its_id_is_safe(others: str) -> None:
    # given
    market_of(8 if others == "of the same market" else 2)
    begun = turned_away(2)
    market_of(8)
    Breaker.objects.update(opened_at=None, probe_at=None)

    # then
    again = claims(after(60), limit=5)
    assert [claim.transaction_id for claim in again[:2]] == begun
    assert {claim.originator_conversation_id[-2:] for claim in again[:2]} == {"-1"}


def test_what_was_turned_away_has_no_turn_while_its_settlement_is_stopped() -> None:
    # given
    run = market_of(2)
    turned_away(2)
    Breaker.objects.update(opened_at=None, probe_at=None)
    Settlement.objects.filter(pk=run).update(stopped_at=after(2))

    # then
    assert taken(10, seconds=60) == {}


def test_while_sending_is_paused_a_probe_is_not_what_was_turned_away_before() -> None:
    # given
    market_of(3)
    (begun,) = turned_away(1)

    # when
    (probe,) = claims(after(600), limit=3)

    # then
    assert probe.transaction_id != begun


@pytest.mark.parametrize("seed", range(15))
def test_what_is_taken_is_exactly_what_may_leave(seed: int) -> None:
    # given
    random = Random(seed)
    runs = [market_of(random.randint(1, 4)) for _ in range(random.randint(1, 4))]
    for run in runs:
        release_at = random.choice([AT, AT, after(1_000)])
        Settlement.objects.filter(pk=run).update(release_at=release_at, release_open=random.random() < 0.5)
    for payout in Transaction.objects.all():
        due_at = payout.due_at + timedelta(seconds=random.choice([0, 5, 500]))
        Transaction.objects.filter(pk=payout.pk).update(due_at=due_at)
    policy = builders.policy(canary=(2,))

    # when
    with transaction.atomic():
        found = fair_queue.take(at=after(5), policy=policy, limit=100, after=random.choice([0, *runs]))
        is_due = fair_queue.any_due(at=after(5), policy=policy)

    # then
    in_canary = canary.in_canary(at=after(5), policy=policy)
    everything = list(Transaction.objects.values_list("pk", flat=True))
    assert {turn.payout.pk for turn in found} == eligibility.may_leave(everything, in_canary=in_canary, at=after(5))
    assert is_due is bool(found)


def test_the_turn_is_found_by_the_index_and_not_by_sorting_what_waits() -> None:
    # given
    market_of(3)
    span = {"at": after(1), "in_canary": [], "after": 0, "last": 2**62, "limit": 10}

    # when
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {fair_queue._WAITING_SETTLEMENTS}", span)
        released = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute(
            f"EXPLAIN {fair_queue._LOCK_OF_SETTLEMENTS}", {"at": after(1), "ids": [1], "already": [0], "each": 5}
        )
        of_one = "\n".join(line for (line,) in cursor.fetchall())

    # then
    assert "transaction_due" in released and "Sort" not in released
    assert "transaction_due" in of_one and "Sort" not in of_one
