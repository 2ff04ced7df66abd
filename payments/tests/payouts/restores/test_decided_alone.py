"""After a restore, two people decide about one payout that has no open request: a failed one, or one that waits."""

import pytest

from payments import own_affairs
from payments.models import Attempt, Transaction
from payments.payouts import eligibility
from payments.payouts.operations import actions
from payments.payouts.restores import decisions, detection, procedure
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.lost_commits import deny_later
from testing.payout_steps import (
    ADDRESSES,
    after,
    ask_and_answer,
    claims,
    deliver_result,
    not_found_body,
    resends,
    result_body,
    sent,
    states,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db
POLICY = builders.policy()
HOUR = 3_600.0


def restored(at: float, *, survived: float, noticed: float) -> None:
    """Record a restore, and run the procedure once at `at`, when the ids are too old to be sent again by themselves."""
    detection.report(survived_at=after(survived), at=after(noticed), policy=POLICY)
    advance(at)


def advance(at: float) -> None:
    procedure.advance(at=after(at), policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)


def decide(payout: Transaction, at: float) -> None:
    people = [builders.actor(builders.operator()) for _ in range(2)]
    decisions.decide(reference=payout.external_ref, grounds="Statement read.", by=people, at=after(at))


def failed_before_the_loss() -> Transaction:
    """Return a payout that failed before a loss, and of which M-Pesa denies every lost request."""
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored(2 * HOUR, survived=4, noticed=64)
    deny_later(after(2 * HOUR + 20))
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    return payout


def next_request(payout: Transaction, at: float) -> Attempt:
    """Retry a failed payout, let M-Pesa deny its next request, and return this request."""
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(at))
    advance(at + 3)
    attempt = payout.attempts.get(number=2)
    ask_and_answer(attempt, not_found_body(), after(at + 4))
    return attempt


def test_failed_payout_that_two_people_decided_leaves_after_its_retry() -> None:
    # given
    payout = failed_before_the_loss()
    decide(payout, 2 * HOUR + 100)

    # when
    attempt = next_request(payout, 2 * HOUR + 200)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert [claim.attempt_id for claim in resends(after(2 * HOUR + 210))] == [attempt.pk]


def test_failed_payout_without_a_decision_stays_after_its_retry() -> None:
    payout = failed_before_the_loss()
    next_request(payout, 2 * HOUR + 200)
    assert (resends(after(2 * HOUR + 210)), claims(after(2 * HOUR + 210))) == ([], [])


def test_decision_from_before_a_newer_loss_lets_nothing_leave() -> None:
    # given
    payout = failed_before_the_loss()
    decide(payout, 2 * HOUR + 100)
    assert eligibility.decided_alone([payout.pk]) == {payout.pk}

    # when: further commits are lost
    restored(4 * HOUR, survived=2 * HOUR + 150, noticed=2 * HOUR + 160)
    deny_later(after(4 * HOUR + 60))
    next_request(payout, 4 * HOUR + 200)

    # then
    assert eligibility.decided_alone([payout.pk]) == set()
    assert (resends(after(4 * HOUR + 210)), claims(after(4 * HOUR + 210))) == ([], [])


def test_decision_about_one_failed_payout_opens_the_wallet_for_this_payout_alone() -> None:
    # given: the loss is longer than the resend horizon
    payout, other = builders.payout(285), builders.payout(285)
    for each in (payout, other):
        payout_steps.failed(each)
    restored(2 * HOUR, survived=4, noticed=2 * HOUR)
    deny_later(after(2 * HOUR + 30))

    # when
    decide(payout, 2 * HOUR + 40)

    # then
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(2 * HOUR + 50))
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match="two people"):
        actions.redirect_to_wallet(transaction_id=other.pk, by=MACHINE, at=after(2 * HOUR + 50))


def test_completed_payout_is_not_decided() -> None:
    payout = builders.payout(285)
    attempt = sent(payout)
    restored(70, survived=4, noticed=64)
    deliver_result(attempt, result_body(attempt), after(71))
    with pytest.raises(decisions.NothingToDecide, match="not asked about"):
        decide(payout, 100)


def test_member_who_is_paid_cannot_decide() -> None:
    payout = builders.payout(285)
    restored(2 * HOUR, survived=0, noticed=2 * HOUR)
    with pytest.raises(own_affairs.OwnPayout, match="your own"):
        decisions.propose(reference="all", grounds="Checked.", by=builders.actor(payout.user), at=after(2 * HOUR + 1))
    decision = decisions.propose(
        reference="all", grounds="Checked.", by=builders.actor(builders.operator()), at=after(2 * HOUR + 1)
    )
    with pytest.raises(own_affairs.OwnPayout, match="your own"):
        decisions.refuse(decision_id=decision.pk, by=builders.actor(payout.user), at=after(2 * HOUR + 2), reason="No.")


def test_decision_of_a_person_who_was_suspended_is_not_confirmed() -> None:
    builders.payout(285)
    restored(2 * HOUR, survived=0, noticed=2 * HOUR)
    first, second = builders.operator(), builders.operator()
    decision = decisions.propose(reference="all", grounds="Checked.", by=builders.actor(first), at=after(2 * HOUR + 1))
    first.is_active = False
    first.save(update_fields=["is_active"])
    with pytest.raises(decisions.NothingToDecide, match="suspended"):
        decisions.confirm(decision_id=decision.pk, by=builders.actor(second), at=after(2 * HOUR + 2))
