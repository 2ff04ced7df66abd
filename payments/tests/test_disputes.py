"""Disputes: a member is heard, an operator answers in time, and what was promised is done or is seen not to be."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from markets.models import Bet, Market, Outcome
from payments import disputes, own_affairs, settlement_tasks
from payments.models import Dispute, DisputeEvent, Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import resolutions
from testing import builders
from testing.builders import AT, at_once, bearer, bet, market, member, nothing_moved, operator, settled_market
from testing.payout_steps import failed, hear, result_body, sent
from testing.rest import UNREADABLE_BODIES, assert_refused, post
from testing.transitions import paths_from
from users import audit
from users.audit import Actor
from users.models import AuditEntry, CustomUser, Notice

TEXT = "The match ended 2:1, so Yes has won."
POLICY = builders.policy()
State = Dispute.State


@pytest.fixture
def user(db: None) -> CustomUser:
    return member(full_name="Amina")


@pytest.fixture
def staff(db: None) -> CustomUser:
    return operator()


def lost_bet(user: CustomUser, at: Any = AT) -> Bet:
    """A bet that lost 200 shillings in a market that is settled."""
    made = settled_market([(member(), "Yes", 100), (user, "No", 200)], at=at)
    return Bet.objects.select_related("market").get(market=made, user=user)


def failed_payout(user: CustomUser, at: Any = AT) -> Transaction:
    payout = builders.payout(285, user=user, at=at)
    failed(payout, at)
    return payout


def who(user: CustomUser) -> Actor:
    return Actor(user.pk, "192.0.2.7")


def dispute(of: Bet | Transaction, at: Any = AT, text: str = TEXT) -> Dispute:
    subject = {"user_id": of.user_id, "text": text, "by": Actor(of.user_id, "192.0.2.8"), "at": at, "policy": POLICY}
    if isinstance(of, Bet):
        return disputes.open_about_bet(market_id=of.market_id, bet_id=of.public_id, **subject)
    return disputes.open_about_transaction(transaction_id=of.public_id, **subject)


def decide(of: Dispute, what: str, by: CustomUser, at: Any = AT, text: str = "Because.", **more: Any) -> Any:
    return getattr(disputes, what)(dispute_id=of.public_id, text=text, by=who(by), at=at, **more)


def reply(of: Dispute, at: Any = AT) -> Dispute:
    by = Actor(of.user_id, "192.0.2.8")
    return disputes.reply(user_id=of.user_id, dispute_id=of.public_id, text=TEXT, by=by, at=at, policy=POLICY)


def told(user: CustomUser) -> list[str]:
    return list(Notice.objects.filter(user=user).order_by("pk").values_list("text", flat=True))


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_member_disputes_a_result_and_is_told_when_to_expect_an_answer(user: CustomUser, client: Client) -> None:
    # given
    lost = lost_bet(user, timezone.now())

    # when
    path = f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/"
    answer = post(client, path, {"text": f"  {TEXT} "}, bearer(user))

    # then
    assert answer.status_code == 201
    made = Dispute.objects.get()
    said = answer.json()["dispute"]
    assert (said["id"], said["bet_id"], said["transaction_id"]) == (str(made.public_id), str(lost.public_id), None)
    assert (said["state"], said["overdue"], said["remedy"]) == ("OPEN", False, None)
    assert [(one["kind"], one["by"], one["text"]) for one in said["history"]] == [("opened", "member", TEXT)]
    assert made.due_at - made.opened_at == timedelta(hours=72)
    assert made.settlement == Settlement.objects.get()
    assert told(user) == ["We have your dispute of the bet of KES 200.00 on No. We will answer within 72 hours."]
    entry = AuditEntry.objects.get(action="dispute.open")
    assert (entry.actor_id, entry.source, entry.subject) == (user.pk, "127.0.0.1", f"dispute:{made.public_id}")


def test_a_member_disputes_a_payout(user: CustomUser, client: Client) -> None:
    payout = failed_payout(user, timezone.now())
    answer = post(client, f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, bearer(user))
    assert (answer.status_code, answer.json()["dispute"]["transaction_id"]) == (201, str(payout.public_id))
    assert told(user) == ["We have your dispute of the payout of KES 285.00. We will answer within 72 hours."]


def test_the_window_closes_after_thirty_days(user: CustomUser) -> None:
    lost, payout = lost_bet(user), failed_payout(user)
    for subject in (lost, payout):
        with nothing_moved(), pytest.raises(disputes.NotDisputable, match="30 days after the settlement"):
            dispute(subject, AT + timedelta(days=30, microseconds=1))
        assert dispute(subject, AT + timedelta(days=30)).state == State.OPEN


def test_a_bet_without_a_result_is_not_disputed(user: CustomUser, client: Client) -> None:
    made = market()
    user.balance = Decimal(100)
    user.save()
    open_bet = bet(made, user)
    with pytest.raises(disputes.NotDisputable, match="no result yet"):
        dispute(open_bet)
    builders.resolve(made)
    path = f"/api/markets/{made.pk}/bets/{open_bet.public_id}/disputes/"
    assert_refused(post(client, path, {"text": TEXT}, bearer(user)), 409, "not_disputable")


def test_one_dispute_of_a_subject_is_open_at_a_time(user: CustomUser, staff: CustomUser) -> None:
    # given
    lost = lost_bet(user)
    first = dispute(lost)

    # then: open, answered, and after it was decided
    for step in (lambda: None, lambda: decide(first, "answer", staff)):
        step()
        with pytest.raises(disputes.NotDisputable, match="is open already"):
            dispute(lost)
    decide(first, "reject", staff)
    assert dispute(lost).pk != first.pk


def test_of_many_who_open_at_once_one_is_opened(transactional_db: None) -> None:
    for subject in (lost_bet(member()), failed_payout(member())):
        answers = at_once(*[partial(dispute, subject)] * 8)
        assert sorted(type(answer).__name__ for answer in answers) == ["Dispute"] + ["NotDisputable"] * 7
    assert Dispute.objects.count() == Notice.objects.count() == 2


# --- answering, deciding ---------------------------------------------------------------------------------------------


def test_an_answer_may_be_replied_to_and_then_decided(user: CustomUser, staff: CustomUser) -> None:
    # given
    made = dispute(lost_bet(user))

    # when
    decide(made, "answer", staff, AT + timedelta(hours=1), "The referee's report says 1:1.")
    replied = reply(made, AT + timedelta(hours=2))
    decide(made, "answer", staff, AT + timedelta(hours=3), "The league confirms 1:1.")
    decide(made, "reject", staff, AT + timedelta(hours=4), "1:1 stands.")

    # then
    assert (replied.state, replied.due_at) == ("OPEN", AT + timedelta(hours=74))
    made.refresh_from_db()
    assert (made.state, made.closed_at, made.closed_by) == ("REJECTED", AT + timedelta(hours=4), staff)
    history = list(made.events.order_by("pk").values_list("kind", "by"))
    answered = ("answered", staff.pk)
    assert history == [("opened", user.pk), answered, ("replied", user.pk), answered, ("rejected", staff.pk)]
    assert told(user)[1:] == [
        "We answered your dispute of the bet of KES 200.00 on No: The referee's report says 1:1.",
        "We answered your dispute of the bet of KES 200.00 on No: The league confirms 1:1.",
        "Your dispute of the bet of KES 200.00 on No was rejected: 1:1 stands.",
    ]
    trail = list(
        AuditEntry.objects.filter(subject=f"dispute:{made.public_id}").values_list("action", "actor", "reason")
    )
    assert trail[1:] == [
        ("dispute.answer", staff.pk, "The referee's report says 1:1."),
        ("dispute.reply", user.pk, ""),
        ("dispute.answer", staff.pk, "The league confirms 1:1."),
        ("dispute.reject", staff.pk, "1:1 stands."),
    ]
    assert audit.verify().difference is None


MOVES: dict[str, Callable[[Dispute, CustomUser], Any]] = {
    "answer": lambda made, staff: decide(made, "answer", staff),
    "uphold": lambda made, staff: decide(made, "uphold", staff, remedy="none"),
    "reject": lambda made, staff: decide(made, "reject", staff),
    "reply": lambda made, staff: reply(made),
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
@pytest.mark.parametrize("move", MOVES)
def test_each_move_is_made_from_its_states_only(user: CustomUser, staff: CustomUser, state: str, move: str) -> None:
    # given
    made = dispute(lost_bet(user))
    for earlier in REACHED[state]:
        MOVES[earlier](made, staff)
    before = (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())

    # when, then
    if (state, move) in LEGAL:
        MOVES[move](made, staff)
        made.refresh_from_db()
        assert made.state == LEGAL[state, move]
    else:
        with nothing_moved(), pytest.raises(disputes.DisputeMoved):
            MOVES[move](made, staff)
        assert before == (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())


@pytest.mark.parametrize("start", State.values)
def test_postgresql_and_the_table_of_transitions_agree_on_every_pair(user: CustomUser, start: str) -> None:
    made = dispute(lost_bet(user))
    rows = Dispute.objects.filter(pk=made.pk)
    assert sorted(Dispute.TRANSITIONS) == sorted(State.values)
    for state in paths_from(Dispute.TRANSITIONS, "OPEN")[start]:
        rows.update(state=state)
    for end in State.values:
        moved = True
        with transaction.atomic():
            try:
                with transaction.atomic():
                    rows.update(state=end)
            except IntegrityError as error:
                assert f"cannot move {start}>{end}" in str(error)
                moved = False
            transaction.set_rollback(True)
        assert moved == (end in Dispute.TRANSITIONS[start] or end == start), f"{start}>{end}"


def test_postgresql_keeps_what_a_dispute_is_and_was_decided(user: CustomUser, staff: CustomUser) -> None:
    made, other = dispute(lost_bet(user)), lost_bet(member())
    decide(made, "uphold", staff, remedy="re_resolve")
    rows = Dispute.objects.filter(pk=made.pk)
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


def test_of_operators_who_decide_at_once_one_does(transactional_db: None) -> None:
    # given
    made, staff = dispute(failed_payout(member())), [operator(), operator()]
    decide(made, "answer", staff[0])

    # when
    ways_to = [
        partial(decide, made, "reject", staff[0]),
        partial(decide, made, "uphold", staff[1], remedy="pay_to_wallet"),
        partial(decide, made, "uphold", staff[0], remedy="resend"),
    ]
    answers = at_once(*ways_to * 3)

    # then
    assert [type(answer).__name__ for answer in answers].count("DisputeMoved") == 8
    made.refresh_from_db()
    status = Transaction.objects.get().status
    assert (made.state, made.remedy, status) in (
        ("REJECTED", "", "FAILED"), ("UPHELD", "pay_to_wallet", "COMPLETED"), ("UPHELD", "resend", "PENDING"),
    )  # fmt: skip
    assert audit.verify().difference is None


def test_nobody_decides_their_own_dispute(staff: CustomUser) -> None:
    made = dispute(lost_bet(staff))
    for what, more in (("answer", {}), ("uphold", {"remedy": "none"}), ("reject", {})):
        with pytest.raises(own_affairs.OwnDispute):
            decide(made, what, staff, **more)
    with pytest.raises(IntegrityError, match="nobody_decides_their_own_dispute"), transaction.atomic():
        Dispute.objects.update(closed_by=staff)


# --- remedies --------------------------------------------------------------------------------------------------------


def test_upheld_to_the_wallet_the_failed_payout_is_there_at_once(user: CustomUser, staff: CustomUser) -> None:
    # given
    payout = failed_payout(user)
    made = dispute(payout)

    # when
    upheld = decide(made, "uphold", staff, remedy="pay_to_wallet", text="It is no M-Pesa number.")

    # then
    payout.refresh_from_db()
    user.refresh_from_db()
    assert (payout.status, user.balance) == ("COMPLETED", Decimal(285))
    assert (upheld.dispute.remedy_state, upheld.dispute.remedied_at, upheld.to_send) == ("DONE", AT, ())
    assert told(user)[-1] == (
        "Your dispute of the payout of KES 285.00 was upheld: It is no M-Pesa number. The money is in your wallet."
    )
    trail = AuditEntry.objects.order_by("number").values_list("action", "actor", "source")
    assert list(trail)[-2:] == [
        ("payout.to_wallet", staff.pk, "192.0.2.7"), ("dispute.uphold", staff.pk, "192.0.2.7"),
    ]  # fmt: skip


def test_a_bet_upheld_to_be_sent_again_is_done_when_the_money_has_been_paid(
    user: CustomUser, staff: CustomUser
) -> None:
    # given
    payout = failed_payout(user)
    made = dispute(Bet.objects.get(user=user))

    # when
    upheld = decide(made, "uphold", staff, remedy="resend")

    # then: put back to be sent, and due until it is paid
    payout.refresh_from_db()
    assert (payout.status, upheld.to_send, upheld.dispute.remedy_state) == ("PENDING", (payout.pk,), "DUE")
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"
    attempt = sent(payout)
    hear(attempt, result_body(attempt))
    for _ in range(2):
        settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DONE"
    assert told(user)[-2:] == [
        "Your dispute of the bet of KES 285.00 on Yes was upheld: Because. The money is being sent again.",
        "Your dispute of the bet of KES 285.00 on Yes: the money has been paid.",
    ]
    assert disputes.close_remedied(dispute_id=made.pk, at=AT) is False


def test_all_payouts_of_a_bet_are_locked_before_the_wallet_they_go_to(transactional_db: None) -> None:
    # given: two tranches that failed, of which another session holds the second
    user, staff, tranches = member(), operator(), builders.policy(max_amount=150)
    made = settled_market([(user, "Yes", 300)], fee_pct=0, policy=tranches)
    for payout in Transaction.objects.filter(settlement__market=made):
        failed(payout)
    disputed = dispute(Bet.objects.get(market=made))
    with transaction.atomic():
        Transaction.objects.select_for_update(no_key=True).get(settlement__market=made, tranche=2)

        # when
        upheld = builders.begin(lambda: decide(disputed, "uphold", staff, remedy="pay_to_wallet"))
        builders.wait_until_one_waits()

        # then: the session that locks in the order of the house gets the wallet, and there is no deadlock
        CustomUser.objects.select_for_update(no_key=True, nowait=True).get(pk=user.pk)
    assert upheld.result(30).dispute.state == "UPHELD"
    assert CustomUser.objects.get(pk=user.pk).balance == 300


def test_a_result_upheld_is_done_when_the_market_is_settled_again(user: CustomUser, staff: CustomUser) -> None:
    # given
    lost = lost_bet(user)
    made = dispute(lost)
    decide(made, "uphold", staff, remedy="re_resolve")
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"

    # when: undone, and an outcome scratched, which remedies nothing yet; and settled for the other side
    builders.undo(lost.market, by=staff)
    Outcome.objects.create(market=lost.market, name="Perhaps")
    Market.objects.filter(pk=lost.market_id).update(status="OPEN")
    scratch = {"outcome": "Perhaps", "reason": "error", "by": who(staff), "at": AT, "policy": POLICY}
    resolutions.scratch(market_id=lost.market_id, **scratch)
    builders.settle(lost.market)
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get().remedy_state == "DUE"
    builders.resolve(lost.market, "No")
    builders.settle(lost.market)
    settlement_tasks.close_remedied_disputes()

    # then
    made.refresh_from_db()
    lost.refresh_from_db()
    assert (made.remedy_state, lost.result) == ("DONE", "WON")
    assert told(user)[-1] == "Your dispute of the bet of KES 200.00 on No: the market was settled again."
    assert [event.kind for event in made.events.order_by("pk")] == ["opened", "upheld", "remedied"]


def test_a_remedy_that_cannot_be_carried_out_decides_nothing(user: CustomUser, staff: CustomUser) -> None:
    # given: a payout under way, a bet that lost, a deposit that belongs to no market, and a bet that a void gave back
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
        (lost_bet(member()), "resend", disputes.NoSuchRemedy),
        (deposit, "re_resolve", disputes.NoSuchRemedy),
        (void, "re_resolve", disputes.NoSuchRemedy),
    ):
        made = Dispute.objects.filter(transaction=subject).first() if isinstance(subject, Transaction) else None
        made = made or dispute(subject)
        before = (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())
        with nothing_moved(), pytest.raises(refusal):
            decide(made, "uphold", staff, remedy=remedy)
        made.refresh_from_db()
        assert (made.state, made.remedy) == ("OPEN", "")
        assert before == (DisputeEvent.objects.count(), Notice.objects.count(), AuditEntry.objects.count())


def test_the_remedy_none_promises_nothing(user: CustomUser, staff: CustomUser) -> None:
    upheld = decide(
        dispute(lost_bet(user)), "uphold", staff, remedy="none", text="You are right, and were paid by hand."
    )
    assert upheld.dispute.remedy_state == ""
    assert told(user)[-1].endswith("was upheld: You are right, and were paid by hand.")


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_the_queue_is_ordered_by_deadline_with_history_and_explanation(
    user: CustomUser, staff: CustomUser, client: Client
) -> None:
    # given: the second one is answered and reopened, so its deadline is the later one; all are long overdue
    payout, lost = failed_payout(user), lost_bet(user)
    second, first = dispute(payout), dispute(lost, AT + timedelta(hours=1))
    decide(second, "answer", staff)
    reply(second, AT + timedelta(hours=2))

    # when
    queue = client.get("/api/payments/admin/disputes/?state=OPEN", headers=bearer(staff)).json()

    # then
    assert queue["count"] == 2
    assert [one["id"] for one in queue["disputes"]] == [str(first.public_id), str(second.public_id)]
    about_bet, about_payout = queue["disputes"]
    assert about_bet["overdue"] and about_payout["overdue"]
    assert about_bet["explanation"]["sentence"].startswith('Your KES 200.00 on "No" did not win')
    assert about_payout["explanation"]["status"] == "FAILED" and about_payout["explanation"]["reason"]
    assert [event["kind"] for event in about_payout["history"]] == ["opened", "answered", "replied"]
    masked = f"2547****{user.phone_number[-3:]}"
    assert about_bet["member"] == {"id": str(user.public_id), "full_name": "Amina", "phone_number": masked}
    answered = client.get("/api/payments/admin/disputes/?state=ANSWERED", headers=bearer(staff)).json()
    assert answered == {"count": 0, "disputes": []}
    assert client.get("/api/payments/admin/disputes/", headers=bearer(staff)).json()["count"] == 2
    refused = client.get("/api/payments/admin/disputes/?state=open", headers=bearer(staff))
    assert_refused(refused, 400, "invalid")


def test_a_dispute_goes_its_whole_way_over_http(
    user: CustomUser, staff: CustomUser, client: Client, queued: Callable[[], list[Any]]
) -> None:
    # given
    payout, mine, theirs = failed_payout(user, timezone.now()), bearer(user), bearer(staff)
    opened = post(client, f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, mine).json()
    dispute_id = opened["dispute"]["id"]
    admin = f"/api/payments/admin/disputes/{dispute_id}"

    # when
    answered = post(client, f"{admin}/answer/", {"text": "We are looking."}, theirs)
    replied = post(client, f"/api/users/me/disputes/{dispute_id}/reply/", {"text": "And what did you see?"}, mine)
    upheld = post(client, f"{admin}/uphold/", {"remedy": "resend", "text": "It goes again."}, theirs)

    # then
    states = [answer.json()["dispute"]["state"] for answer in (answered, replied, upheld)]
    assert states == ["ANSWERED", "OPEN", "UPHELD"]
    assert upheld.json()["dispute"]["remedy_state"] == "DUE"
    assert [(name, arguments) for name, _, arguments in queued()] == [
        ("payments.settlement_tasks.ask_about_doubts", []),
        ("payments.settlement_tasks.send_b2c_payout", [payout.pk]),
    ]
    (seen,) = client.get("/api/users/me/disputes/", headers=mine).json()["disputes"]
    assert [event["by"] for event in seen["history"]] == ["member", "operator", "member", "operator"]
    assert str(staff.pk) not in {str(event["by"]) for event in seen["history"]}
    notices = client.get("/api/users/me/notices/", headers=mine).json()["notices"]
    assert [notice["text"] for notice in notices] == told(user)[::-1]
    assert {notice["sent_at"] for notice in notices} == {None}
    assert_refused(post(client, f"{admin}/reject/", {"text": "Too late."}, theirs), 409, "dispute_moved")
    assert client.get("/api/users/me/disputes/", headers=bearer(member())).json() == {"disputes": []}
    assert client.get("/api/users/me/notices/", headers=bearer(member())).json() == {"notices": []}


def test_each_route_is_for_whom_it_is_for(user: CustomUser, staff: CustomUser, client: Client) -> None:
    # given
    now = timezone.now()
    lost, payout = lost_bet(user, now), failed_payout(user, now)
    made = dispute(payout, now)
    decide(made, "answer", staff, now)
    other, admin = member(), f"/api/payments/admin/disputes/{made.public_id}"
    uphold = {"remedy": "none", "text": "Indeed."}
    routes = [  # path, body, what another member and what staff are told
        (f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/", {"text": TEXT}, 404, 404),
        (f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, 404, 404),
        (f"/api/users/me/disputes/{made.public_id}/reply/", {"text": TEXT}, 404, 404),
        (f"{admin}/answer/", {"text": "Indeed."}, 403, 409),
        (f"{admin}/uphold/", uphold, 403, 200),
        (f"{admin}/reject/", {"text": "Indeed."}, 403, 409),
    ]

    # then
    for path, body, as_other, as_staff in routes:
        assert_refused(post(client, path, body), 401, "not_authenticated")
        assert post(client, path, body, bearer(other)).status_code == as_other, path
        assert client.get(path, headers=bearer(staff)).status_code == 405
        assert post(client, path, body, bearer(staff)).status_code == as_staff, path
    for path, as_member in (("users/me/disputes/", 200), ("users/me/notices/", 200), ("payments/admin/disputes/", 403)):
        assert client.get(f"/api/{path}").status_code == 401
        assert client.get(f"/api/{path}", headers=bearer(user)).status_code == as_member
        assert client.get(f"/api/{path}", headers=bearer(staff)).status_code == 200
    for path in (admin.replace(str(made.public_id), str(uuid4())), admin[:-1] + "x"):
        assert post(client, f"{path}/answer/", {"text": "Indeed."}, bearer(staff)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": None},
        {"text": 1234567890},
        {"text": ["The match ended 2:1."]},
        {"text": "too short"},
        {"text": "   short      "},
        {"text": "x" * 2001},
        {"text": TEXT, "amount": 5},
    ],
)
def test_a_text_of_10_to_2000_characters_is_demanded(user: CustomUser, client: Client, body: Any) -> None:
    lost = lost_bet(user, timezone.now())
    path = f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/"
    assert_refused(post(client, path, body, bearer(user)), 400, "invalid")
    assert not Dispute.objects.exists()
    for text in ("x" * 10, "x" * 2000):
        assert post(client, path, {"text": text}, bearer(user)).status_code == 201
        Dispute.objects.filter(state="OPEN").update(state="UPHELD")


@pytest.mark.parametrize(
    "body",
    [{"text": "Indeed."}, {"remedy": "cash", "text": "Indeed."}, {"remedy": ["none"], "text": "Indeed."},
     {"remedy": "none"}, {"remedy": None, "text": "Indeed."}, {"remedy": "none", "text": "x"}],
)  # fmt: skip
def test_upholding_names_one_of_four_remedies(user: CustomUser, staff: CustomUser, client: Client, body: Any) -> None:
    made = dispute(lost_bet(user))
    answer = post(client, f"/api/payments/admin/disputes/{made.public_id}/uphold/", body, bearer(staff))
    assert_refused(answer, 400, "invalid")
    made.refresh_from_db()
    assert made.state == "OPEN"


def test_unreadable_bodies_are_refused(user: CustomUser, staff: CustomUser, client: Client) -> None:
    made, mine, theirs = dispute(lost_bet(user)), bearer(user), bearer(staff)
    for path, headers in (
        (f"/api/markets/{made.bet.market_id}/bets/{made.bet.public_id}/disputes/", mine),
        (f"/api/payments/transactions/{uuid4()}/disputes/", mine),
        (f"/api/users/me/disputes/{made.public_id}/reply/", mine),
        (f"/api/payments/admin/disputes/{made.public_id}/uphold/", theirs),
    ):
        for name, body in UNREADABLE_BODIES.items():
            assert post(client, path, body, headers).status_code == 400, (path, name)


def test_the_console_shows_disputes_and_certificates(user: CustomUser, client: Client) -> None:
    # given
    made = dispute(lost_bet(user))
    settlement_tasks.issue_certificates()
    client.force_login(operator(is_superuser=True))

    # then
    pages = ("payments/dispute", "payments/certificate", "users/notice", f"payments/dispute/{made.pk}/change")
    for page in pages:
        assert client.get(f"/admin/{page}/").status_code == 200, page
    assert client.post(f"/admin/{pages[-1]}/", {"state": "UPHELD"}).status_code == 403
    made.refresh_from_db()
    assert made.state == "OPEN"
