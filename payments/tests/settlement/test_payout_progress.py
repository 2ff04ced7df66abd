"""Progress of a settlement: counts, the expected end, and the causes for which payouts wait."""

from datetime import datetime, timedelta
from decimal import Decimal

from django.db import transaction

from markets.models import Market
from payments.models import AskFirst, Breaker, Restore, Transaction
from payments.payouts import breakers, waiting
from payments.settlement import payout_progress, resolutions
from testing import builders, console_scenes
from testing.builders import actor, market, member, policy, resolve, settle


def shown(of: Market, at: datetime, **changes: object) -> payout_progress.Progress:
    """Return the progress of a market that has a settlement."""
    progress = payout_progress.progress(of, at=at, policy=policy(**changes))
    assert progress is not None
    return progress


def settled_with(winners: int, at: datetime, **changes: object) -> tuple[Market, list[Transaction]]:
    """Create a settled market. Return it with its payouts."""
    made = market(fee_pct=0)
    for place in range(winners):
        builders.orm_bet(made, member(), "Yes", 100 + place)
    resolve(made, "Yes", at=at)
    settle(made, at=at, policy=policy(**changes))
    return made, list(Transaction.objects.filter(settlement__market=made).order_by("pk"))


def words(progress: payout_progress.Progress) -> list[str]:
    return [wait.words for wait in progress.waits]


def test_progress_counts_bets_and_payouts_and_estimates_the_end(db: None, at: datetime) -> None:
    made = market(fee_pct=0)
    for place in range(4):
        builders.orm_bet(made, member(), "Yes", 100 + place)
    assert payout_progress.progress(made, at=at, policy=policy()) is None
    resolve(made, "Yes", at=at)
    begun = shown(made, at)
    assert (begun.bets, begun.bets_done, begun.finished) == (4, 0, False)
    settle(made, at=at)
    one, *_ = Transaction.objects.filter(settlement__market=made).order_by("pk")
    console_scenes.pay(one, at, "SKG7ABC001", after=10)
    under_way = shown(made, at + timedelta(seconds=20))
    assert (under_way.bets_done, under_way.count, under_way.amount) == (4, 4, Decimal(406))
    assert under_way.by_state["completed"] == (Decimal(100), 1)
    assert under_way.by_state["pending"][1] == 3
    assert (under_way.per_minute, under_way.ends_at) == (1, at + timedelta(seconds=20, minutes=3))
    for place, rest in enumerate(Transaction.objects.filter(settlement__market=made, status="PENDING")):
        console_scenes.pay(rest, at, f"SKG7ABC1{place}")
    done = shown(made, at + timedelta(hours=1))
    assert done.finished
    assert done.ends_at is None


def test_bets_on_a_scratched_outcome_count_in_no_progress(db: None, at: datetime) -> None:
    made = market(["A", "B", "C"], fee_pct=0)
    for outcome in ("A", "B", "C"):
        builders.bet(made, member(balance=100), outcome, 100, at=at)
    resolutions.scratch(market_id=made.pk, outcome="C", reason="", by=actor(), at=at, policy=policy())
    settle(made, at=at)
    resolve(made, "A", at=at)
    assert (shown(made, at).bets_done, shown(made, at).bets) == (0, 2)
    settle(made, at=at, policy=policy(settlement_chunk=1))
    assert (shown(made, at).bets_done, shown(made, at).bets) == (2, 2)


def test_open_breaker_switch_and_setting_replace_the_estimate(db: None, at: datetime) -> None:
    made, payouts = settled_with(3, at)
    console_scenes.pay(payouts[0], at, "SKG7ABC001", after=1)
    assert shown(made, at + timedelta(seconds=5)).ends_at is not None

    with transaction.atomic():
        breakers.trip(breakers.Cause.NO_FLOAT, reason="1", at=at, policy=policy())
    breakers.switch_off(reason="Odd.", by=actor(), at=at + timedelta(seconds=1))

    waits = shown(made, at + timedelta(seconds=5), paused=True)
    assert waits.ends_at is None
    assert words(waits) == [
        "the setting PAYOUTS_PAUSED to be switched off",
        "a higher M-Pesa float",
        "a person, who stopped all sending",
    ]
    assert [wait.words for wait in waiting.of_payout(payouts[1], at=at, policy=policy())] == words(waits)[1:]
    payouts[0].refresh_from_db()
    assert waiting.of_payout(payouts[0], at=at, policy=policy()) == []


def test_hold_and_canary_replace_the_estimate(db: None, at: datetime) -> None:
    made, payouts = settled_with(3, at, canary=(1,), holds=((Decimal(0), timedelta(minutes=30)),))
    held = shown(made, at)
    assert held.waits == [waiting.Wait("the end of the market's hold", at + timedelta(minutes=30))]
    assert waiting.of_payout(payouts[0], at=at, policy=policy()) == held.waits
    free = shown(made, at + timedelta(minutes=30))
    assert (free.waits, free.in_canary, free.ends_at) == ([], True, None)


def test_proposed_undo_replaces_the_estimate(db: None, at: datetime) -> None:
    made, _ = settled_with(2, at)
    made.settlements.update(stopped_at=at)
    assert words(shown(made, at)) == ["a second person, who must approve or reject the proposed undo"]


def test_payouts_of_the_next_day_are_not_in_the_estimate(db: None, at: datetime) -> None:
    made, payouts = settled_with(4, at)
    console_scenes.pay(payouts[0], at, "SKG7ABC001", after=1)
    tomorrow = at + timedelta(days=1)
    Transaction.objects.filter(pk=payouts[3].pk).update(due_at=tomorrow)
    progress = shown(made, at + timedelta(seconds=5))
    assert (progress.due_now, progress.later) == (2, payout_progress.Later(1, tomorrow, tomorrow))
    assert progress.ends_at == at + timedelta(seconds=5, minutes=2)
    assert waiting.of_payout(Transaction.objects.get(pk=payouts[3].pk), at=at, policy=policy()) == [
        waiting.Wait("the time at which it is due", tomorrow)
    ]


def test_payout_in_doubt_is_not_finished_and_not_in_the_estimate(db: None, at: datetime) -> None:
    made, payouts = settled_with(2, at)
    console_scenes.pay(payouts[0], at, "SKG7ABC001", after=1)
    console_scenes.send_and_time_out(payouts[1], at)
    progress = shown(made, at + timedelta(seconds=5))
    assert (progress.due_now, progress.ends_at, progress.finished) == (0, None, False)


def test_payout_that_may_have_left_before_a_restore_waits_for_mpesas_answer(db: None, at: datetime) -> None:
    made, payouts = settled_with(2, at)
    console_scenes.pay(payouts[0], at, "SKG7ABC001", after=1)
    restore = Restore.objects.create(
        state="ASKING",
        survived_at=at,
        noticed_at=at,
        sign="A test.",
        needs_decision=False,
        payouts_a_settlement=10,
        last_market_id=0,
    )
    AskFirst.objects.create(restore=restore, transaction=payouts[1])
    progress = shown(made, at + timedelta(seconds=5))
    assert (progress.asked_first, progress.due_now, progress.ends_at, progress.finished) == (1, 0, None, False)
    assert [wait.words for wait in waiting.of_payout(payouts[1], at=at, policy=policy())] == [
        "M-Pesa's answer, because it may have left before a restore of the database"
    ]


def test_every_breaker_has_words() -> None:
    assert set(waiting.CAUSES) == set(Breaker.Cause)
