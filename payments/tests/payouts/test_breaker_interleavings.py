"""Forced interleavings of workers that claim payouts and change breakers."""

from decimal import Decimal
from functools import partial

import pytest
from django.db import transaction

from payments.models import Breaker
from payments.payouts import breakers
from testing import builders, payout_steps
from testing.interleaving import before_statement
from testing.payout_steps import POLICY, after, claims, sent

pytestmark = pytest.mark.django_db(transaction=True)

Cause = Breaker.Cause
READ_OPEN = '"payments_breaker"."opened_at" IS NOT NULL ORDER BY "payments_breaker"."id" ASC'
LOCK_OPEN = f"{READ_OPEN} FOR NO KEY UPDATE SKIP LOCKED"
WITHOUT_SHARES = builders.policy(breaker_failure_share=Decimal(2))


def trip(*causes: Breaker.Cause) -> None:
    """Open breakers in one transaction, in this order."""
    with transaction.atomic():
        for cause in causes:
            breakers.trip(cause, reason="Down", at=after(1), policy=POLICY)


def opened() -> set[str]:
    return set(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))


def test_breaker_opened_after_the_payouts_are_locked_stops_the_claim() -> None:
    # given
    payout = builders.payout(285)

    # when
    with before_statement(READ_OPEN, partial(trip, Cause.NETWORK)):
        claimed = claims(after(1))

    # then
    payout.refresh_from_db()
    assert (claimed, payout.status, payout.attempts.count()) == ([], "PENDING", 0)


def test_doubts_judged_by_another_worker_stop_a_claim_under_way() -> None:
    # given
    for _ in range(5):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT, policy=WITHOUT_SHARES)
    builders.payout(285)

    # when: this worker judges by a policy without shares, and another worker judges by ours
    with before_statement(READ_OPEN, partial(breakers.judge, at=after(1), policy=POLICY)):
        claimed = claims(after(1), WITHOUT_SHARES)

    # then
    assert claimed == []
    assert opened() == {Cause.DOUBT}


def test_breaker_opens_without_waiting_for_a_claim_under_way() -> None:
    # given
    for _ in range(2):
        builders.payout(285)

    # when: the claim has chosen its payouts, and commits after the breaker has opened
    with before_statement("INSERT INTO payments_attempt", partial(trip, Cause.NETWORK)):
        claimed = claims(after(1), limit=1)

    # then: this claim leaves, and no further claim
    assert len(claimed) == 1
    assert claims(after(1)) == []


def test_probe_taken_by_another_worker_is_not_taken_again() -> None:
    # given
    first, second = builders.payout(285), builders.payout(285)
    trip(Cause.NETWORK)

    # when
    taken = []
    with before_statement(LOCK_OPEN, lambda: taken.extend(claims(after(2), transaction_id=second.pk))):
        claimed = claims(after(2), transaction_id=first.pk)

    # then
    assert (len(taken), claimed) == (1, [])
    assert Breaker.objects.get(cause=Cause.NETWORK).probes == 1


def test_two_workers_open_two_breakers_in_opposite_order() -> None:
    with transaction.atomic():
        # given
        breakers.trip(Cause.NETWORK, reason="Down", at=after(1), policy=POLICY)

        # when
        other = builders.begin(partial(trip, Cause.THROTTLE, Cause.NETWORK))
        builders.wait_until_one_waits()
        breakers.trip(Cause.THROTTLE, reason="Throttled", at=after(1), policy=POLICY)

    # then
    other.result(timeout=60)
    assert opened() == {Cause.NETWORK, Cause.THROTTLE}
    assert Breaker.objects.get(cause=Cause.THROTTLE).reason == "Throttled"


def test_worker_that_closes_breakers_waits_for_one_that_opens_them() -> None:
    # given
    trip(Cause.NETWORK)
    with transaction.atomic():
        # when
        breakers.trip(Cause.SILENCE, reason="Silent", at=after(3), policy=POLICY)
        other = builders.begin(partial(breakers.reached, after(2), at=after(3)))
        builders.wait_until_one_waits()
        breakers.trip(Cause.THROTTLE, reason="Throttled", at=after(3), policy=POLICY)

    # then
    other.result(timeout=60)
    assert opened() == {Cause.SILENCE, Cause.THROTTLE}
