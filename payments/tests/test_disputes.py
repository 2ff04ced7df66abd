"""Disputes: opening, answers, decisions and remedies."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from markets.models import Bet
from payments import dispute_steps, disputes, own_affairs, settlement_tasks
from payments.models import Dispute, DisputeEvent, Transaction
from payments.payouts.operations import actions
from testing import builders
from testing.builders import AT, at_once, bearer, bet, market, member, nothing_moved, operator, settled_market
from testing.dispute_steps import TEXT, actor_of, decide, dispute, failed_payout, lost_bet, notices_of, reply
from testing.payout_steps import deliver_result, failed, result_body, sent
from testing.rest import assert_refused, post
from testing.transitions import paths_from
from users import audit, figures
from users.models import AuditEntry, CustomUser, Notice
from users.proposals import Proposed

POLICY = builders.policy()
State = Dispute.State


@pytest.fixture
def user(db: None) -> CustomUser:
    return member(full_name="Amina")


@pytest.fixture
def staff(db: None) -> CustomUser:
    return operator()


# --- opening ---------------------------------------------------------------------------------------------------------


def test_dispute_is_refused_after_thirty_days(user: CustomUser) -> None:
    lost, payout = lost_bet(user), failed_payout(user)
    for subject in (lost, payout):
        with (
            nothing_moved(),
            pytest.raises(dispute_steps.NotDisputable, match="within 30 days of the settlement or the transaction"),
        ):
            dispute(subject, AT + timedelta(days=30, microseconds=1))
        assert dispute(subject, AT + timedelta(days=30)).state == State.OPEN


def test_bet_without_result_cannot_be_disputed(user: CustomUser, client: Client) -> None:
    opened = market()
    user.balance = Decimal(100)
    user.save()
    open_bet = bet(opened, user)
    with pytest.raises(dispute_steps.NotDisputable, match="no result yet"):
        dispute(open_bet)
    builders.resolve(opened)
    path = f"/api/markets/{opened.pk}/bets/{open_bet.public_id}/disputes/"
    assert_refused(post(client, path, {"text": TEXT}, bearer(user)), 409, "not_disputable")


def test_second_dispute_of_same_subject_is_refused_while_one_is_open(user: CustomUser, staff: CustomUser) -> None:
    # given
    lost = lost_bet(user)
    first = dispute(lost)

    # then: a second dispute is refused while the first is open or answered, and accepted after the decision
    for step in (lambda: None, lambda: decide(first, "answer", staff)):
        step()
        with pytest.raises(dispute_steps.NotDisputable, match="You already have an open dispute"):
            dispute(lost)
    decide(first, "reject", staff)
    assert dispute(lost).pk != first.pk


def test_disputes_opened_at_once_open_one(transactional_db: None) -> None:
    for subject in (lost_bet(member()), failed_payout(member())):
        answers = at_once(*[partial(dispute, subject)] * 8)
        assert sorted(type(answer).__name__ for answer in answers) == ["Dispute"] + ["NotDisputable"] * 7
    assert Dispute.objects.count() == Notice.objects.count() == 2


# --- answering, deciding ---------------------------------------------------------------------------------------------


def test_answered_dispute_can_be_replied_to_and_rejected(user: CustomUser, staff: CustomUser) -> None:
    # given
    opened = dispute(lost_bet(user))

    # when
    decide(opened, "answer", staff, AT + timedelta(hours=1), "The referee's report says 1:1.")
    replied = reply(opened, AT + timedelta(hours=2))
    decide(opened, "answer", staff, AT + timedelta(hours=3), "The league confirms 1:1.")
    decide(opened, "reject", staff, AT + timedelta(hours=4), "1:1 stands.")

    # then
    assert (replied.state, replied.due_at) == ("OPEN", AT + timedelta(hours=74))
    opened.refresh_from_db()
    assert (opened.state, opened.closed_at, opened.closed_by) == ("REJECTED", AT + timedelta(hours=4), staff)
    history = list(opened.events.order_by("pk").values_list("kind", "by"))
    answered = ("answered", staff.pk)
    assert history == [("opened", user.pk), answered, ("replied", user.pk), answered, ("rejected", staff.pk)]
    assert notices_of(user)[1:] == [
        "We answered your dispute of the bet of KES 200.00 on No: The referee's report says 1:1.",
        "We answered your dispute of the bet of KES 200.00 on No: The league confirms 1:1.",
        "Your dispute of the bet of KES 200.00 on No was rejected: 1:1 stands.",
    ]
    trail = list(
        AuditEntry.objects.filter(subject=f"dispute:{opened.public_id}").values_list("action", "actor", "reason")
    )
    assert trail[1:] == [
        ("dispute.answer", staff.pk, "The referee's report says 1:1."),
        ("dispute.reply", user.pk, ""),
        ("dispute.answer", staff.pk, "The league confirms 1:1."),
        ("dispute.reject", staff.pk, "1:1 stands."),
    ]
    assert audit.verify().difference is None


STEPS: dict[str, Callable[[Dispute, CustomUser], Any]] = {
    "answer": lambda opened, staff: decide(opened, "answer", staff),
    "uphold": lambda opened, staff: decide(opened, "uphold", staff, remedy="none"),
    "reject": lambda opened, staff: decide(opened, "reject", staff),
    "reply": lambda opened, staff: reply(opened),
}
LEGAL = {
    ("OPEN", "answer"): "ANSWERED",
    ("OPEN", "uphold"): "UPHELD",
    ("ANSWERED", "uphold"): "UPHELD",
    ("ANSWERED", "reject"): "REJECTED",
    ("ANSWERED", "reply"): "OPEN",
}
REACHED = {"OPEN": [], "ANSWERED": ["answer"], "UPHELD": ["uphold"], "REJECTED": ["answer", "reject"]}


@pytest.mark.parametrize("state", State.values)
@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_refused_outside_its_states(user: CustomUser, staff: CustomUser, state: str, step: str) -> None:
    # given
    opened = dispute(lost_bet(user))
    for earlier in REACHED[state]:
        STEPS[earlier](opened, staff)
    before = (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())

    # when, then
    if (state, step) in LEGAL:
        STEPS[step](opened, staff)
        opened.refresh_from_db()
        assert opened.state == LEGAL[state, step]
    else:
        with nothing_moved(), pytest.raises(dispute_steps.WrongDisputeState):
            STEPS[step](opened, staff)
        assert before == (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())


@pytest.mark.parametrize("start", State.values)
def test_postgresql_allows_exactly_the_transitions_of_a_dispute(user: CustomUser, start: str) -> None:
    opened = dispute(lost_bet(user))
    rows = Dispute.objects.filter(pk=opened.pk)
    assert sorted(Dispute.TRANSITIONS) == sorted(State.values)
    for state in paths_from(Dispute.TRANSITIONS, "OPEN")[start]:
        rows.update(state=state)
    for end in State.values:
        refusal = ""
        with transaction.atomic():
            try:
                with transaction.atomic():
                    rows.update(state=end)
            except IntegrityError as error:
                refusal = str(error)
            transaction.set_rollback(True)
        legal = end in Dispute.TRANSITIONS[start] or end == start
        assert refusal == "" if legal else f"cannot move {start}>{end}" in refusal, f"{start}>{end}"


@pytest.mark.usefixtures("as_owner")
def test_postgresql_refuses_changes_to_disputes_events_and_notices(user: CustomUser, staff: CustomUser) -> None:
    opened, other = dispute(lost_bet(user)), lost_bet(member())
    decide(opened, "uphold", staff, remedy="re_resolve")
    rows = Dispute.objects.filter(pk=opened.pk)
    for change, words in (
        ({"user": staff}, "Who disputes what"),
        ({"bet": other}, "Who disputes what"),
        ({"opened_at": AT + timedelta(days=1)}, "Who disputes what"),
        ({"remedy": "none"}, "decided anew"),
        ({"closed_by": None}, "decided anew"),
        ({"remedy_state": ""}, "decided anew"),
        ({"transaction": failed_payout(user)}, "Who disputes what"),
    ):
        with pytest.raises(IntegrityError, match=words), transaction.atomic():
            rows.update(**change)
    for gone, words in (
        (lambda: Dispute.objects.all()._raw_delete("default"), "not deleted"),
        (DisputeEvent.objects.all().delete, "not changed"),
        (lambda: DisputeEvent.objects.update(text="x"), "not changed"),
        (lambda: Notice.objects.update(text="x"), "not changed"),
        (Notice.objects.all().delete, "not changed"),
    ):
        with pytest.raises(IntegrityError, match=words), transaction.atomic():
            gone()
    Notice.objects.update(sent_at=AT)


def test_operators_deciding_at_once_decide_once(transactional_db: None) -> None:
    # given
    opened, staff = dispute(failed_payout(member())), [operator(), operator()]
    decide(opened, "answer", staff[0])

    # when
    calls = [
        partial(decide, opened, "reject", staff[0]),
        partial(decide, opened, "uphold", staff[1], remedy="pay_to_wallet"),
        partial(decide, opened, "uphold", staff[0], remedy="resend"),
    ]
    answers = at_once(*calls * 3)

    # then
    assert [type(answer).__name__ for answer in answers].count("WrongDisputeState") == 8
    opened.refresh_from_db()
    status = Transaction.objects.get().status
    assert (opened.state, opened.remedy, status) in (
        ("REJECTED", "", "FAILED"), ("UPHELD", "pay_to_wallet", "COMPLETED"), ("UPHELD", "resend", "PENDING"),
    )  # fmt: skip
    assert audit.verify().difference is None


def test_staff_cannot_decide_their_own_dispute(staff: CustomUser) -> None:
    opened = dispute(lost_bet(staff))
    for step, more in (("answer", {}), ("uphold", {"remedy": "none"}), ("reject", {})):
        with pytest.raises(own_affairs.OwnDispute):
            decide(opened, step, staff, **more)
    with pytest.raises(IntegrityError, match="nobody_decides_their_own_dispute"), transaction.atomic():
        Dispute.objects.update(closed_by=staff)


# --- remedies --------------------------------------------------------------------------------------------------------


def test_remedy_to_wallet_pays_failed_payout_at_once(user: CustomUser, staff: CustomUser) -> None:
    # given
    payout = failed_payout(user)
    opened = dispute(payout)

    # when
    upheld = decide(opened, "uphold", staff, remedy="pay_to_wallet", text="It is no M-Pesa number.")

    # then
    payout.refresh_from_db()
    user.refresh_from_db()
    assert (payout.status, user.balance) == ("COMPLETED", Decimal(285))
    assert (upheld.dispute.remedy_state, upheld.dispute.remedied_at, upheld.to_send) == ("DONE", AT, ())
    assert notices_of(user)[-1] == (
        "Your dispute of the payout of KES 285.00 was upheld: It is no M-Pesa number. The money is in your wallet."
    )
    trail = AuditEntry.objects.order_by("number").values_list("action", "actor", "source")
    assert list(trail)[-2:] == [
        ("payout.to_wallet", staff.pk, "192.0.2.7"), ("dispute.uphold", staff.pk, "192.0.2.7"),
    ]  # fmt: skip


def test_remedy_to_wallet_is_no_way_around_two_people(user: CustomUser, staff: CustomUser) -> None:
    # given
    first, second = failed_payout(user), failed_payout(user)
    opened = [dispute(first), dispute(second)]
    with transaction.atomic():
        figures.set_value(figures.Change("threshold:payout.to_wallet", "300", AT, "Test"), by=audit.MACHINE, at=AT)

    # when: one payment is below the threshold, and both of the day are above it
    decide(opened[0], "uphold", staff, remedy="pay_to_wallet")
    made = decide(opened[1], "uphold", staff, remedy="pay_to_wallet")

    # then: on the payout's own page the first one counts as well
    assert isinstance(made, Proposed)
    assert isinstance(actions.redirect_to_wallet(transaction_id=second.pk, by=actor_of(staff), at=AT), Proposed)
    second.refresh_from_db()
    assert second.status == "FAILED"


def test_remedy_resend_is_done_when_the_payout_is_paid(user: CustomUser, staff: CustomUser) -> None:
    # given
    payout = failed_payout(user)
    opened = dispute(Bet.objects.get(user=user))

    # when
    upheld = decide(opened, "uphold", staff, remedy="resend")

    # then: the payout is pending again, and the remedy is due until it is paid
    payout.refresh_from_db()
    assert (payout.status, upheld.to_send, upheld.dispute.remedy_state) == ("PENDING", (payout.pk,), "DUE")
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt))
    for _ in range(2):
        settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DONE"
    assert notices_of(user)[-2:] == [
        "Your dispute of the bet of KES 285.00 on Yes was upheld: Because. The money is being sent again.",
        "Your dispute of the bet of KES 285.00 on Yes: the money has been paid.",
    ]
    assert disputes.close_remedied(dispute_id=opened.pk, at=AT) is False


def test_payouts_of_a_bet_are_locked_before_the_wallet(transactional_db: None) -> None:
    # given: two failed tranches. Another session holds the lock on the second tranche
    user, staff, tranches = member(), operator(), builders.policy(max_amount=150)
    opened = settled_market([(user, "Yes", 300)], fee_pct=0, policy=tranches)
    for payout in Transaction.objects.filter(settlement__market=opened):
        failed(payout)
    disputed = dispute(Bet.objects.get(market=opened))
    with transaction.atomic():
        Transaction.objects.select_for_update(no_key=True).get(settlement__market=opened, tranche=2)

        # when
        upheld = builders.begin(lambda: decide(disputed, "uphold", staff, remedy="pay_to_wallet"))
        builders.wait_until_one_waits()

        # then: a session that follows the lock order gets the wallet, so there is no deadlock
        CustomUser.objects.select_for_update(no_key=True, nowait=True).get(pk=user.pk)
    assert upheld.result(30).dispute.state == "UPHELD"
    assert CustomUser.objects.get(pk=user.pk).balance == 300


def test_remedy_re_resolve_is_done_when_market_is_settled_again(user: CustomUser, staff: CustomUser) -> None:
    # given
    lost = lost_bet(user, outcomes=("Yes", "No", "Perhaps"))
    opened = dispute(lost)
    decide(opened, "uphold", staff, remedy="re_resolve")
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"

    # when: the market is undone (no remedy yet), and the other outcome wins
    builders.undo(lost.market, by=staff)
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"
    builders.resolve(lost.market, "No")
    builders.settle(lost.market)
    settlement_tasks.close_remedied_disputes()

    # then
    opened.refresh_from_db()
    lost.refresh_from_db()
    assert (opened.remedy_state, lost.result) == ("DONE", "WON")
    assert notices_of(user)[-1] == "Your dispute of the bet of KES 200.00 on No: the market was settled again."
    assert [event.kind for event in opened.events.order_by("pk")] == ["opened", "upheld", "remedied"]


def test_impossible_remedy_decides_nothing(user: CustomUser, staff: CustomUser) -> None:
    # given: a payout under way, a lost bet, a deposit without a market, and a bet refunded by a void
    void = Bet.objects.get(market=settled_market([(member(), "Yes", 5)], None, rule="VOID"))
    payout = builders.payout(285, user=user)
    sent(payout)
    deposit = Transaction.objects.create(
        user=user, type="DEPOSIT", amount=5, destination="wallet", external_ref="KASOKO-D-1", due_at=AT,
        phone_number=user.phone_number, status="COMPLETED", created_at=AT,
    )  # fmt: skip
    for subject, remedy, refusal in (
        (payout, "pay_to_wallet", actions.PayoutNotRetryable),
        (payout, "resend", actions.PayoutNotRetryable),
        (lost_bet(member()), "resend", dispute_steps.NoSuchRemedy),
        (deposit, "re_resolve", dispute_steps.NoSuchRemedy),
        (void, "re_resolve", dispute_steps.NoSuchRemedy),
    ):
        opened = Dispute.objects.filter(transaction=subject).first() if isinstance(subject, Transaction) else None
        opened = opened or dispute(subject)
        before = (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())
        with nothing_moved(), pytest.raises(refusal):
            decide(opened, "uphold", staff, remedy=remedy)
        opened.refresh_from_db()
        assert (opened.state, opened.remedy) == ("OPEN", "")
        assert before == (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())


def test_remedy_none_promises_nothing(user: CustomUser, staff: CustomUser) -> None:
    upheld = decide(
        dispute(lost_bet(user)), "uphold", staff, remedy="none", text="You are right, and were paid by hand."
    )
    assert upheld.dispute.remedy_state == ""
    assert notices_of(user)[-1].endswith("was upheld: You are right, and were paid by hand.")
