"""Status queries: due attempts, gaps, tokens and holds."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt, StatusQuery, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts import attempts
from payments.payouts.evidence import status_queries
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    KES_285,
    POLICY,
    after,
    answer,
    balances,
    claims,
    deliver_result,
    question,
    result_body,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db


def test_attempt_of_a_killed_worker_is_asked_about(payout: Transaction) -> None:
    # given
    claims()
    attempt = payout.attempts.get()

    # when
    too_soon = status_queries.ask(at=after(19), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)
    query = question(attempt, after(20))

    # then
    assert too_soon == []
    assert query.originator_conversation_id == attempt.originator_conversation_id
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert answer(query, status_body(attempt), after(21)) == "paid"


def test_queries_follow_at_gaps_that_double_to_an_hour(payout: Transaction) -> None:
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


def test_query_of_a_worker_that_died_before_its_post_does_not_count(payout: Transaction) -> None:
    # given: five queries were put, so the next gap is 32 minutes
    attempt = sent(payout)
    at = after(20)
    for _ in range(5):
        question(attempt, at)
        attempt.refresh_from_db()
        at = attempt.next_query_at

    # when: a worker commits the sixth query and dies
    status_queries.ask(at=at, policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)

    # then: the next query is due soon, under a number of its own, and the usual gap follows
    attempt.refresh_from_db()
    assert attempt.next_query_at == at + payout_steps.POLICY.query_after
    again = attempt.next_query_at
    question(attempt, again)
    attempt.refresh_from_db()
    assert attempt.next_query_at == again + timedelta(seconds=1_920)
    assert list(attempt.queries.order_by("number").values_list("number", "is_put"))[4:] == [
        (5, True), (6, False), (7, True),
    ]  # fmt: skip


def test_answer_to_a_query_whose_post_was_not_recorded_counts(payout: Transaction) -> None:
    attempt = sent(payout)
    (query,) = status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)
    assert answer(query, status_body(attempt), after(21)) == "paid"
    status_queries.record_put(query, None)
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.next_query_at is None


def test_each_query_has_its_own_token(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    tokens = [question(attempt, after(seconds)).token for seconds in (20, 80, 200)]

    # then
    assert len({*tokens, ADDRESSES.token(attempt.originator_conversation_id)}) == 4
    assert tokens[0] == ADDRESSES.token(f"{attempt.originator_conversation_id}?1")


def test_query_is_posted_with_its_own_address(payout: Transaction) -> None:
    # given
    query = question(sent(payout), after(20))
    gateway = payout_steps.FakeGateway(client.Accepted("AG_20260216_7", "daraja's own"))

    # when
    conversation_id = status_queries.post(query, gateway=gateway, addresses=ADDRESSES)
    status_queries.record_put(query, conversation_id)

    # then
    assert gateway.questions == [
        {
            "originator_conversation_id": f"{payout.external_ref}-1",
            "result_url": f"https://kasoko.app/api/payments/status-result/{query.token}/",
            "timeout_url": f"https://kasoko.app/api/payments/b2c-timeout/{query.token}/",
            "remarks": "Payout status",
        }
    ]
    assert StatusQuery.objects.get().conversation_id == "AG_20260216_7"


@pytest.mark.parametrize(
    "response",
    [payout_steps.READ_TIMEOUT, payout_steps.REJECTED, payout_steps.DUPLICATE],
    ids=str,
)
def test_query_that_is_not_taken_changes_nothing(payout: Transaction, response: gateway_errors.GatewayError) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))

    # when
    with nothing_moved():
        taken = status_queries.post(query, gateway=payout_steps.FakeGateway(response), addresses=ADDRESSES)

    # then
    assert taken is None
    assert question(attempt, after(80)).query_id != query.query_id


def test_query_that_never_left_does_not_count(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    first, second = question(attempt, after(20)), question(attempt, after(80))

    # when
    with pytest.raises(gateway_errors.NotSent):
        status_queries.post(
            second, gateway=payout_steps.FakeGateway(payout_steps.NO_CONNECTION), addresses=ADDRESSES
        )  # fmt: skip
    for _ in range(2):
        status_queries.withdraw(second, at=after(81), policy=payout_steps.POLICY)

    # then: the first query still counts, and the second is due again soon, not after its long gap
    attempt.refresh_from_db()
    assert list(attempt.queries.values_list("pk", flat=True)) == [first.query_id]
    assert attempt.next_query_at == after(81) + payout_steps.POLICY.retry_after
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    question(attempt, after(100))
    assert [query.number for query in attempt.queries.order_by("number")] == [1, 2]


def test_answered_or_superseded_query_is_not_withdrawn(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    first, second = question(attempt, after(20)), question(attempt, after(80))
    status_queries.record_put(second, "AG_20260216_7")

    # then
    with nothing_moved():
        status_queries.withdraw(first, at=after(81), policy=payout_steps.POLICY)
        status_queries.withdraw(second, at=after(81), policy=payout_steps.POLICY)
    assert attempt.queries.count() == 2


def test_waiting_paid_and_failed_attempts_are_not_asked_about() -> None:
    # given
    waiting, paid, failed = (builders.payout(285) for _ in range(3))
    attempt = sent(paid)
    deliver_result(attempt, result_body(attempt), after(1))
    payout_steps.failed(failed)
    sent(waiting, payout_steps.NO_CONNECTION)

    # then
    assert status_queries.ask(at=after(100_000), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10) == []


def test_queries_at_once_stay_within_the_limit() -> None:
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
def test_concurrent_workers_ask_each_query_once() -> None:
    # given
    for _ in range(6):
        sent(builders.payout(285))

    # when
    asked = builders.at_once(
        *[lambda: status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)] * 4
    )
    asked.append(status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10))

    # then
    assert sum(len(queries) for queries in asked) == 6
    assert StatusQuery.objects.count() == 6


def test_payout_in_doubt_for_a_day_is_held(payout: Transaction, caplog: pytest.LogCaptureFixture) -> None:
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


def test_held_payout_is_asked_about_and_completed_by_late_evidence(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    outcome = answer(question(attempt, after(90_000)), status_body(attempt), after(90_001))

    # then
    assert outcome == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": Decimal("5.00")}


def test_held_payout_failed_by_late_evidence_is_not_resent(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    question(attempt, after(86_400))
    deliver_result(attempt, result_body(attempt, 1), after(86_401))

    # when
    payout_steps.ask_and_answer(attempt, status_body(attempt, "Failed"), after(86_401))

    # then: the failure is a fault of ours, so the payout still waits for a person
    assert states(payout, attempt) == ("HELD", "FAILED")
    assert "Retry it" in payout.reason
    assert claims(after(200_000)) == []


# --- what is asked, and for how long ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "asked"), [("", ["", "", ""]), (Attempt.Decision.PAID, ["SKG7000001", "", "SKG7000001"])]
)
def test_only_a_decided_payment_is_asked_by_receipt_and_id_in_turn(
    payout: Transaction, decision: str, asked: list[str]
) -> None:
    attempt = sent(payout)
    attempts.keep_report(attempt, "untrusted", "0", "Words.", "SKG7000001", at=after(1))
    attempts.mark_decided(attempt, decision, ask_at=after(20))

    questions = [question(attempt, after(seconds)) for seconds in (20, 2_000, 4_000)]

    assert [query.receipt for query in questions] == asked


def test_query_names_the_receipt_or_our_id(payout: Transaction) -> None:
    query = question(sent(payout), after(20))
    gateway = payout_steps.FakeGateway()
    for one in (query, replace(query, receipt="SKG7000001")):
        status_queries.post(one, gateway=gateway, addresses=ADDRESSES)
    named = [(asked.get("receipt"), asked.get("originator_conversation_id")) for asked in gateway.questions]
    assert named == [(None, query.originator_conversation_id), ("SKG7000001", None)]


def test_recorded_query_leaves_the_next_query_of_others_and_cuts_long_ids() -> None:
    # given: two requests whose queries were claimed at the same moment
    asked_about = [sent(builders.payout(285)) for _ in range(2)]
    queries = status_queries.ask(at=after(20), policy=payout_steps.POLICY, addresses=ADDRESSES, limit=10)
    assert len({query.leased_until for query in queries}) == 1

    # when
    status_queries.record_put(queries[0], "x" * 100)

    # then
    for attempt in asked_about:
        attempt.refresh_from_db()
    assert [attempt.next_query_at for attempt in asked_about] == [queries[0].next_query_at, queries[0].leased_until]
    assert StatusQuery.objects.get(pk=queries[0].query_id).conversation_id == "x" * 64


@pytest.mark.parametrize(
    ("kind", "report", "seconds", "enough"),
    [
        (Attempt.Kind.B2C, "trusted", 86_399, False),
        (Attempt.Kind.B2C, "trusted", 86_400, True),
        (Attempt.Kind.FOUND, "", 86_399, False),
        (Attempt.Kind.FOUND, "", 86_400, True),
        (Attempt.Kind.B2C, "", 86_400, False),
    ],
)
def test_reported_or_found_failure_is_asked_about_for_a_day(
    payout: Transaction, kind: str, report: str, seconds: int, enough: bool
) -> None:
    """A plain failure is asked about once, for a retry. No query was put yet."""
    attempt = payout_steps.refused(payout)
    assert attempt.state == "FAILED"
    assert not attempt.callbacks.exists()
    attempt.kind, attempt.paid_report = kind, report
    at = attempt.closed_at + timedelta(seconds=seconds)

    assert status_queries._asked_enough(payout, attempt, at, POLICY) == enough
