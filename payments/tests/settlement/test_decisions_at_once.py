"""Concurrent decisions of 64 operators on one market: one succeeds, and no money moves twice."""

from collections import Counter
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from markets.models import Market
from payments.ledger import journal
from payments.models import Attempt, Recovery, Settlement, Transaction
from payments.payouts.sending import claims, responses
from payments.settlement import resolutions, undo
from testing import builders
from testing.builders import AT, actor, at_once, member, operator, orm_bet, policy, resolve, settle, transfers
from testing.payout_steps import ADDRESSES, POLICY, READ_TIMEOUT, after
from testing.settlement_steps import TWO_PERSON_ACTS, anything
from users import audit, proposals
from users.models import Proposal

THREADS = 64
TWO_PERSON_POLICY = policy(approval_above=Decimal(0))
pytestmark = pytest.mark.django_db(transaction=True)


def kinds(answers: list[Any]) -> dict[str, int]:
    return dict(Counter(type(answer).__name__ for answer in answers))


def staked(winners: int = 1) -> Market:
    made = builders.market(fee_pct=0)
    for _ in range(winners):
        orm_bet(made, member(), "Yes", 100)
        orm_bet(made, member(), "No", 100)
    return made


def undoing(of: Market, rules: Any = POLICY) -> Any:
    return undo.undo(market_id=of.pk, reason="Wrong.", by=actor(), at=after(60), policy=rules)


def withdrawing(of: Market) -> Any:
    return resolutions.withdraw(market_id=of.pk, reason="Wrong.", by=actor(), at=after(60))


def test_one_of_many_concurrent_resolves_and_voids_succeeds() -> None:
    # given
    made = staked()

    # when
    answers = at_once(*[partial(resolve, made, "Yes"), partial(resolve, made, rule="VOID")] * (THREADS // 2))

    # then
    assert kinds(answers) == {"Resolved": 1, "MarketAlreadyResolved": THREADS - 1}
    assert Settlement.objects.count() == 1
    assert audit.verify().entries == 1


def test_one_approval_succeeds_among_concurrent_decisions_on_a_proposed_market() -> None:
    # given
    made, first, second, third = staked(), operator(), operator(), operator()
    proposed = resolve(made, "Yes", by=first, policy=TWO_PERSON_POLICY)
    approve = partial(
        proposals.approve, proposal_id=proposed.proposal_id, preview_hash=proposed.preview_hash, by=actor(second),
        at=AT, holds=anything, acts=TWO_PERSON_ACTS,
    )  # fmt: skip

    # when
    answers = at_once(
        *[
            approve,
            partial(resolve, made, "No", by=third, policy=TWO_PERSON_POLICY),
            partial(resolve, made, rule="VOID", by=third, policy=TWO_PERSON_POLICY),
            partial(undoing, made, TWO_PERSON_POLICY),
        ]
        * (THREADS // 4)
    )

    # then
    found = kinds(answers)
    assert (found.pop("Resolved"), found.pop("ProposalDecided"), found.pop("NotUndoable")) == (1, 15, 16)
    assert sum(found.values()) == 32
    assert set(found) <= {"ProposalWaits", "MarketAlreadyResolved"}
    run = Settlement.objects.get()
    assert (run.weights, run.approved_by, Proposal.objects.get().state) == ({"Yes": "100"}, second, "APPROVED")
    assert (audit.verify().entries, audit.verify().difference) == (2, None)


def test_one_undo_succeeds_among_concurrent_decisions_on_a_settled_market() -> None:
    # given
    made = staked()
    resolve(made, "Yes")
    settle(made)

    # when
    calls = [partial(undoing, made), partial(undoing, made), partial(resolve, made, "No"), partial(withdrawing, made)]
    answers = at_once(*calls * (THREADS // 4))

    # then
    found = kinds(answers)
    assert (found.pop("Undoing"), found.pop("NotUndoable"), found.pop("MarketAlreadyResolved")) == (1, 31, 16)
    assert set(found) <= {"AlreadyReleased", "NothingToWithdraw"}
    assert sum(found.values()) == 16

    # when: many workers carry the undo out
    carry_out = partial(undo.carry_out, market_id=made.pk, at=after(61), policy=POLICY, keep_going=lambda: True)
    assert at_once(*[carry_out] * 16) == [True] * 16

    # then
    made.refresh_from_db()
    assert made.status == "CLOSED"
    assert journal.balance(journal.pool(made.pk)) == 200
    assert len(transfers(code="undo")) == 1


@pytest.mark.parametrize("chunk", [3, 20_000])
def test_payout_claimed_during_an_undo_becomes_a_debt_others_are_cancelled(chunk: int) -> None:
    # given: twenty winners whose payouts are being sent
    made, rules = staked(20), policy(settlement_chunk=chunk)
    resolve(made, "Yes")
    settle(made)

    def send() -> int:
        sent = claims.claim(at=AT, policy=rules, addresses=ADDRESSES, limit=2)
        for claim in sent:
            responses.record(claim, READ_TIMEOUT, at=AT, policy=rules)
        return len(sent)

    def take_back() -> int:
        undoing(made)
        return int(undo.carry_out(market_id=made.pk, at=AT, policy=rules, keep_going=lambda: True))

    # when
    answers = at_once(*[send] * 6, take_back, *[send] * 6)

    # then
    sent = Attempt.objects.count()
    assert kinds(answers) == {"int": 13}
    assert sent == sum(answers) - 1
    made.refresh_from_db()
    assert made.status == "CLOSED"
    assert journal.balance(journal.pool(made.pk)) == 4000
    states = Counter(Transaction.objects.values_list("status", flat=True))
    assert states == Counter(
        {state: count for state, count in (("PROCESSING", sent), ("CANCELLED", 20 - sent)) if count}
    )
    assert list(Recovery.objects.values_list("amount", flat=True)) == [200] * sent


def test_one_of_many_concurrent_proposals_waits() -> None:
    made, staff = staked(), [operator() for _ in range(THREADS)]

    answers = at_once(*[partial(resolve, made, "Yes", by=one, policy=TWO_PERSON_POLICY) for one in staff])

    assert kinds(answers) == {"Proposed": 1, "ProposalWaits": THREADS - 1}
    assert proposals.Proposal.objects.count() == 1
