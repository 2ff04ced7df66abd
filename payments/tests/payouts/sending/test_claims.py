"""The payout machine: what may be sent, what a request left us knowing, when we ask, what an operator may decide."""

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt, Settlement, StatusQuery, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions, failures
from payments.payouts.sending import claims as sending_claims
from testing import builders, payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    after,
    answer,
    balances,
    booked,
    claims,
    hear,
    question,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db

KES_285 = Decimal("285.00")
TOMORROW = datetime(2026, 2, 16, 21, 5, tzinfo=UTC)  # 00:05 of 17 February in Nairobi


@pytest.fixture
def payout() -> Transaction:
    """285 shillings owed to a member over M-Pesa."""
    return builders.payout(285)


def pks(found: list[sending_claims.Claim]) -> list[int]:
    return [claim.transaction_id for claim in found]


# --- claiming --------------------------------------------------------------------------------------------------------


def test_a_claim_commits_its_attempt_and_moves_the_money_in_flight(payout: Transaction) -> None:
    # when
    (claim,) = claims()

    # then
    attempt = payout.attempts.get()
    assert claim == sending_claims.Claim(
        attempt_id=attempt.pk,
        transaction_id=payout.pk,
        settlement_id=payout.settlement_id,
        originator_conversation_id=f"{payout.external_ref}-1",
        amount_shillings=285,
        phone_number=payout.phone_number,
        external_ref=payout.external_ref,
        token=ADDRESSES.token(f"{payout.external_ref}-1"),
        skips_queue=False,
    )
    assert states(payout, attempt) == ("PROCESSING", "SENDING")
    assert (attempt.posted_at, attempt.first_sent_at, attempt.next_query_at) == (AT, AT, after(20))
    assert booked(payout) == [(f"send:{attempt.pk}", "payable", "in_flight", KES_285)]
    assert balances(payout) == {"in_flight": KES_285}


def test_a_claimed_payout_is_not_claimed_again(payout: Transaction) -> None:
    # given
    claims()

    # then
    with nothing_moved():
        assert claims(after(100_000)) == []
        assert claims(after(100_000), transaction_id=payout.pk) == []


def test_the_oldest_of_a_settlement_are_claimed_first_up_to_the_limit() -> None:
    # given
    market = builders.settled_market([(builders.member(), "Yes", 285) for _ in range(3)], fee_pct=0)
    third, first, second = Transaction.objects.filter(settlement__market=market).order_by("pk")
    for payout, seconds in ((third, 3), (first, 1), (second, 2)):
        Transaction.objects.filter(pk=payout.pk).update(due_at=after(seconds))

    # when
    found = [pks(claims(after(10), limit=2)), pks(claims(after(10), limit=2))]

    # then
    assert found == [[first.pk, second.pk], [third.pk]]


def test_a_payout_that_is_not_due_is_not_claimed(payout: Transaction) -> None:
    # given
    Transaction.objects.update(due_at=after(60))

    # then
    assert claims(after(59)) == []
    assert not sending_claims.any_due(at=after(59), policy=payout_steps.POLICY)
    assert sending_claims.any_due(at=after(60), policy=payout_steps.POLICY)
    assert pks(claims(after(60))) == [payout.pk]


@pytest.mark.parametrize("release_at", [None, after(3_600)])
def test_a_payout_whose_settlement_is_not_released_is_not_claimed(
    payout: Transaction, release_at: datetime | None
) -> None:
    # given
    Settlement.objects.update(release_at=release_at)

    # then
    assert claims(after(3_599)) == []
    assert claims(after(3_599), transaction_id=payout.pk) == []
    assert not sending_claims.any_due(at=after(3_599), policy=payout_steps.POLICY)
    assert len(claims(after(3_600))) == (1 if release_at else 0)


def test_what_goes_to_a_wallet_is_never_claimed() -> None:
    # given
    builders.settled_market([(builders.member(), "Yes", "9.50"), (builders.member(), "Yes", "5")], fee_pct=0)
    builders.settled_market([(builders.member(), "Yes", 500)], rule="VOID")

    # then
    assert set(Transaction.objects.values_list("destination", "type")) == {("wallet", "PAYOUT"), ("wallet", "REFUND")}
    assert claims(after(100_000)) == []


@pytest.mark.django_db(transaction=True)
def test_workers_that_claim_at_once_never_claim_one_payout_twice() -> None:
    # given
    members = [builders.member() for _ in range(24)]
    builders.settled_market([(member, "Yes", 100) for member in members], fee_pct=0)

    # when
    found = builders.at_once(*[lambda: pks(claims(limit=10))] * 4)
    rest = pks(claims())

    # then
    claimed = Counter(pk for one in [*found, rest] for pk in one)
    assert len(claimed) == 24
    assert set(claimed.values()) == {1}
    assert Attempt.objects.count() == 24


@pytest.mark.django_db(transaction=True)
def test_workers_that_want_the_same_payout_at_once_send_it_once() -> None:
    # given
    payout = builders.payout(285)

    # when
    found = builders.at_once(*[lambda: claims(transaction_id=payout.pk)] * 6)

    # then
    assert sum(len(one) for one in found) == 1
    assert payout.attempts.count() == 1


@pytest.mark.django_db(transaction=True)
def test_workers_that_resend_at_once_send_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_hear(attempt, payout_steps.not_found_body(), after(20))

    # when
    found = builders.at_once(*[lambda: payout_steps.resends(after(30))] * 4)

    # then
    assert sum(len(one) for one in found) == 1


def test_what_would_pass_the_days_limit_leaves_tomorrow() -> None:
    # given
    member = builders.member()
    first, second, third = (builders.payout(amount, user=member) for amount in (250_000, 249_999, 10))
    other = builders.payout(250_000)

    # when
    today = pks(claims())

    # then
    third.refresh_from_db()
    assert today == [first.pk, second.pk, other.pk]
    assert (third.status, third.due_at) == ("PENDING", TOMORROW)
    assert third.reason == "The member reached M-Pesa's limit of the day. It leaves tomorrow."
    assert third.attempts.count() == 0
    assert claims(TOMORROW - timedelta(seconds=1)) == []
    assert pks(claims(TOMORROW)) == [third.pk]


def test_exactly_the_days_limit_leaves_today() -> None:
    # given
    member = builders.member()
    for _ in range(2):
        builders.payout(250_000, user=member)

    # then
    assert len(claims()) == 2


def test_the_day_is_nairobis_and_what_failed_does_not_count() -> None:
    # given
    member = builders.member()
    before_midnight = datetime(2026, 2, 15, 20, 59, tzinfo=UTC)
    yesterday = builders.payout(250_000, user=member, at=before_midnight)
    sent(yesterday, at=before_midnight)
    refused = builders.payout(250_000, user=member)
    payout_steps.failed(refused)
    today = [builders.payout(250_000, user=member) for _ in range(2)]

    # when
    found = pks(claims(after(1)))

    # then
    assert found == [payout.pk for payout in today]
    actions.retry(transaction_id=refused.pk, by=MACHINE, at=after(2))
    assert claims(after(2)) == []
    refused.refresh_from_db()
    assert (refused.status, refused.due_at) == ("PENDING", TOMORROW)


def test_the_tranches_of_a_large_dividend_leave_over_days() -> None:
    # given
    member = builders.member()
    builders.settled_market([(member, "Yes", "1000003.20")], fee_pct=0)

    # when
    days = [[claim.amount_shillings for claim in claims(AT + timedelta(days=day))] for day in range(3)]

    # then
    assert days == [[250_000, 250_000], [250_000, 250_000], []]
    member.refresh_from_db()
    assert member.balance == Decimal("3.20")


def test_a_waiting_request_of_todays_is_not_counted_twice() -> None:
    # given
    policy = builders.policy(day_limit=300_000)
    payout = builders.payout(250_000)
    sent(payout, payout_steps.NO_CONNECTION, policy=policy)

    # then
    assert pks(claims(after(15), policy)) == [payout.pk]


# --- sending ---------------------------------------------------------------------------------------------------------


def test_a_request_says_whom_how_much_and_where_to_answer(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    gateway = payout_steps.FakeGateway()

    # when
    said = sending_claims.call(claim, gateway=gateway, addresses=ADDRESSES)

    # then
    token, reference = claim.token, payout.external_ref.replace("-", " ")
    assert said == payout_steps.ACCEPTED
    assert gateway.payments == [
        {
            "originator_conversation_id": f"{payout.external_ref}-1",
            "amount_shillings": 285,
            "phone_number": payout.phone_number,
            "remarks": f"Payout {reference}",
            "occasion": reference,
            "result_url": f"https://kasoko.app/api/payments/b2c-callback/{token}/",
            "timeout_url": f"https://kasoko.app/api/payments/b2c-timeout/{token}/",
        }
    ]


def test_the_log_says_so_in_the_guides_words(payout: Transaction, caplog: pytest.LogCaptureFixture) -> None:
    # given
    caplog.set_level(logging.INFO, "payments.payouts")

    # when
    sent(payout)

    # then
    assert f"Initiating B2C payout for transaction {payout.pk}, amount=285" in caplog.messages


def test_an_accepted_request_is_not_paid(payout: Transaction) -> None:
    # when
    attempt = sent(payout, at=AT)

    # then
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert attempt.conversation_id == "AG_20260216_1"
    assert attempt.next_query_at == after(20)
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize(
    "said", [payout_steps.READ_TIMEOUT, payout_steps.DUPLICATE], ids=["read timeout", "duplicate id"]
)
def test_what_may_have_left_is_in_doubt_never_failed(payout: Transaction, said: gateway_errors.GatewayError) -> None:
    # when
    attempt = sent(payout, said)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert (attempt.doubted_at, attempt.next_query_at, attempt.resend_at) == (AT, after(20), None)
    assert balances(payout) == {"in_flight": KES_285}
    assert claims(after(100_000)) == []


def test_a_request_that_never_left_waits_and_goes_again_under_its_id(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)
    waiting = states(payout, attempt)
    due_at = payout.due_at

    # when
    (again,) = claims(after(15))

    # then
    assert waiting == ("PENDING", "WAITING")
    assert due_at == after(15)
    assert (attempt.first_sent_at, attempt.next_query_at) == (None, None)
    assert again.originator_conversation_id == attempt.originator_conversation_id
    assert again.attempt_id == attempt.pk
    attempt = payout_steps.put_through(again, at=after(16))
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert attempt.first_sent_at == after(15)
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]


def test_the_pause_doubles_to_five_minutes(payout: Transaction) -> None:
    # given
    at, pauses = AT, []

    # when
    for _ in range(7):
        sent(payout, payout_steps.NO_CONNECTION, at=at)
        payout.refresh_from_db()
        pauses.append((payout.due_at - at).total_seconds())
        at = payout.due_at

    # then
    assert pauses == [15, 15, 30, 60, 120, 240, 300]
    assert payout.attempts.count() == 1


def test_what_never_left_does_not_count_towards_the_resend_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    (again,) = claims(after(86_000))

    # then
    assert again.attempt_id == attempt.pk
    attempt.refresh_from_db()
    assert attempt.first_sent_at == after(86_000)


def test_a_throttled_request_keeps_its_id_and_waits_as_told(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)

    # then
    assert states(payout, attempt) == ("PENDING", "WAITING")
    assert payout.due_at == after(40)
    assert claims(after(39)) == []
    assert [claim.originator_conversation_id for claim in claims(after(40))] == [f"{payout.external_ref}-1"]


def test_a_throttled_request_is_only_asked_about_after_the_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)

    # when
    late = claims(after(1_800))

    # then
    assert late == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert question(attempt, after(1_800)).originator_conversation_id == attempt.originator_conversation_id
    assert balances(payout) == {"in_flight": KES_285}


def test_a_connection_that_fails_after_a_throttled_post_does_not_reset_the_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)
    sent(payout, payout_steps.NO_CONNECTION, at=after(40))

    # then
    attempt.refresh_from_db()
    assert attempt.first_sent_at == AT
    assert claims(after(1_800)) == []


def test_an_outright_rejection_fails_the_payout(payout: Transaction) -> None:
    # when
    attempt = sent(payout, payout_steps.REJECTED)

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert payout.failed_at == AT
    assert payout.reason.startswith("400.002.02 ")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
    ]
    assert balances(payout) == {"payable": KES_285}


@pytest.mark.parametrize(
    "said",
    [
        payout_steps.REJECTED,
        payout_steps.NO_CONNECTION,
        payout_steps.THROTTLED,
        payout_steps.DUPLICATE,
        payout_steps.READ_TIMEOUT,
    ],
    ids=["rejected", "no connection", "throttled", "duplicate", "read timeout"],
)
def test_once_in_doubt_no_answer_to_a_resend_but_a_result_decides(
    payout: Transaction, said: gateway_errors.GatewayError
) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_hear(attempt, payout_steps.not_found_body(), after(20))
    (claim,) = payout_steps.resends(after(22))

    # when
    attempt = payout_steps.put_through(claim, said, at=after(24))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.first_sent_at == AT
    assert balances(payout) == {"in_flight": KES_285}
    assert claims(after(100_000)) == []
    assert hear(attempt, result_body(attempt), after(25)) == "paid"


def test_a_rejection_that_comes_after_a_queue_timeout_does_not_fail(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    payout_steps.hear_timeout(claim.token, after(1))

    # when
    attempt = payout_steps.put_through(claim, payout_steps.REJECTED, at=after(2))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_writing_the_same_answer_twice_changes_nothing(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    payout_steps.put_through(claim, payout_steps.REJECTED, at=after(1))

    # then
    with nothing_moved():
        payout_steps.put_through(claim, payout_steps.REJECTED, at=after(2))
        payout_steps.put_through(claim, payout_steps.ACCEPTED, at=after(3))


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_died_while_sending_is_asked_after(payout: Transaction) -> None:
    # given
    claims()
    attempt = payout.attempts.get()

    # when
    too_soon = status_queries.ask(at=after(19), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)
    asked = question(attempt, after(20))

    # then
    assert too_soon == []
    assert asked.originator_conversation_id == attempt.originator_conversation_id
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert answer(asked, status_body(attempt), after(21)) == "paid"


def test_questions_go_on_at_gaps_that_double_to_an_hour(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    at, gaps = after(20), []

    # when
    for _ in range(9):
        question(attempt, at)
        attempt.refresh_from_db()
        gaps.append((attempt.next_query_at - at).total_seconds())
        at = attempt.next_query_at

    # then
    assert gaps == [60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]
    assert list(attempt.queries.order_by("number").values_list("number", flat=True)) == list(range(1, 10))


def test_each_question_has_a_token_of_its_own(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    tokens = [question(attempt, after(seconds)).token for seconds in (20, 80, 200)]

    # then
    assert len({*tokens, ADDRESSES.token(attempt.originator_conversation_id)}) == 4
    assert tokens[0] == ADDRESSES.token(f"{attempt.originator_conversation_id}?1")


def test_a_question_is_put_to_its_own_address(payout: Transaction) -> None:
    # given
    asked = question(sent(payout), after(20))
    gateway = payout_steps.FakeGateway(client.Accepted("AG_20260216_7", "daraja's own"))

    # when
    said = status_queries.put(asked, gateway=gateway, addresses=ADDRESSES)
    status_queries.record_question(asked, said)

    # then
    assert gateway.questions == [
        {
            "originator_conversation_id": f"{payout.external_ref}-1",
            "result_url": f"https://kasoko.app/api/payments/status-result/{asked.token}/",
            "timeout_url": f"https://kasoko.app/api/payments/b2c-timeout/{asked.token}/",
            "remarks": "Payout status",
        }
    ]
    assert StatusQuery.objects.get().conversation_id == "AG_20260216_7"


@pytest.mark.parametrize(
    "said",
    [payout_steps.READ_TIMEOUT, payout_steps.NO_CONNECTION, payout_steps.REJECTED, payout_steps.DUPLICATE],
    ids=str,
)
def test_a_question_that_is_not_taken_changes_nothing(payout: Transaction, said: gateway_errors.GatewayError) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))

    # when
    with nothing_moved():
        taken = status_queries.put(asked, gateway=payout_steps.FakeGateway(said), addresses=ADDRESSES)

    # then
    assert taken is None
    assert question(attempt, after(80)).query_id != asked.query_id


def test_what_is_waiting_paid_or_failed_is_not_asked_about() -> None:
    # given
    waiting, paid, failed = (builders.payout(285) for _ in range(3))
    attempt = sent(paid)
    hear(attempt, result_body(attempt), after(1))
    payout_steps.failed(failed)
    sent(waiting, payout_steps.NO_CONNECTION)

    # then
    assert status_queries.ask(at=after(100_000), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10) == []


def test_no_more_questions_are_asked_at_once_than_the_limit() -> None:
    # given
    for seconds in range(5):
        sent(builders.payout(285), at=after(seconds))

    # when
    asked = [
        len(status_queries.ask(at=after(60), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=limit))
        for limit in (3, 3, 3)
    ]

    # then
    assert asked == [3, 2, 0]


@pytest.mark.django_db(transaction=True)
def test_workers_that_ask_at_once_ask_each_question_once() -> None:
    # given
    for _ in range(6):
        sent(builders.payout(285))

    # when
    asked = builders.at_once(
        *[lambda: status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)] * 4
    )
    asked.append(status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10))

    # then
    assert sum(len(one) for one in asked) == 6
    assert StatusQuery.objects.count() == 6


def test_in_doubt_for_a_day_is_held_for_a_person(payout: Transaction, caplog: pytest.LogCaptureFixture) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    question(attempt, after(86_399))
    before = states(payout, attempt)

    # when
    question(attempt, after(86_399 + 120))

    # then
    assert before == ("PROCESSING", "IN_DOUBT")
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert payout.reason == "In doubt for too long. A person must check M-Pesa's statement."
    assert [record.name for record in caplog.records if "is held" in record.getMessage()] == ["kasoko.alarm"]
    assert balances(payout) == {"in_flight": KES_285}


def test_what_is_held_is_still_asked_about_and_completed_by_late_evidence(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    verdict = answer(question(attempt, after(90_000)), status_body(attempt), after(90_001))

    # then
    assert verdict == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": Decimal("5.00")}


def test_what_is_held_fails_by_late_evidence_and_is_not_sent_by_itself(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    question(attempt, after(86_400))
    hear(attempt, result_body(attempt, 1), after(86_401))

    # when
    payout_steps.ask_and_hear(attempt, status_body(attempt, "Failed"), after(86_401))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert claims(after(200_000)) == []


# --- an operator's decisions -----------------------------------------------------------------------------------------


def test_a_failed_payout_is_retried_under_a_new_id(payout: Transaction) -> None:
    # given
    first = payout_steps.failed(payout)

    # when
    retried = actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    second = sent(payout, at=after(60))

    # then
    assert (retried.status, retried.due_at, retried.failed_at, retried.reason) == ("PENDING", after(60), None, "")
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    assert booked(payout) == [
        (f"send:{first.pk}", "payable", "in_flight", KES_285),
        (f"return:{first.pk}", "in_flight", "payable", KES_285),
        (f"send:{second.pk}", "payable", "in_flight", KES_285),
    ]
    assert hear(second, result_body(second), after(61)) == "paid"


STATES = ["PENDING", "WAITING", "SENDING", "ACCEPTED", "IN_DOUBT", "HELD", "COMPLETED", "REDIRECTED", "RETRIED"]


def brought_to(state: str, payout: Transaction) -> None:
    match state:
        case "WAITING":
            sent(payout, payout_steps.NO_CONNECTION)
        case "SENDING":
            claims()
        case "ACCEPTED":
            sent(payout)
        case "IN_DOUBT":
            sent(payout, payout_steps.READ_TIMEOUT)
        case "HELD":
            question(sent(payout, payout_steps.READ_TIMEOUT), after(86_400))
        case "COMPLETED":
            attempt = sent(payout)
            hear(attempt, result_body(attempt))
        case "REDIRECTED":
            payout_steps.failed(payout)
            actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=AT)
        case "RETRIED":
            payout_steps.failed(payout)
            actions.retry(transaction_id=payout.pk, by=MACHINE, at=AT)


@pytest.mark.parametrize("state", STATES)
def test_only_a_failed_payout_is_retried(payout: Transaction, state: str) -> None:
    # given
    brought_to(state, payout)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(100_000))


@pytest.mark.parametrize("state", STATES)
def test_only_a_failed_payout_goes_to_the_wallet_instead(payout: Transaction, state: str) -> None:
    # given
    brought_to(state, payout)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(100_000))


def test_neither_a_refund_nor_a_payout_to_the_wallet_is_retried() -> None:
    # given
    builders.settled_market([(builders.member(), "Yes", "9.50")], fee_pct=0)
    builders.settled_market([(builders.member(), "Yes", 500)], rule="VOID")

    # then
    for pk in Transaction.objects.values_list("pk", flat=True):
        with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
            actions.retry(transaction_id=pk, by=MACHINE, at=after(60))


def test_an_unknown_transaction_is_said_to_be_unknown() -> None:
    with pytest.raises(actions.TransactionNotFound):
        actions.retry(transaction_id=2**62, by=MACHINE, at=AT)
    with pytest.raises(actions.TransactionNotFound):
        actions.redirect_to_wallet(transaction_id=2**62, by=MACHINE, at=AT)


@pytest.mark.broken_books
def test_a_failed_payout_with_an_open_request_is_not_retried(payout: Transaction) -> None:
    # given
    payout_steps.failed(payout)
    Attempt.objects.create(
        transaction=payout, number=9, originator_conversation_id="KASOKO-X-9", token_hash="x", amount=payout.amount,
        phone_number=payout.phone_number, opened_at=AT,
    )  # fmt: skip

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))


@pytest.mark.django_db(transaction=True)
def test_two_operators_at_once_retry_or_redirect_but_not_both() -> None:
    # given
    payout = builders.payout(285)
    payout_steps.failed(payout)

    # when
    answers = builders.at_once(
        lambda: actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
        lambda: actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
        lambda: actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status,
    )

    # then
    refused = [one for one in answers if isinstance(one, actions.PayoutNotRetryable)]
    assert len(refused) == 2
    assert balances(payout) in ({"payable": KES_285}, {f"wallet:{payout.user_id}": KES_285})


def test_all_that_failed_lately_is_retried() -> None:
    # given
    long_ago, at_the_edge, lately, fine = (builders.payout(285, at=AT) for _ in range(4))
    payout_steps.failed(long_ago, at=AT)
    payout_steps.failed(at_the_edge, at=after(3_600))
    payout_steps.failed(lately, at=after(7_200))
    sent(fine)

    # when
    outcome = failures.retry_failed(since=after(3_600), by=MACHINE, at=after(9_000), limit=None)

    # then
    assert outcome == failures.Outcome([at_the_edge.pk, lately.pk], {})
    assert set(pks(claims(after(9_000)))) == {at_the_edge.pk, lately.pk}
    again = failures.retry_failed(since=after(3_600), by=MACHINE, at=after(9_001), limit=None)
    assert again == failures.Outcome([], {})


@pytest.mark.broken_books
def test_what_cannot_be_retried_is_counted() -> None:
    # given
    good, open_still = builders.payout(285), builders.payout(285)
    payout_steps.failed(good)
    payout_steps.failed(open_still)
    Attempt.objects.create(
        transaction=open_still, number=9, originator_conversation_id="KASOKO-X-9", token_hash="x",
        amount=open_still.amount, phone_number=open_still.phone_number, opened_at=AT,
    )  # fmt: skip

    # then
    outcome = failures.retry_failed(since=AT, by=MACHINE, at=after(60), limit=None)
    assert outcome == failures.Outcome([good.pk], {failures.CHANGED: 1})


def test_a_failed_payout_goes_to_the_wallet_instead(payout: Transaction) -> None:
    # given
    attempt = payout_steps.failed(payout)

    # when
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert states(payout, attempt) == ("COMPLETED", "FAILED")
    assert (payout.completed_at, payout.receipt, payout.reason) == (after(60), "", "Paid into the wallet instead.")
    assert booked(payout)[-1] == (f"redirect:{payout.pk}", "payable", wallet, KES_285)
    assert balances(payout) == {wallet: KES_285}
    payout.user.refresh_from_db()
    assert payout.user.balance == KES_285
    assert claims(after(100_000)) == []
