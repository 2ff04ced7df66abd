"""The canary of a settlement."""

from dataclasses import replace

import pytest

from payments.models import Settlement, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from testing import builders, payout_steps
from testing.payout_steps import (
    ADDRESSES,
    POLICY,
    after,
    ask_and_answer,
    deliver_result,
    result_body,
    status_body,
)

pytestmark = pytest.mark.django_db


CANARY = replace(POLICY, canary=(1, 3))


def release(winners: int) -> Settlement:
    bets = [(builders.member(100), "Yes", 100) for _ in range(winners)]
    return builders.settled_market(bets, "Yes", policy=CANARY).settlements.get()


def claimed(limit: int = 100) -> list[sending_claims.Claim]:
    return sending_claims.claim(at=after(0), policy=CANARY, addresses=ADDRESSES, limit=limit)


def record(claim: sending_claims.Claim, response: payout_steps.Response) -> None:
    responses.record(claim, response, at=after(0), policy=CANARY)


def test_canary_sends_one_then_a_few_then_the_rest() -> None:
    # given
    release(10)

    # when, then
    (first,) = claimed()
    assert claimed() == []
    record(first, payout_steps.ACCEPTED)
    second_step = claimed()
    assert len(second_step) == 3
    for claim in second_step[:2]:
        record(claim, payout_steps.ACCEPTED)
    assert claimed() == []
    record(second_step[2], payout_steps.ACCEPTED)
    assert len(claimed()) == 6


@pytest.mark.parametrize("response", [payout_steps.REJECTED, payout_steps.READ_TIMEOUT], ids=str)
def test_unaccepted_attempt_frees_its_slot_in_the_canary(response: payout_steps.Response) -> None:
    # given
    release(10)
    (first,) = claimed()

    # when
    record(first, response)

    # then
    assert len(claimed()) == 1


def test_lost_acknowledgements_do_not_stop_a_canary_that_pays() -> None:
    # given
    release(10)
    (first,) = claimed()
    record(first, payout_steps.READ_TIMEOUT)
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when
    deliver_result(attempt, result_body(attempt), after(1), policy=CANARY)

    # then
    assert len(claimed()) == 3


def test_callback_before_the_response_does_not_stop_the_canary() -> None:
    # given
    release(10)
    (first,) = claimed()
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when: the attempt is proven failed before its acknowledgement is recorded
    deliver_result(attempt, result_body(attempt, 2040), after(1), policy=CANARY)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(1))
    record(first, payout_steps.ACCEPTED)

    # then
    assert payout_steps.states(Transaction.objects.get(pk=first.transaction_id), attempt) == ("FAILED", "FAILED")
    assert len(claimed()) == 3


def test_kill_before_the_response_does_not_stop_the_canary() -> None:
    # given
    release(10)
    claimed()

    # when
    status_queries.ask(at=after(20), policy=CANARY, addresses=ADDRESSES, limit=10)

    # then
    assert len(claimed()) == 1
