"""A proposal ends in exactly one way, whoever decides it at the same moment."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from payments.models import Settlement
from testing.builders import AT, actor, at_once, operator, resolve
from testing.settlement_steps import TWO_PERSON_ACTS, TWO_PERSON_POLICY, anything, staked
from users import audit, proposals
from users.models import AuditEntry, Proposal
from users.refusal import Refusal

pytestmark = pytest.mark.django_db(transaction=True)
THREADS = 64
DECIDED = ("market.resolve", "proposal.reject", "proposal.withdraw", "proposal.expire")


def result_of(decide: Callable[[], Any]) -> str:
    try:
        done = decide()
    except Refusal as refusal:
        return type(refusal).__name__
    return "won" if done is not False else "nothing to expire"


def test_one_of_64_threads_decides_a_proposal() -> None:
    # given
    market, first, second, third = staked(), operator(), operator(), operator()
    made = resolve(market, "Yes", by=first, policy=TWO_PERSON_POLICY)
    assert isinstance(made, proposals.Proposed)
    end = AT + proposals.LIFE
    reject = partial(
        proposals.reject, proposal_id=made.proposal_id, reason="No.", holds=anything, at=end, acts=TWO_PERSON_ACTS
    )
    ways = [
        partial(
            proposals.approve,
            proposal_id=made.proposal_id,
            preview_hash=made.preview_hash,
            holds=anything,
            by=actor(second),
            at=end - timedelta(microseconds=1),
            acts=TWO_PERSON_ACTS,
        ),
        partial(proposals.expire, proposal_id=made.proposal_id, at=end, acts=TWO_PERSON_ACTS),
        partial(reject, by=actor(third)),
        partial(reject, by=actor(first)),
    ]

    # when
    results = Counter(at_once(*[partial(result_of, way) for way in ways] * (THREADS // 4)))

    # then
    proposal = Proposal.objects.get()
    assert results.pop("won") == 1
    assert set(results) <= {"ProposalDecided", "nothing to expire"}
    assert sum(results.values()) == THREADS - 1
    assert proposal.state != "OPEN"
    assert AuditEntry.objects.filter(action__in=DECIDED).count() == 1
    market.refresh_from_db()
    approved = proposal.state == "APPROVED"
    assert (market.status, Settlement.objects.count()) == (("RESOLVED", 1) if approved else ("OPEN", 0))
    assert audit.verify().difference is None


def test_expired_proposal_opens_its_market_again() -> None:
    market = staked()
    made = resolve(market, "Yes", by=operator(), policy=TWO_PERSON_POLICY)
    end = AT + proposals.LIFE
    assert proposals.to_expire(at=end - timedelta(microseconds=1), limit=9) == []
    assert proposals.to_expire(at=end, limit=9) == [made.proposal_id]
    assert proposals.expire(proposal_id=made.proposal_id, at=end, acts=TWO_PERSON_ACTS)
    market.refresh_from_db()
    assert (market.status, Proposal.objects.get().state) == ("OPEN", "EXPIRED")
    assert not proposals.expire(proposal_id=made.proposal_id, at=end, acts=TWO_PERSON_ACTS)


def test_approval_after_the_end_carries_nothing_out() -> None:
    market = staked()
    made = resolve(market, "Yes", by=operator(), policy=TWO_PERSON_POLICY)
    with pytest.raises(proposals.ProposalDecided, match="expired"):
        proposals.approve(
            proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor(operator()),
            at=AT + proposals.LIFE, acts=TWO_PERSON_ACTS,
        )  # fmt: skip
    market.refresh_from_db()
    assert (market.status, Proposal.objects.get().state) == ("OPEN", "EXPIRED")


def test_expired_undo_lets_payouts_leave_again() -> None:
    from payments.settlement import undo
    from testing.builders import settle

    market, first = staked(), operator()
    resolve(market, "Yes", by=first)
    settle(market)
    made = undo.undo(market_id=market.pk, reason="Wrong.", by=actor(first), at=AT, policy=TWO_PERSON_POLICY)
    assert Settlement.objects.get().stopped_at is not None
    assert isinstance(made, proposals.Proposed)
    proposals.expire(proposal_id=made.proposal_id, at=AT + proposals.LIFE, acts=TWO_PERSON_ACTS)
    assert Settlement.objects.get().stopped_at is None


def test_machines_proposal_blocks_nothing_and_lapses_when_people_decide() -> None:
    # given
    market, person = staked(), operator()
    draft = proposals.Draft("market.void", f"market:{market.pk}", "a" * 64, "no_result", Decimal(300), VOID)
    with_transaction(partial(proposals.make, draft, by=audit.MACHINE, at=AT))

    # when
    resolve(market, "Yes", by=person)

    # then
    market.refresh_from_db()
    assert (market.status, Proposal.objects.get().state) == ("RESOLVED", "STALE")


def test_machines_proposal_takes_two_people() -> None:
    # given
    from payments.settlement import preview
    from payments.settlement.decision import Decision

    market, first, second = staked(), operator(), operator()
    figures = preview.figures(market, Decision("VOID", {}, "no_result"), at=AT, policy=TWO_PERSON_POLICY)
    draft = proposals.Draft("market.void", f"market:{market.pk}", figures.preview_hash, "no_result", Decimal(300), VOID)
    made = with_transaction(partial(proposals.make, draft, by=audit.MACHINE, at=AT))
    approve = partial(
        proposals.approve, proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, at=AT,
        acts=TWO_PERSON_ACTS,
    )  # fmt: skip

    # then
    assert isinstance(approve(by=actor(first)), proposals.ApprovedOnce)
    assert Settlement.objects.count() == 0
    with pytest.raises(proposals.ProposerCannotApprove):
        approve(by=actor(first))
    approve(by=actor(second))
    run = Settlement.objects.get()
    assert (run.rule, run.resolved_by, run.approved_by) == ("VOID", first, second)


def test_person_without_the_acts_permission_cannot_approve() -> None:
    made = resolve(staked(), "Yes", by=operator(), policy=TWO_PERSON_POLICY)
    asked: list[str] = []
    with pytest.raises(proposals.NotYourProposal):
        proposals.approve(
            proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=lambda name: bool(asked.append(name)),
            by=actor(operator()), at=AT, acts=TWO_PERSON_ACTS,
        )  # fmt: skip
    assert asked == ["approve_resolution"]


VOID = {
    "rule": "VOID", "weights": {}, "evidence_url": "", "evidence_note": "", "effective_close_at": None,
    "closed_market": False,
}  # fmt: skip


def with_transaction(make: Callable[[], proposals.Proposed]) -> proposals.Proposed:
    from django.db import transaction

    with transaction.atomic():
        return make()
