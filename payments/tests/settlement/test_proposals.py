"""Proposals: large pools need a second person, and an open proposal blocks other decisions."""

import pytest

from payments.settlement import approvals, resolutions
from testing.builders import AT, nothing_moved, operator, resolve
from testing.settlement_steps import NOBODY, TWO_PERSON_POLICY, anything, staked
from users import proposals


def test_resolve_up_to_the_threshold_needs_one_person(db: None) -> None:
    assert isinstance(resolve(staked(pool=200), by=operator(), policy=TWO_PERSON_POLICY), resolutions.Resolved)


def test_open_proposal_blocks_other_decisions(db: None) -> None:
    market, other = staked(), operator()
    resolve(market, by=operator(), policy=TWO_PERSON_POLICY)

    with nothing_moved():
        for rule in ("WINNER", "VOID"):
            with pytest.raises(proposals.ProposalWaits):
                resolve(market, "No", rule=rule, by=other, policy=TWO_PERSON_POLICY)


def test_machine_may_neither_propose_nor_approve(db: None) -> None:
    market = staked()
    with nothing_moved(), pytest.raises(proposals.PersonNeeded):
        resolve(market, policy=TWO_PERSON_POLICY)
    proposed = resolve(market, by=operator(), policy=TWO_PERSON_POLICY)
    with nothing_moved(), pytest.raises(proposals.PersonNeeded):
        proposals.approve(
            proposal_id=proposed.proposal_id,
            preview_hash=proposed.preview_hash,
            by=NOBODY,
            at=AT,
            holds=anything,
            acts=approvals.procedures(TWO_PERSON_POLICY),
        )
