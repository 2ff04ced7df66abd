"""Resolutions: a market is resolved or voided once, and one of its outcomes can be scratched."""

import json
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from markets import locks, parimutuel
from markets.models import Bet, Market
from payments import own_affairs
from payments.ledger import journal
from payments.models import Settlement, Transaction
from payments.settlement import preview, resolutions, settling, undo
from payments.settlement.decision import BadCloseTime, Decision, Evidence, UnknownReason
from testing import builders
from testing.builders import AT, actor, bet, member, nothing_moved, operator, orm_bet, policy, resolve, settle
from testing.payout_steps import after
from testing.settlement_steps import OUTCOMES, TWO_PERSON_POLICY, approve, hash_now, race, reject, scratch, staked
from users import proposals
from users.models import AuditEntry, CustomUser, Proposal


def test_resolve_closes_an_open_market_and_opens_a_settlement(db: None, at: datetime) -> None:
    market, staff = builders.market(), member(is_staff=True)

    resolved = resolve(market, "No", by=staff, at=at)

    settlement = Settlement.objects.get()
    market.refresh_from_db()
    assert resolved == resolutions.Resolved(market.pk, settlement.pk, str(settlement.public_id), "WINNER", "No")
    assert (market.status, market.resolved_outcome, market.resolved_at, market.settled_at) == (
        "RESOLVED",
        "No",
        at,
        None,
    )
    assert (settlement.number, settlement.rule, settlement.weights, settlement.state, settlement.resolved_by) == (
        1,
        "WINNER",
        {"No": "100"},
        "PENDING",
        staff,
    )
    assert (settlement.fee_pct, settlement.protect_stake, settlement.pool) == (5, True, None)
    assert settling.to_settle(limit=10) == [market.pk]


def test_only_a_single_winner_is_the_resolved_outcome(db: None) -> None:
    for rule, weights in (("JOINT", {"A": 50, "B": 50}), ("SPLIT", {"A": 60, "C": 40}), ("VOID", None)):
        market = builders.market(OUTCOMES)
        resolve(market, rule=rule, weights=weights)  # type: ignore[arg-type]
        market.refresh_from_db()
        assert (market.status, market.resolved_outcome) == ("RESOLVED", None)


def test_refused_resolve_moves_nothing(db: None) -> None:
    market, resolved = builders.market(), builders.market()
    resolve(resolved)
    with nothing_moved():
        with pytest.raises(parimutuel.UnknownOutcome):
            resolve(market, "Maybe")
        with pytest.raises(parimutuel.BadWeights):
            resolve(market, rule="JOINT", weights={"Yes": 50, "No": 49})
        for rule, weights, reason in (
            ("VOID", {}, "because"),
            ("VOID", {}, ""),
            ("WINNER", {"Yes": Decimal(100)}, "error"),
        ):
            with pytest.raises(UnknownReason):
                resolutions.resolve(
                    market_id=market.pk,
                    decision=Decision(rule, weights, reason),  # type: ignore[arg-type]
                    by=actor(),
                    at=AT,
                    policy=policy(),
                )
        with pytest.raises(resolutions.MarketAlreadyResolved):
            resolve(resolved, "No")
        with pytest.raises(locks.MarketNotFound):
            resolve(Market(pk=999_999))
        with pytest.raises(locks.MarketNotFound):
            settle(Market(pk=999_999))


def test_evidence_and_decider_are_in_settlement_and_audit_trail(db: None) -> None:
    market, staff = staked(), operator()

    resolve(market, by=staff, evidence=Evidence(url="https://example.com/score", note="2 : 1"))

    settlement = Settlement.objects.get()
    assert (settlement.evidence_url, settlement.evidence_note, settlement.resolved_by) == (
        "https://example.com/score",
        "2 : 1",
        staff,
    )
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor_id, entry.subject, entry.source) == (
        "market.resolve",
        staff.pk,
        f"market:{market.pk}",
        "127.0.0.1",
    )
    assert '"status":"OPEN"' in entry.before
    assert '"https://example.com/score"' in entry.after
    assert '"proposed_by":null' in entry.after


@pytest.mark.parametrize(("limit", "is_proposed"), [("1079.99", True), ("1080", False)])
def test_late_stakes_count_for_the_limit_of_a_resolve(db: None, limit: str, is_proposed: bool) -> None:
    # given: 150 shillings in time, and 930 that go back because the bets came late
    market = builders.market(fee_pct=0)
    for outcome, amount, at in (("Yes", 100, after(0)), ("No", 50, after(60)), ("Yes", 930, after(61))):
        orm_bet(market, member(), outcome, amount, at=at)

    # when
    answer = resolve(
        market,
        by=operator(),
        effective_close_at=after(60),
        at=after(100),
        policy=policy(approval_above=Decimal(limit)),
    )

    # then
    assert isinstance(answer, proposals.Proposed) == is_proposed


def test_operator_with_a_stake_may_decide_nothing(db: None) -> None:
    # given
    market, staff, proposer = staked(outcomes=("Yes", "No", "Draw")), operator(), operator()
    orm_bet(market, staff, "Yes", 1)
    proposed = resolve(market, by=proposer, policy=TWO_PERSON_POLICY)

    # then
    with nothing_moved():
        for decide in (lambda: approve(proposed, staff), lambda: reject(proposed, staff)):
            with pytest.raises(own_affairs.StakeInMarket):
                decide()
    reject(proposed, proposer)
    with nothing_moved():
        for decide in (
            lambda: resolve(market, by=staff),
            lambda: resolve(market, by=staff, policy=TWO_PERSON_POLICY),
            lambda: resolve(market, rule="VOID", by=staff),
            lambda: resolutions.scratch(
                market_id=market.pk, outcome="Draw", reason="", by=actor(staff), at=AT, policy=policy()
            ),
        ):
            with pytest.raises(own_affairs.StakeInMarket):
                decide()
    resolve(market)
    with nothing_moved(), pytest.raises(own_affairs.StakeInMarket):
        resolutions.withdraw(market_id=market.pk, reason="", by=actor(staff), at=AT)
    settle(market)
    with nothing_moved(), pytest.raises(own_affairs.StakeInMarket):
        undo.undo(market_id=market.pk, reason="", by=actor(staff), at=AT, policy=policy())


def test_withdrawn_resolution_keeps_its_reason_and_is_not_settled(db: None, at: datetime) -> None:
    made, boss = builders.market(), operator()
    resolve(made, "Yes")

    resolutions.withdraw(market_id=made.pk, reason="Read wrongly.", by=actor(boss), at=at)

    settlement = Settlement.objects.get()
    made.refresh_from_db()
    assert (made.status, settlement.state, settlement.undone_by) == ("CLOSED", "WITHDRAWN", boss)
    assert (settlement.undone_at, settlement.undone_reason) == (at, "Read wrongly.")
    entry = AuditEntry.objects.get(action="market.withdraw")
    assert (json.loads(entry.before)["status"], json.loads(entry.after)) == ("RESOLVED", {"status": "CLOSED"})
    assert entry.reason == "Read wrongly."
    assert not settle(made).found


def test_settled_void_is_not_withdrawn_even_within_its_hold(db: None, at: datetime) -> None:
    made, rules = builders.market(), policy(holds=((Decimal(0), timedelta(minutes=30)),))
    bet(made, member(balance=10), "Yes", 10)
    resolve(made, rule="VOID", policy=rules)
    settle(made, policy=rules)
    boss = actor(operator())
    with nothing_moved(), pytest.raises(resolutions.AlreadyReleased, match="is void"):
        resolutions.withdraw(market_id=made.pk, reason="Wrong.", by=boss, at=at)


def test_close_time_that_lies_ahead_is_refused(db: None) -> None:
    market = staked()
    with nothing_moved(), pytest.raises(BadCloseTime):
        resolve(market, effective_close_at=after(1), at=AT)


def test_resolve_uses_the_close_time_of_the_market(db: None) -> None:
    market = staked()
    Market.objects.filter(pk=market.pk).update(effective_close_at=AT - timedelta(seconds=1))

    resolve(market)

    assert Settlement.objects.get().effective_close_at == AT - timedelta(seconds=1)
    assert settling.to_settle(10) == [market.pk]
    assert Bet.objects.count() == 2


# --- previews --------------------------------------------------------------------------------------------------------


def test_resolve_with_a_preview_hash_needs_unchanged_figures(db: None) -> None:
    # given
    market = staked()
    seen = hash_now(market)
    orm_bet(market, member(), "No", 1)

    # then
    with nothing_moved(), pytest.raises(proposals.PreviewMoved):
        resolve(market, preview_hash=seen)

    # when
    resolved = resolve(market, preview_hash=hash_now(market))

    # then
    assert isinstance(resolved, resolutions.Resolved)


@pytest.mark.parametrize("change", ["fee", "policy", "outcome", "close"])
def test_every_input_of_the_money_changes_the_hash(db: None, change: str) -> None:
    # given
    market = staked()
    seen = hash_now(market)

    # when
    outcome, rules = "Yes", TWO_PERSON_POLICY
    if change == "fee":
        market.platform_fee_pct = Decimal("4.99")
    elif change == "policy":
        rules = policy(min_amount=100_000)
    elif change == "outcome":
        outcome = "No"
    else:
        market.effective_close_at = AT + timedelta(hours=1)

    # then
    moved = preview.figures(market, Decision("WINNER", {outcome: Decimal(100)}), at=AT, policy=rules)
    assert moved.preview_hash != seen


# --- scratched outcomes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_scratch_gives_stakes_back_and_the_market_goes_on(db: None, chunk: int) -> None:
    # given
    market, users = race()
    rules = policy(settlement_chunk=chunk)

    # when
    scratch(market)
    settle(market, policy=rules)

    # then
    assert market.status == "OPEN"
    assert market.running_outcomes == ("A", "B")
    entry = AuditEntry.objects.get(action="market.scratch")
    assert (entry.before, entry.after) == ('{"outcomes":["A","B","C"]}', '{"outcomes":["A","B"],"settlement":1}')
    assert [CustomUser.objects.get(pk=user.pk).balance for user in users] == [900, 950, 970, 1000, 1000]
    assert journal.balance(journal.pool(market.pk)) == 180
    assert list(Transaction.objects.order_by("user").values_list("type", "amount", "status")) == [
        ("REFUND", 20, "COMPLETED"),
        ("REFUND", 7, "COMPLETED"),
    ]
    bet(market, users[4], "B", 20)

    # when
    resolve(market, "B")
    settle(market, policy=rules)

    # then: 100 shillings are divided among the winners in proportion to their stakes, in addition to the stakes
    assert list(market.bets.order_by("pk").values_list("result", "payout")) == [
        ("LOST", 0),
        ("WON", 100),
        ("WON", 60),
        ("REFUNDED", 20),
        ("REFUNDED", 7),
        ("WON", 40),
    ]
    assert Settlement.objects.get(state="SETTLED", rule="WINNER").pool == 200

    # when: the settlement is undone; the scratched outcome stays scratched
    builders.undo(market, policy=rules)
    assert journal.balance(journal.pool(market.pk)) == 200
    resolve(market, rule="VOID")
    settle(market, policy=rules)

    # then
    assert market.status == "VOID"
    assert journal.balance(journal.pool(market.pk)) == 0


def test_scratch_names_the_person_who_decided_it(db: None) -> None:
    market, staff = race()[0], operator()
    assert resolutions.may_take_out(market, "C", AT)
    resolutions.scratch(market_id=market.pk, outcome="C", reason="Injured.", by=actor(staff), at=AT, policy=policy())
    settlement = Settlement.objects.get()
    assert (settlement.resolved_by, settlement.approved_by) == (staff, None)
    market.refresh_from_db()
    assert not resolutions.may_take_out(market, "B", AT)


def test_scratched_outcome_takes_no_bets_and_cannot_win(db: None) -> None:
    # given
    market, users = race()
    scratch(market)

    # then
    with nothing_moved():
        with pytest.raises(locks.OutcomeNotInMarket):
            bet(market, users[0], "C", 5)
        with pytest.raises(IntegrityError, match="is scratched and takes no bets"), transaction.atomic():
            orm_bet(market, users[0], "C", 5)
        with pytest.raises(ValueError, match="no outcome 'C'"):
            resolve(market, "C")
        with pytest.raises(locks.OutcomeNotInMarket):
            scratch(market)
        with pytest.raises(IntegrityError, match="not put back"), transaction.atomic():
            market.outcomes.filter(name="C").update(scratched_at=None)
    settle(market)


def propose_scratch(market: Market, by: CustomUser, outcome: str = "C") -> proposals.Proposed:
    made = resolutions.scratch(
        market_id=market.pk, outcome=outcome, reason="Injured.", by=actor(by), at=AT, policy=TWO_PERSON_POLICY
    )
    assert isinstance(made, proposals.Proposed)
    return made


def test_scratch_of_a_small_outcome_counts_the_whole_pool(db: None) -> None:
    # given: the outcome with the smallest stakes may be the winner of the whole pool
    market = builders.market(outcomes=OUTCOMES)
    for outcome, amount in zip(OUTCOMES, (150, 100, 1), strict=True):
        bet(market, member(amount), outcome, amount)

    # when
    propose_scratch(market, operator())

    # then
    assert Proposal.objects.get().amount == 251
    assert market.running_outcomes == OUTCOMES


def test_bet_of_the_proposer_makes_the_proposal_to_scratch_stale(db: None) -> None:
    # given
    market, first, second = builders.market(outcomes=OUTCOMES), operator(balance=50), operator()
    bet(market, member(300), "C", 300)
    made = propose_scratch(market, first)
    bet(market, first, "A", 50)

    # when
    with pytest.raises(proposals.ProposalDecided, match="own affair"):
        approve(made, second)

    # then
    assert Proposal.objects.get().state == "STALE"
    assert market.running_outcomes == OUTCOMES
    propose_scratch(market, second)


def test_scratch_needs_an_open_market_with_three_outcomes(db: None) -> None:
    (market, _), two = race(), builders.market()
    with nothing_moved(), pytest.raises(resolutions.TooFewOutcomes):
        scratch(two, "Yes")
    Market.objects.filter(pk=market.pk).update(end_date=AT)
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        scratch(market)
    closed, _ = race()
    Market.objects.filter(pk=closed.pk).update(status="CLOSED")
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        scratch(closed)


def test_resolve_after_a_scratch_settles_after_it(db: None) -> None:
    # given: the scratch and the resolution both wait to be settled
    market, _ = race()
    scratch(market)
    resolve(market, "A")

    # when
    first = settle(market)
    second = settle(market)

    # then
    assert (first.settled, second.settled) == (False, True)
    assert list(Settlement.objects.order_by("number").values_list("rule", "state", "pool")) == [
        ("SCRATCH", "SETTLED", 27),
        ("WINNER", "SETTLED", 180),
    ]
    assert market.status == "SETTLED"


def test_scratch_books_outside_stakes_before_it_returns_them(db: None) -> None:
    market = builders.market(("A", "B", "C"))
    user = member()
    orm_bet(market, user, "C", 20)
    orm_bet(market, user, "A", 5)

    scratch(market)
    settle(market)

    assert CustomUser.objects.get(pk=user.pk).balance == 20
    assert journal.balance(journal.pool(market.pk)) == 5
