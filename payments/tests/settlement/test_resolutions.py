"""Deciding a market: by one, by two, never by who has a stake in it; scratched outcomes, and bets that came late."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from markets import locks
from markets.models import Bet, Market
from payments import own_affairs
from payments.ledger import journal
from payments.models import Proposal, Settlement, Transaction
from payments.payouts.sending import claims
from payments.settlement import approvals, preview, proposals, resolutions, settling, undo
from payments.settlement.decision import BadCloseTime, Decision, Evidence
from testing import builders
from testing.builders import AT, actor, bet, member, nothing_moved, operator, orm_bet, policy, resolve, settle
from testing.payout_steps import after
from users.models import AuditEntry, CustomUser

TWO = policy(approval_above=Decimal(200))
HERE = actor()


def staked(*, pool: int = 300, **fields: Any) -> Market:
    """A market with 100 on Yes, and what is left of the pool on No."""
    made = builders.market(**fields)
    orm_bet(made, member(), "Yes", 100)
    orm_bet(made, member(), "No", pool - 100)
    return made


def hash_now(made: Market, outcome: str = "Yes") -> str:
    weights = {outcome: Decimal(100)}
    return preview.figures(made, Decision("WINNER", weights), at=AT, policy=TWO).preview_hash


def approve(proposed: proposals.Proposed, by: CustomUser, preview_hash: str | None = None) -> Any:
    wanted = preview_hash or proposed.preview_hash
    return approvals.approve(proposal_id=proposed.proposal_id, preview_hash=wanted, by=actor(by), at=AT, policy=TWO)


def reject(proposed: proposals.Proposed, by: CustomUser) -> Proposal:
    return approvals.reject(proposal_id=proposed.proposal_id, reason="Not so.", by=actor(by), at=AT)


def bet_again(on: Market) -> None:
    """A bet comes although a proposal waits: someone opened the market again."""
    Market.objects.filter(pk=on.pk).update(status="OPEN")
    orm_bet(on, member(), "No", 1)


# --- seen before, decided after --------------------------------------------------------------------------------------


def test_a_resolve_with_the_hash_of_its_preview_is_done_only_while_the_numbers_stand(db: None) -> None:
    # given
    made = staked()
    seen = hash_now(made)
    orm_bet(made, member(), "No", 1)

    # then
    with nothing_moved(), pytest.raises(proposals.PreviewMoved):
        resolve(made, preview_hash=seen)

    # when
    resolved = resolve(made, preview_hash=hash_now(made))

    # then
    assert isinstance(resolved, resolutions.Resolved)


@pytest.mark.parametrize("change", ["fee", "policy", "outcome", "close"])
def test_whatever_decides_money_moves_the_hash(db: None, change: str) -> None:
    # given
    made = staked()
    seen = hash_now(made)

    # when
    outcome, rules = "Yes", TWO
    if change == "fee":
        made.platform_fee_pct = Decimal("4.99")
    elif change == "policy":
        rules = policy(min_amount=100_000)
    elif change == "outcome":
        outcome = "No"
    else:
        made.effective_close_at = AT + timedelta(hours=1)

    # then
    moved = preview.figures(made, Decision("WINNER", {outcome: Decimal(100)}), at=AT, policy=rules)
    assert moved.preview_hash != seen


def test_evidence_and_who_decided_are_kept_with_the_resolution_and_in_the_trail(db: None) -> None:
    made, staff = staked(), operator()

    resolve(made, by=staff, evidence=Evidence(url="https://example.com/score", note="2 : 1"))

    run = Settlement.objects.get()
    assert (run.evidence_url, run.evidence_note, run.resolved_by) == ("https://example.com/score", "2 : 1", staff)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor_id, entry.subject, entry.source) == (
        "market.resolve",
        staff.pk,
        f"market:{made.pk}",
        "127.0.0.1",
    )
    assert '"status":"OPEN"' in entry.before and '"https://example.com/score"' in entry.after


# --- two people ------------------------------------------------------------------------------------------------------


def test_above_the_threshold_a_resolve_is_a_proposal_that_a_second_person_approves(db: None) -> None:
    # given
    made, first, second = staked(), operator(), operator()

    # when
    proposed = resolve(made, by=first, policy=TWO, evidence=Evidence(note="2 : 1"))

    # then: nothing is decided, and no bet can move the numbers
    made.refresh_from_db()
    assert isinstance(proposed, proposals.Proposed) and proposed.preview_hash == hash_now(made)
    assert made.status == "CLOSED" and not Settlement.objects.exists()

    # when
    resolved = approve(proposed, second)

    # then
    made.refresh_from_db()
    run = Settlement.objects.get()
    assert isinstance(resolved, resolutions.Resolved) and made.status == "RESOLVED"
    assert (run.resolved_by, run.approved_by, run.evidence_note) == (first, second, "2 : 1")
    assert Proposal.objects.get().state == "APPROVED"
    assert list(AuditEntry.objects.order_by("pk").values_list("action", "actor_id")) == [
        ("market.propose", first.pk),
        ("market.resolve", second.pk),
    ]
    third = operator()
    with nothing_moved(), pytest.raises(approvals.ProposalDecided):
        approve(proposed, third)


def test_up_to_the_threshold_one_is_enough(db: None) -> None:
    assert isinstance(resolve(staked(pool=200), by=operator(), policy=TWO), resolutions.Resolved)


def test_who_proposed_does_not_approve_but_may_take_it_back(db: None) -> None:
    # given
    made, first = staked(), operator()
    proposed = resolve(made, by=first, policy=TWO)

    # then
    with nothing_moved(), pytest.raises(approvals.ProposerCannotApprove):
        approve(proposed, first)

    # when
    reject(proposed, first)

    # then: members may bet again
    made.refresh_from_db()
    assert made.status == "OPEN" and Proposal.objects.get().state == "REJECTED"
    bet(made, member(5), "Yes", 5)


@pytest.mark.parametrize("was", ["closed before", "past its end"])
def test_a_rejected_proposal_opens_only_what_it_had_closed_and_what_has_not_ended(db: None, was: str) -> None:
    made = staked()
    if was == "closed before":
        Market.objects.filter(pk=made.pk).update(status="CLOSED")
    else:
        Market.objects.filter(pk=made.pk).update(end_date=AT)

    reject(resolve(made, by=operator(), policy=TWO), operator())

    made.refresh_from_db()
    assert made.status == "CLOSED"


def test_an_approval_names_the_hash_that_was_proposed(db: None) -> None:
    proposed, second = resolve(staked(), by=operator(), policy=TWO), operator()

    with nothing_moved(), pytest.raises(proposals.PreviewMoved):
        approve(proposed, second, "0" * 64)


def test_a_bet_that_came_after_a_proposal_makes_it_stale(db: None) -> None:
    # given
    made = staked()
    proposed = resolve(made, by=operator(), policy=TWO)
    bet_again(made)

    # when
    with pytest.raises(proposals.PreviewMoved, match="stale"):
        approve(proposed, operator())

    # then
    made.refresh_from_db()
    assert made.status == "OPEN" and not Settlement.objects.exists()
    assert Proposal.objects.get().state == "STALE"
    third = operator()
    with nothing_moved(), pytest.raises(approvals.ProposalDecided):
        approve(proposed, third)
    assert isinstance(resolve(made, by=operator(), policy=TWO), proposals.Proposed)


def test_while_a_proposal_waits_nothing_else_is_decided(db: None) -> None:
    made, other = staked(), operator()
    resolve(made, by=operator(), policy=TWO)

    with nothing_moved():
        for rule in ("WINNER", "VOID"):
            with pytest.raises(proposals.ProposalWaits):
                resolve(made, "No", rule=rule, by=other, policy=TWO)


def test_a_void_above_the_threshold_takes_two_and_is_approved_as_a_void(db: None) -> None:
    made = staked()
    proposed = resolve(made, rule="VOID", by=operator(), policy=TWO)
    assert isinstance(proposed, proposals.Proposed)

    approve(proposed, operator())
    settle(made)

    assert made.status == "VOID"
    assert set(Transaction.objects.values_list("type", "status")) == {("REFUND", "COMPLETED")}


def test_an_undo_above_the_threshold_takes_two_and_stops_the_sending_at_once(db: None) -> None:
    # given
    made = staked()
    resolve(made)
    settle(made)

    # when
    proposed = undo.undo(market_id=made.pk, reason="Wrong.", by=actor(operator()), at=AT, policy=TWO)

    # then
    assert isinstance(proposed, proposals.Proposed)
    assert Settlement.objects.get().state == "SETTLED" and not claims.any_due(at=after(1), policy=TWO)

    # when: rejected, it is sent again
    reject(proposed, operator())
    assert claims.any_due(at=after(1), policy=TWO)

    # when: proposed again and approved
    proposed = undo.undo(market_id=made.pk, reason="Wrong.", by=actor(operator()), at=AT, policy=TWO)
    assert isinstance(proposed, proposals.Proposed)
    begun = approve(proposed, operator())

    # then
    assert isinstance(begun, undo.Undoing)
    assert undo.carry_out(market_id=made.pk, at=AT, policy=TWO, keep_going=lambda: True)
    made.refresh_from_db()
    assert made.status == "CLOSED" and journal.balance(journal.pool(made.pk)) == 300


def test_the_machine_alone_proposes_and_approves_nothing(db: None) -> None:
    made = staked()
    with nothing_moved(), pytest.raises(proposals.PersonNeeded):
        resolve(made, policy=TWO)
    proposed = resolve(made, by=operator(), policy=TWO)
    with nothing_moved(), pytest.raises(proposals.PersonNeeded):
        approvals.approve(
            proposal_id=proposed.proposal_id, preview_hash=proposed.preview_hash, by=HERE, at=AT, policy=TWO
        )


def test_a_proposal_that_is_not_there_is_neither_approved_nor_rejected(db: None) -> None:
    with pytest.raises(approvals.ProposalNotFound):
        approvals.approve(proposal_id=1, preview_hash="", by=actor(operator()), at=AT, policy=TWO)
    with pytest.raises(approvals.ProposalNotFound):
        approvals.reject(proposal_id=1, reason="", by=HERE, at=AT)


def test_an_operator_with_a_stake_in_the_market_decides_nothing_about_it(db: None) -> None:
    # given
    made, staff, proposer = staked(outcomes=("Yes", "No", "Draw")), operator(), operator()
    orm_bet(made, staff, "Yes", 1)
    proposed = resolve(made, by=proposer, policy=TWO)

    # then
    with nothing_moved():
        for decide in (lambda: approve(proposed, staff), lambda: reject(proposed, staff)):
            with pytest.raises(own_affairs.StakeInMarket):
                decide()
    reject(proposed, proposer)
    with nothing_moved():
        for decide in (
            lambda: resolve(made, by=staff),
            lambda: resolve(made, by=staff, policy=TWO),
            lambda: resolve(made, rule="VOID", by=staff),
            lambda: resolutions.scratch(
                market_id=made.pk, outcome="Draw", reason="", by=actor(staff), at=AT, policy=policy()
            ),
        ):
            with pytest.raises(own_affairs.StakeInMarket):
                decide()
    resolve(made)
    with nothing_moved(), pytest.raises(own_affairs.StakeInMarket):
        resolutions.withdraw(market_id=made.pk, reason="", by=actor(staff), at=AT)
    settle(made)
    with nothing_moved(), pytest.raises(own_affairs.StakeInMarket):
        undo.undo(market_id=made.pk, reason="", by=actor(staff), at=AT, policy=policy())


# --- one outcome scratched -------------------------------------------------------------------------------------------


def scratch(made: Market, outcome: str = "C", at: Any = AT) -> resolutions.Resolved:
    return resolutions.scratch(
        market_id=made.pk, outcome=outcome, reason="Did not start.", by=HERE, at=at, policy=policy()
    )


def race() -> tuple[Market, list[CustomUser]]:
    """Three runners: 100 on A, 50 and 30 on B, 20 and 7 on C."""
    made, users = builders.market(("A", "B", "C"), fee_pct=0), [member(1000) for _ in range(5)]
    for user, outcome, amount in zip(users, "ABBCC", (100, 50, 30, 20, 7), strict=True):
        bet(made, user, outcome, amount)
    return made, users


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_a_scratched_outcome_gives_its_stakes_back_and_the_market_goes_on(db: None, chunk: int) -> None:
    # given
    made, users = race()
    rules = policy(settlement_chunk=chunk)

    # when
    scratch(made)
    settle(made, policy=rules)

    # then
    assert made.status == "OPEN" and made.running_outcomes == ("A", "B")
    assert [CustomUser.objects.get(pk=user.pk).balance for user in users] == [900, 950, 970, 1000, 1000]
    assert journal.balance(journal.pool(made.pk)) == 180
    assert list(Transaction.objects.order_by("user").values_list("type", "amount", "status")) == [
        ("REFUND", 20, "COMPLETED"),
        ("REFUND", 7, "COMPLETED"),
    ]
    bet(made, users[4], "B", 20)

    # when
    resolve(made, "B")
    settle(made, policy=rules)

    # then: 100 × (50, 30, 20) come to the winners beside their stakes
    assert list(made.bets.order_by("pk").values_list("result", "payout")) == [
        ("LOST", 0),
        ("WON", 100),
        ("WON", 60),
        ("REFUNDED", 20),
        ("REFUNDED", 7),
        ("WON", 40),
    ]
    assert Settlement.objects.get(state="SETTLED", rule="WINNER").pool == 200

    # when: undone, what was scratched stays so
    builders.undo(made, policy=rules)
    assert journal.balance(journal.pool(made.pk)) == 200
    resolve(made, rule="VOID")
    settle(made, policy=rules)

    # then
    assert made.status == "VOID" and journal.balance(journal.pool(made.pk)) == 0


def test_a_scratched_outcome_takes_no_bets_and_does_not_win(db: None) -> None:
    # given
    made, users = race()
    scratch(made)

    # then
    with nothing_moved():
        with pytest.raises(locks.OutcomeNotInMarket):
            bet(made, users[0], "C", 5)
        with pytest.raises(IntegrityError, match="is scratched and takes no bets"), transaction.atomic():
            orm_bet(made, users[0], "C", 5)
        with pytest.raises(ValueError, match="no outcome 'C'"):
            resolve(made, "C")
        with pytest.raises(locks.OutcomeNotInMarket):
            scratch(made)
        with pytest.raises(IntegrityError, match="not put back"), transaction.atomic():
            made.outcomes.filter(name="C").update(scratched_at=None)
    settle(made)


def test_two_outcomes_stay_at_least_and_only_an_open_market_is_scratched(db: None) -> None:
    (made, _), two = race(), builders.market()
    with nothing_moved():
        with pytest.raises(resolutions.TooFewOutcomes):
            scratch(two, "Yes")
    Market.objects.filter(pk=made.pk).update(end_date=AT)
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        scratch(made)
    Market.objects.filter(pk=made.pk).update(end_date=builders.FAR, status="CLOSED")
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        scratch(made)


def test_a_resolve_after_a_scratch_is_settled_after_it(db: None) -> None:
    # given: both wait
    made, _ = race()
    scratch(made)
    resolve(made, "A")

    # when
    first = settle(made)
    second = settle(made)

    # then
    assert (first.settled, second.settled) == (False, True)
    assert list(Settlement.objects.order_by("number").values_list("rule", "state", "pool")) == [
        ("SCRATCH", "SETTLED", 27),
        ("WINNER", "SETTLED", 180),
    ]
    assert made.status == "SETTLED"


def test_bets_made_through_the_orm_are_booked_before_a_scratch_gives_them_back(db: None) -> None:
    made = builders.market(("A", "B", "C"))
    user = member()
    orm_bet(made, user, "C", 20)
    orm_bet(made, user, "A", 5)

    scratch(made)
    settle(made)

    assert CustomUser.objects.get(pk=user.pk).balance == 20
    assert journal.balance(journal.pool(made.pk)) == 5


# --- bets that came too late -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_bets_after_the_events_end_are_refunded_before_the_pool_is_divided(db: None, chunk: int) -> None:
    # given: one member bet in time and again when the result was known
    made, cheat, loser, late = builders.market(fee_pct=0), member(), member(), member()
    orm_bet(made, cheat, "Yes", 100, at=AT)
    orm_bet(made, cheat, "Yes", 900, at=after(61))
    orm_bet(made, loser, "No", 50, at=after(60))
    orm_bet(made, late, "No", 30, at=after(70))

    # when
    resolve(made, "Yes", effective_close_at=after(60), at=after(100))
    settle(made, policy=policy(settlement_chunk=chunk), at=after(100))

    # then
    assert list(made.bets.order_by("pk").values_list("result", "payout")) == [
        ("WON", 150),
        ("REFUNDED", 900),
        ("LOST", 0),
        ("REFUNDED", 30),
    ]
    run = Settlement.objects.get()
    assert (run.pool, run.late_refund, run.effective_close_at) == (150, 930, after(60))
    rows = Transaction.objects.order_by("user", "type").values_list("user", "type", "destination", "amount")
    assert list(rows) == [
        (cheat.pk, "PAYOUT", "mpesa", 150),
        (cheat.pk, "REFUND", "wallet", 900),
        (late.pk, "REFUND", "wallet", 30),
    ]

    # when: undone and resolved without it
    builders.undo(made, at=after(200))
    assert journal.balance(journal.pool(made.pk)) == 1080


def test_where_every_bet_came_too_late_all_go_back(db: None) -> None:
    made, user = builders.market(), member()
    orm_bet(made, user, "Yes", 100, at=after(61))

    resolve(made, "Yes", effective_close_at=after(60), at=after(100))
    settle(made)

    assert made.status == "SETTLED" and CustomUser.objects.get(pk=user.pk).balance == 100


def test_an_end_that_lies_ahead_is_refused(db: None) -> None:
    made = staked()
    with nothing_moved(), pytest.raises(BadCloseTime):
        resolve(made, effective_close_at=after(1), at=AT)


def test_a_market_keeps_its_end_for_a_later_resolve(db: None) -> None:
    made = staked()
    Market.objects.filter(pk=made.pk).update(effective_close_at=AT - timedelta(seconds=1))

    resolve(made)

    assert Settlement.objects.get().effective_close_at == AT - timedelta(seconds=1)
    assert settling.to_settle(10) == [made.pk]
    assert Bet.objects.count() == 2
