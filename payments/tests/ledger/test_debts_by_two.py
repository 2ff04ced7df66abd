"""Decisions on debts above the threshold take two people, alone or with the person's others of a day."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from payments import own_affairs
from payments.ledger import debt_decisions, journal
from payments.models import Recovery, Settlement
from payments.tests.ledger.test_receivables import owe, repay
from testing.builders import AT, actor, at_once, bearer, member, nothing_moved, operator, settled_market
from testing.rest import assert_refused, post
from testing.settlement_steps import anything
from users import audit, figures, proposals
from users.models import AuditEntry, CustomUser, Proposal

pytestmark = pytest.mark.django_db(transaction=True)
NOW = AT + timedelta(hours=1)
Decide = Callable[..., list[Recovery] | proposals.Proposed]
ACTS: dict[str, Decide] = {
    "recovery.set_off": partial(debt_decisions.decide_set_off, pct=50),
    "recovery.write_off": partial(debt_decisions.write_off, reason="Gone abroad."),
}


@pytest.fixture
def _thresholds() -> None:
    with transaction.atomic():
        for act_name in ACTS:
            figures.set_value(figures.Change(f"threshold:{act_name}", "300", AT, "Test"), by=audit.MACHINE, at=AT)


def approve(made: Any, by: CustomUser) -> Any:
    return proposals.approve(
        proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor(by), at=NOW,
        acts=debt_decisions.procedures(),
    )  # fmt: skip


def market_debts(*amounts: str) -> tuple[int, list[Recovery]]:
    """Make a debt of each amount by a member, from one settled market."""
    settled = settled_market([(member(), "Yes", 5)])
    settlement = Settlement.objects.get(market=settled)
    return settled.pk, [owe(member(), amount, settlement_id=settlement.pk) for amount in amounts]


@pytest.mark.usefixtures("_thresholds")
@pytest.mark.parametrize("act_name", ACTS)
def test_decisions_that_sum_above_the_threshold_take_a_second_person(act_name: str) -> None:
    # given
    first, second, decide = operator(), operator(), ACTS[act_name]
    small, next_one = owe(member(), "200"), owe(member(), "100.01")

    # when
    done = decide(recovery_id=small.pk, by=actor(first), at=NOW)
    made = decide(recovery_id=next_one.pk, by=actor(first), at=NOW)

    # then
    assert isinstance(done, list)
    assert isinstance(made, proposals.Proposed)
    next_one.refresh_from_db()
    assert (next_one.decision, next_one.written_off) == ("OPEN", 0)
    with nothing_moved(), pytest.raises(proposals.ProposalWaits):
        decide(recovery_id=next_one.pk, by=actor(second), at=NOW)
    with nothing_moved(), pytest.raises(proposals.ProposerCannotApprove):
        approve(made, first)

    # when
    (decided,) = approve(made, second)

    # then
    decided.refresh_from_db()
    expected = ("SET_OFF", 50, 0) if act_name == "recovery.set_off" else ("WRITTEN_OFF", None, Decimal("100.01"))
    assert (decided.decision, decided.pct, decided.written_off) == expected
    assert (decided.decided_by, Proposal.objects.get().amount) == (second, Decimal("100.01"))
    people = AuditEntry.objects.filter(action=act_name, subject=f"recovery:{next_one.pk}").order_by("number")
    assert list(people.values_list("actor", flat=True)) == [first.pk, second.pk]


@pytest.mark.usefixtures("_thresholds")
@pytest.mark.parametrize("act_name", ACTS)
def test_debts_of_a_whole_market_count_together(act_name: str) -> None:
    market_id, debts = market_debts("200", "200")
    made = ACTS[act_name](market_id=market_id, by=actor(operator()), at=NOW)
    assert isinstance(made, proposals.Proposed)
    assert Proposal.objects.get().amount == 400
    assert approve(made, operator()) == debts
    assert journal.balance(journal.BAD_DEBT) == (400 if act_name == "recovery.write_off" else 0)


@pytest.mark.usefixtures("_thresholds")
def test_proposal_is_stale_after_a_repayment_or_another_decision() -> None:
    # given
    first, second, debtor = operator(), operator(), member()
    debt = owe(debtor, "400")
    made = debt_decisions.write_off(recovery_id=debt.pk, reason="Gone.", by=actor(first), at=NOW)
    repay(debtor, "0.01")

    # when, then
    with pytest.raises(proposals.PreviewMoved):
        approve(made, second)
    made = debt_decisions.decide_set_off(recovery_id=debt.pk, pct=50, by=actor(first), at=NOW)
    Recovery.objects.filter(pk=debt.pk).update(decision="SET_OFF", pct=100)
    with pytest.raises(proposals.PreviewMoved):
        approve(made, second)
    assert list(Proposal.objects.values_list("state", flat=True)) == ["STALE", "STALE"]
    assert journal.balance(journal.BAD_DEBT) == 0


@pytest.mark.usefixtures("_thresholds")
def test_debtor_may_not_approve_the_write_off_of_their_debt() -> None:
    debtor = operator()
    made = debt_decisions.write_off(recovery_id=owe(debtor, "400").pk, reason="Gone.", by=actor(operator()), at=NOW)
    with nothing_moved(), pytest.raises(own_affairs.OwnDebt):
        approve(made, debtor)


@pytest.mark.usefixtures("_thresholds")
def test_approvals_at_once_write_off_once() -> None:
    debt = owe(member(), "400")
    made = debt_decisions.write_off(recovery_id=debt.pk, reason="Gone.", by=actor(operator()), at=NOW)
    answers = at_once(*[partial(approve, made, operator()) for _ in range(4)])
    assert sorted(type(answer).__name__ for answer in answers) == ["ProposalDecided"] * 3 + ["list"]
    assert journal.balance(journal.BAD_DEBT) == 400


def test_without_a_threshold_one_person_is_enough() -> None:
    for decide in ACTS.values():
        assert isinstance(decide(recovery_id=owe(member(), "240000").pk, by=actor(operator()), at=NOW), list)


@pytest.mark.usefixtures("_thresholds")
@pytest.mark.parametrize("call", ["set-off", "write-off"])
def test_call_above_the_threshold_answers_with_a_proposal(client: Client, call: str) -> None:
    # given
    first, second = operator(), operator()
    market_id, _ = market_debts("200", "200")
    body = {"market_id": market_id} | ({"pct": 50} if call == "set-off" else {"reason": "Gone."})

    # when
    answer = post(client, f"/api/payments/admin/recoveries/{call}/", body, bearer(first))

    # then
    made = answer.json()
    assert (answer.status_code, made["status"], made["subject"]) == (202, "proposed", f"market_debts:{market_id}")
    approval = {"proposal_id": made["proposal_id"], "preview_hash": made["preview_hash"]}
    assert_refused(post(client, "/api/markets/admin/approve/", approval, bearer(first)), 403, "proposer_cannot_approve")
    assert post(client, "/api/markets/admin/approve/", approval, bearer(second)).status_code == 200
    assert set(Recovery.objects.values_list("decision", flat=True)) == {
        "SET_OFF" if call == "set-off" else "WRITTEN_OFF"
    }
