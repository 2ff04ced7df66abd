"""What counts as knowing: each piece of evidence, what it does to the states, and every transfer it books."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt, Callback, StatusQuery, Transaction
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.operations import actions
from payments.policy import Policy
from testing import builders, payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    RECEIPT,
    after,
    answer,
    ask_and_hear,
    balances,
    booked,
    hear,
    not_found_body,
    question,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db

KES_285, CHARGE = Decimal("285.00"), Decimal("5.00")
PRODUCTION = builders.policy(production=True)
DOUBTFUL_CODES = ["15", "41", "17", "26", "34", "49", "100000000", "4711", "", "SFC_XX"]


@pytest.fixture
def payout() -> Transaction:
    """285 shillings owed to a member over M-Pesa."""
    return builders.payout(285)


@pytest.fixture
def alarms(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "kasoko.alarm")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "kasoko.alarm"]


def paid_once(payout: Transaction, attempt: Attempt, amount: Decimal = KES_285) -> list[tuple[str, str, str, Decimal]]:
    """The transfers of a payout that its first attempt paid."""
    wallet = f"wallet:{payout.user_id}"
    return [
        (f"send:{attempt.pk}", "payable", "in_flight", amount),
        (f"won:{attempt.pk}", "in_flight", wallet, amount),
        (f"paid:{attempt.pk}", wallet, "mpesa_utility", amount),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]


def failed_by_refusal(payout: Transaction) -> Attempt:
    attempt = payout_steps.failed(payout)
    assert states(payout, attempt) == ("FAILED", "FAILED")
    return attempt


# --- paid ------------------------------------------------------------------------------------------------------------


def test_a_matching_result_pays(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt), after(3))

    # then
    assert verdict == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (payout.receipt, payout.completed_at, payout.reason) == (RECEIPT, after(3), "")
    assert (attempt.receipt, attempt.closed_at, attempt.next_query_at) == (RECEIPT, after(3), None)
    assert booked(payout) == paid_once(payout, attempt)
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}
    payout.user.refresh_from_db()
    assert payout.user.balance == 0


def test_a_result_that_is_faster_than_the_acknowledgement_pays_once(payout: Transaction) -> None:
    # given
    (claim,) = payout_steps.claims()
    attempt = Attempt.objects.get(pk=claim.attempt_id)
    hear(attempt, result_body(attempt), after(1))

    # when
    attempt = payout_steps.put_through(claim, at=after(2))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.conversation_id == "AG_20260216_1"
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize(
    "said", [payout_steps.READ_TIMEOUT, payout_steps.REJECTED, payout_steps.NO_CONNECTION, payout_steps.DUPLICATE]
)
def test_what_the_call_left_unknown_does_not_undo_a_result(payout: Transaction, said: payout_steps.Said) -> None:
    # given
    (claim,) = payout_steps.claims()
    attempt = Attempt.objects.get(pk=claim.attempt_id)
    hear(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved():
        payout_steps.put_through(claim, said, at=after(5))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_a_repeated_callback_pays_once(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    body = result_body(attempt)
    hear(attempt, body, after(1))

    # when
    verdicts = [hear(attempt, body, after(2)), hear(attempt, body + b"\n", after(3))]

    # then
    assert verdicts == [None, "paid already"]
    assert Callback.objects.count() == 2
    assert booked(payout) == paid_once(payout, attempt)


def test_an_applied_callback_is_not_applied_again(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved():
        verdict = callbacks.apply(callback_id=Callback.objects.get().pk, at=after(2), policy=payout_steps.POLICY)

    # then
    assert verdict == "applied already"


@pytest.mark.django_db(transaction=True)
def test_results_and_answers_that_come_at_once_pay_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    asked = question(attempt, after(20))
    bodies = [result_body(attempt), result_body(attempt) + b" ", result_body(attempt) + b"\n"]

    # when
    verdicts = builders.at_once(
        *(lambda body=body: hear(attempt, body, after(21)) for body in bodies),
        lambda: answer(asked, status_body(attempt), after(21)),
    )

    # then
    assert sorted(verdicts) == ["paid", "paid already", "paid already", "paid already"]
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.django_db(transaction=True)
def test_workers_that_apply_one_callback_at_once_apply_it_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    token = ADDRESSES.token(attempt.originator_conversation_id)
    callbacks.store(
        kind="result",
        token=token,
        body=result_body(attempt),
        source_ip=None,
        trusted=True,
        at=after(1),
        addresses=payout_steps.ADDRESSES,
    )
    stored = Callback.objects.get().pk

    # when
    verdicts = builders.at_once(
        *[lambda: callbacks.apply(callback_id=stored, at=after(2), policy=payout_steps.POLICY)] * 4
    )

    # then
    assert sorted(verdicts) == ["applied already"] * 3 + ["paid"]
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize(
    ("amount", "charge"),
    [(100, None), (101, "5.00"), (1_500, "5.00"), (1_501, "9.00"), (5_001, "11.00"), (20_001, "13.00")],
)
def test_the_tariffs_charge_is_booked_with_the_payment(amount: int, charge: str | None) -> None:
    # given
    payout = builders.payout(amount)
    attempt = sent(payout)

    # when
    hear(attempt, result_body(attempt))

    # then
    found = builders.transfers(code="charge")
    expected = (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", Decimal(charge or 0))
    assert found == ([expected] if charge else [])


# --- what does not match ---------------------------------------------------------------------------------------------

MISMATCHES = {
    "one shilling more": {"amount": 286},
    "a cent less": {"amount": "284.99"},
    "another phone": {"phone": "254799999999"},
    "a masked phone that is another": {"phone": "2547****998"},
    "another request": {"ocid": "KASOKO-9-9-ffffffff-1"},
}


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_a_result_that_does_not_match_moves_nothing_and_asks(
    payout: Transaction, alarms: Callable[[], list[str]], change: dict[str, object]
) -> None:
    # given
    attempt = sent(payout)
    before = booked(payout)

    # when
    verdict = hear(attempt, result_body(attempt, **change), after(2))

    # then
    assert verdict is not None and verdict.startswith("mismatch: ")
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert booked(payout) == before
    assert len(alarms()) == 1 and "Mismatch" in alarms()[0]
    assert attempt.next_query_at == after(2)


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_after_a_mismatch_a_matching_result_still_completes(payout: Transaction, change: dict[str, object]) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt, **change), after(2))

    # when
    hear(attempt, result_body(attempt), after(3))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_an_answer_that_does_not_match_moves_nothing(
    payout: Transaction, alarms: Callable[[], list[str]], change: dict[str, object]
) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))

    # when
    with nothing_moved_but_callbacks():
        verdict = answer(asked, status_body(attempt, **change), after(21))

    # then
    assert verdict is not None and verdict.startswith("mismatch: ")
    assert len(alarms()) == 1
    assert attempt.queries.get().verdict == ""
    assert answer(asked, status_body(attempt), after(22)) == "paid"
    assert booked(payout) == paid_once(payout, attempt)


class nothing_moved_but_callbacks:  # noqa: N801 - reads as the function it stands beside
    """Assert that a block moved no money and no state; a callback may have been stored."""

    def __enter__(self) -> None:
        self.before = {**builders.money_snapshot(), "callbacks": None}

    def __exit__(self, *_: object) -> None:
        assert {**builders.money_snapshot(), "callbacks": None} == self.before


@pytest.mark.parametrize("shown", ["254{1}****{2}", "0{1}***{2}", "0{1}{2}", "+254{1}***{2}", "{full}"])
def test_a_masked_phone_that_can_be_the_members_pays(payout: Transaction, shown: str) -> None:
    # given
    attempt = sent(payout)
    number = attempt.phone_number
    phone = shown.replace("{1}{2}", number[3:]).format("", number[3:6], number[-3:], full=number)

    # when
    hear(attempt, result_body(attempt, phone=phone))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_a_genuine_result_replayed_at_another_attempts_address_pays_nothing() -> None:
    # given
    one, other = builders.payout(285), builders.payout(285)
    genuine, victim = sent(one), sent(other)
    body = result_body(genuine)

    # when
    verdict = hear(victim, body, after(1))

    # then
    assert verdict == "mismatch: the result names another request"
    assert states(other, victim) == ("PROCESSING", "ACCEPTED")
    assert [key for key, *_ in booked(other)] == [f"send:{victim.pk}"]


# --- claims that take a second voice ---------------------------------------------------------------------------------


def claims_only(payout: Transaction, attempt: Attempt, verdict: str | None) -> None:
    """The callback was kept as a claim: nothing is booked, and a question is due at once."""
    assert verdict == "reported paid: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]
    assert attempt.next_query_at == after(2)


@pytest.mark.parametrize("missing", ["TransactionAmount", "TransactionReceipt", "ReceiverPartyPublicName"])
def test_an_incomplete_success_is_asked_about_and_then_pays(payout: Transaction, missing: str) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt, without=[missing]), after(2))

    # then
    claims_only(payout, attempt, verdict)
    assert ask_and_hear(attempt, status_body(attempt), after(2)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)


def test_a_large_payment_needs_a_status_query_too() -> None:
    # given
    payout = builders.payout(50_000)
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt), after(2))

    # then
    claims_only(payout, attempt, verdict)
    assert ask_and_hear(attempt, status_body(attempt), after(2)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_a_payment_just_under_the_threshold_does_not() -> None:
    # given
    payout = builders.payout(49_999)
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt), after(2))

    # then
    assert verdict == "paid"


def test_in_production_a_result_from_another_address_needs_a_status_query(payout: Transaction) -> None:
    # given
    attempt = sent(payout, policy=PRODUCTION)

    # when
    verdict = hear(attempt, result_body(attempt), after(2), policy=PRODUCTION, trusted=False)

    # then
    claims_only(payout, attempt, verdict)
    assert ask_and_hear(attempt, status_body(attempt), after(2), PRODUCTION) == "paid"
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize(("policy", "trusted"), [(PRODUCTION, True), (payout_steps.POLICY, False)])
def test_the_address_lowers_trust_in_production_only(payout: Transaction, policy: Policy, trusted: bool) -> None:
    # given
    attempt = sent(payout, policy=policy)

    # when
    verdict = hear(attempt, result_body(attempt), policy=policy, trusted=trusted)

    # then
    assert verdict == "paid"


def test_a_large_success_that_the_queries_deny_waits_on_a_person() -> None:
    # given
    payout = builders.payout(50_000)
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(2))

    # when
    first = ask_and_hear(attempt, status_body(attempt, "Failed"), after(2))
    second = ask_and_hear(attempt, status_body(attempt, "Failed"), after(62))

    # then
    assert first == "in doubt: one status query says failed, a second one is due"
    assert second == "held: the result says paid, the queries say failed"
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert balances(payout) == {"in_flight": Decimal("50000.00")}


# --- failed ----------------------------------------------------------------------------------------------------------


def test_a_failure_code_in_a_callback_alone_does_not_fail(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt, 2040), after(2))

    # then
    assert verdict == "reported failed: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert (attempt.result_code, attempt.next_query_at) == ("2040", after(2))
    assert balances(payout) == {"in_flight": KES_285}


def test_a_failure_code_and_a_status_query_that_agrees_fail(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt, 2040), after(2))

    # when
    verdict = ask_and_hear(attempt, status_body(attempt, "Failed"), after(2))

    # then
    assert verdict == "failed: 2040 Refused with 2040."
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert (payout.failed_at, payout.reason) == (after(3), "2040 Refused with 2040.")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
    ]
    assert balances(payout) == {"payable": KES_285}


def test_the_failure_code_may_come_after_the_query(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(20))

    # when
    hear(attempt, result_body(attempt, 2040), after(22))
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(22))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


def test_a_failure_code_that_a_query_contradicts_pays(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt, 2040), after(2))

    # when
    verdict = ask_and_hear(attempt, status_body(attempt), after(2))

    # then
    assert verdict == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize("text", ["Failed", "Cancelled", "Declined", "Expired", "FAILED"])
def test_two_queries_apart_in_time_that_agree_fail(payout: Transaction, text: str) -> None:
    # given
    attempt = sent(payout)
    first = ask_and_hear(attempt, status_body(attempt, text), after(20))

    # when
    second = ask_and_hear(attempt, status_body(attempt, text), after(80))

    # then
    assert first == "in doubt: one status query says failed, a second one is due"
    assert second == "failed: M-Pesa's records say it failed"
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


def test_two_queries_closer_than_the_gap_do_not_fail(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(20))
    hear(attempt, result_body(attempt, amount=1), after(30))  # A mismatch has the next question asked at once.

    # when
    verdict = ask_and_hear(attempt, status_body(attempt, "Failed"), after(30))

    # then
    assert verdict == "in doubt: one status query says failed, a second one is due"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(80)
    assert balances(payout) == {"in_flight": KES_285}


def test_one_query_answered_twice_is_one_voice(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))

    # when
    answer(asked, status_body(attempt, "Failed"), after(21))
    answer(asked, status_body(attempt, "Failed") + b" ", after(200))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("first", ["not found", "pending"])
def test_a_query_that_says_failed_only_at_its_second_answer_is_heard(payout: Transaction, first: str) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))
    answer(asked, not_found_body() if first == "not found" else status_body(attempt, "Pending"), after(21))

    # when
    verdict = answer(asked, status_body(attempt, "Failed"), after(22))

    # then
    assert verdict is not None and verdict.startswith("in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert Callback.objects.filter(applied_at=None).count() == 0


@pytest.mark.parametrize("text", ["Authorized", "Pending", "", "Reversed", "Unheard of"])
def test_a_status_that_is_not_final_proves_nothing(payout: Transaction, text: str) -> None:
    # given
    attempt = sent(payout)

    # when
    for seconds in (20, 80, 200):
        ask_and_hear(attempt, status_body(attempt, text), after(seconds))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("code", DOUBTFUL_CODES)
def test_a_code_that_is_not_definite_leaves_the_money_in_doubt(payout: Transaction, code: str) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = hear(attempt, result_body(attempt, code), after(2))

    # then
    assert verdict is not None and verdict.startswith("in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(20)
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("code", DOUBTFUL_CODES)
def test_a_doubtful_code_is_no_second_voice_to_a_failed_query(payout: Transaction, code: str) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt, code), after(2))

    # when
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(20))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


@pytest.mark.parametrize("code", [0, 2040])
def test_a_message_that_is_not_final_proves_nothing(payout: Transaction, code: int) -> None:
    # given
    attempt = sent(payout)

    # when
    hear(attempt, result_body(attempt, code, result_type=1), after(2))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.result_code == ""
    assert balances(payout) == {"in_flight": KES_285}


def test_an_unreadable_result_is_alarmed_and_asked_about(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = hear(attempt, b"<html>Service Unavailable</html>", after(2))

    # then
    assert verdict is not None and verdict.startswith("unreadable (not JSON); in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert len(alarms()) == 1


def test_a_queue_timeout_proves_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    verdict = payout_steps.hear_timeout(ADDRESSES.token(attempt.originator_conversation_id), after(2))

    # then
    assert verdict == "in doubt: a queue timeout proves nothing"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}
    assert hear(attempt, result_body(attempt), after(4)) == "paid"


def test_a_queue_timeout_after_payment_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved_but_callbacks():
        verdict = payout_steps.hear_timeout(ADDRESSES.token(attempt.originator_conversation_id), after(2))

    # then
    assert verdict == "PAID already"


def test_the_queue_timeout_of_a_query_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))

    # when
    with nothing_moved_but_callbacks():
        payout_steps.hear_timeout(asked.token, after(25))

    # then
    assert Callback.objects.get().query_id == asked.query_id
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


# --- not found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [49, "SFC_IC0003"])
def test_not_found_sends_the_same_id_again_within_the_horizon(payout: Transaction, code: int | str) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    verdict = ask_and_hear(attempt, not_found_body(code), after(20))
    (claim,) = payout_steps.resends(after(22))
    attempt = payout_steps.put_through(claim, at=after(23))

    # then
    assert verdict == "not found: the same request is sent again"
    assert claim.originator_conversation_id == f"{payout.external_ref}-1"
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert (attempt.posted_at, attempt.first_sent_at, attempt.resend_at) == (after(22), AT, None)
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]
    assert payout_steps.resends(after(24)) == []
    assert hear(attempt, result_body(attempt), after(25)) == "paid"
    assert booked(payout) == paid_once(payout, attempt)


def test_not_found_never_sends_again_after_the_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    verdict = ask_and_hear(attempt, not_found_body(), after(1_800))

    # then
    assert verdict == "in doubt: not_found proves nothing"
    assert payout_steps.resends(after(1_802)) == []
    assert payout_steps.claims(after(90_000)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_a_resend_that_is_claimed_too_late_does_not_go(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_hear(attempt, not_found_body(), after(1_790))

    # when
    late = payout_steps.resends(after(1_800))

    # then
    assert late == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.resend_at is None


def test_not_found_sends_the_same_id_again_whatever_a_callback_claimed(payout: Transaction) -> None:
    # given: a failure that a forger may have claimed about a request that never arrived
    attempt = sent(payout)
    hear(attempt, result_body(attempt, 2040), after(2))

    # when
    verdict = ask_and_hear(attempt, not_found_body(), after(2))

    # then
    assert verdict == "not found: the same request is sent again"
    (claim,) = payout_steps.resends(after(4))
    assert claim.originator_conversation_id == attempt.originator_conversation_id


def test_a_failure_claimed_of_a_request_that_never_left_means_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    with nothing_moved_but_callbacks():
        verdict = hear(attempt, result_body(attempt, 2040), after(2))

    # then
    assert verdict == "nothing: this request never left us"
    assert states(payout, attempt) == ("PENDING", "WAITING")


def test_a_failure_that_is_claimed_stops_a_resend_that_was_due(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_hear(attempt, not_found_body(), after(20))

    # when
    hear(attempt, result_body(attempt, 2040), after(22))

    # then
    assert payout_steps.resends(after(23)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_not_found_never_fails_however_often_it_is_said(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    for seconds in (20, 80, 200, 2_000, 6_000, 10_000):
        ask_and_hear(attempt, not_found_body(), after(seconds))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("text", ["Failed", None])
def test_a_question_asked_before_the_latest_post_says_nothing_about_it(payout: Transaction, text: str | None) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    early = question(attempt, after(20))
    ask_and_hear(attempt, not_found_body(), after(80))
    (claim,) = payout_steps.resends(after(82))
    attempt = payout_steps.put_through(claim, at=after(83))

    # when
    answer(early, status_body(attempt, text) if text else not_found_body(), after(84))
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(103))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert payout_steps.resends(after(104)) == []
    assert balances(payout) == {"in_flight": KES_285}


def test_a_question_asked_before_the_latest_post_still_proves_payment(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    early = question(attempt, after(20))
    ask_and_hear(attempt, not_found_body(), after(80))
    payout_steps.put_through(payout_steps.resends(after(82))[0], payout_steps.DUPLICATE, at=after(83))

    # when
    verdict = answer(early, status_body(attempt), after(84))

    # then
    assert verdict == "paid"
    assert booked(payout) == paid_once(payout, attempt)


@pytest.mark.parametrize("when", ["in time", "after a question that did not find it"])
def test_what_mpesa_says_it_has_had_is_asked_about_and_not_sent_again(payout: Transaction, when: str) -> None:
    # given: the answer to the first POST was lost, the resend is said to be a duplicate
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_hear(attempt, not_found_body(), after(20))
    (again,) = payout_steps.resends(after(22))
    if when == "in time":
        payout_steps.put_through(again, payout_steps.DUPLICATE, at=after(23))
        verdict = ask_and_hear(attempt, not_found_body(), after(100))
    else:
        verdict = ask_and_hear(attempt, not_found_body(), after(100))
        assert verdict == "not found: the same request is sent again"
        payout_steps.put_through(again, payout_steps.DUPLICATE, at=after(102))
        verdict = ask_and_hear(attempt, not_found_body(), after(300))

    # then
    assert verdict == "in doubt: not_found proves nothing"
    assert payout_steps.resends(after(301)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at is not None
    assert hear(attempt, result_body(attempt), after(400)) == "paid"


@pytest.mark.parametrize("code", [15, 41])
@pytest.mark.parametrize(("trusted", "goes_again"), [(True, 0), (False, 1)])
def test_a_result_that_says_duplicate_stops_resends_where_it_is_mpesas_own(
    payout: Transaction, code: int, trusted: bool, goes_again: int
) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_hear(attempt, not_found_body(), after(20), PRODUCTION)

    # when
    hear(attempt, result_body(attempt, code), after(22), policy=PRODUCTION, trusted=trusted)

    # then
    assert len(payout_steps.resends(after(23), PRODUCTION)) == goes_again
    if trusted:
        assert ask_and_hear(attempt, not_found_body(), after(90), PRODUCTION) == "in doubt: not_found proves nothing"
        assert payout_steps.resends(after(92), PRODUCTION) == []


# --- what contradicts what we had booked -----------------------------------------------------------------------------


def test_a_failure_after_payment_changes_nothing(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = sent(payout)
    early = question(attempt, after(20))
    hear(attempt, result_body(attempt), after(21))

    # when
    with nothing_moved_but_callbacks():
        verdicts = [
            hear(attempt, result_body(attempt, 2040), after(22)),
            answer(early, status_body(attempt, "Failed"), after(23)),
        ]

    # then
    assert verdicts == ["still paid: a failure after proof of payment changes nothing", "PAID already"]
    assert len(alarms()) == 1
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_a_second_receipt_is_alarmed_and_moves_nothing(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved_but_callbacks():
        verdict = hear(attempt, result_body(attempt, receipt="SKG7OTHER1"), after(2))

    # then
    assert verdict == "a second receipt SKG7OTHER1: M-Pesa may have paid twice"
    assert len(alarms()) == 1 and "second receipt" in alarms()[0]
    assert (payout.refresh_from_db(), payout.receipt) == (None, RECEIPT)


def test_a_late_success_after_failure_reopens_the_debt_and_pays_it(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    attempt = failed_by_refusal(payout)

    # when
    verdict = hear(attempt, result_body(attempt), after(60))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert verdict == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
        (f"reopen:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"won:{attempt.pk}", "in_flight", wallet, KES_285),
        (f"paid:{attempt.pk}", wallet, "mpesa_utility", KES_285),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert any("paid after all" in alarm for alarm in alarms())
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_a_late_success_after_a_retry_that_has_not_left_yet_is_the_payment(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    hear(attempt, result_body(attempt), after(31))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout_steps.claims(after(32)) == []
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def retried(payout: Transaction, said: payout_steps.Said = payout_steps.ACCEPTED) -> tuple[Attempt, Attempt]:
    """A payout that failed and was sent again: both its attempts."""
    first = failed_by_refusal(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))
    second = sent(payout, said, after(31))
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    return first, second


def test_a_late_success_beside_another_open_request_is_owed_back_and_held(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    first, second = retried(payout)

    # when
    verdict = hear(first, result_body(first), after(60))

    # then
    owes = f"receivable:{payout.user_id}"
    assert verdict == "paid after the debt was settled otherwise: the member owes it back"
    assert states(payout, first) == ("HELD", "PAID")
    assert states(payout, second) == ("HELD", "ACCEPTED")
    assert booked(payout)[-2:] == [
        (f"late:{first.pk}", owes, "mpesa_utility", KES_285),
        (f"charge:{first.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert balances(payout) == {
        "in_flight": KES_285,
        "mpesa_utility": -KES_285,
        owes: KES_285,
        "charge_expense": CHARGE,
    }
    assert any("paid after all" in alarm for alarm in alarms())


def test_what_is_held_so_is_completed_by_its_second_payment_and_stays_owed_back(payout: Transaction) -> None:
    # given
    first, second = retried(payout)
    hear(first, result_body(first), after(60))

    # when
    hear(second, result_body(second, receipt="SKG7SECOND"), after(61))

    # then
    assert states(payout, second) == ("COMPLETED", "PAID")
    assert payout.receipt == "SKG7SECOND"
    assert balances(payout) == {
        "mpesa_utility": -2 * KES_285,
        f"receivable:{payout.user_id}": KES_285,
        "charge_expense": 2 * CHARGE,
    }


@pytest.mark.parametrize("said", [payout_steps.NO_CONNECTION, payout_steps.THROTTLED])
def test_after_a_late_success_a_request_that_waits_is_not_sent(payout: Transaction, said: payout_steps.Said) -> None:
    # given
    first, second = retried(payout, said)
    assert states(payout, second) == ("PENDING", "WAITING")

    # when
    hear(first, result_body(first), after(60))

    # then
    assert payout_steps.claims(after(600)) == [], "The member has the money already."
    payout.refresh_from_db()
    assert payout.status in ("HELD", "COMPLETED")


def test_after_a_late_success_a_second_request_that_fails_settles_the_debt_with_the_first(payout: Transaction) -> None:
    # given
    first, second = retried(payout)
    hear(first, result_body(first), after(60))

    # when
    hear(second, result_body(second, 2040), after(61))
    ask_and_hear(second, status_body(second, "Failed"), after(61))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert states(payout, second) == ("COMPLETED", "FAILED")
    assert payout.receipt == RECEIPT
    assert booked(payout)[-3:] == [
        (f"return:{second.pk}", "in_flight", "payable", KES_285),
        (f"redirect:{payout.pk}", "payable", wallet, KES_285),
        (f"setoff:{first.pk}", wallet, f"receivable:{payout.user_id}", KES_285),
    ]
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(70))
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(70))


@pytest.mark.parametrize("code", [1, 2001])
def test_after_a_late_success_a_fault_of_ours_does_not_send_it_again(payout: Transaction, code: int) -> None:
    # given
    first, second = retried(payout)
    hear(first, result_body(first), after(60))

    # when
    hear(second, result_body(second, code), after(61))
    ask_and_hear(second, status_body(second, "Failed"), after(61))

    # then
    assert states(payout, second) == ("COMPLETED", "FAILED")
    assert payout_steps.claims(after(100_000)) == []
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_while_a_late_success_is_asked_about_the_payout_is_not_retried(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)
    hear(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(61))
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(61))
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(61), PRODUCTION)
    assert actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(70)).status == "PENDING"


def test_a_late_success_that_is_asked_about_for_a_day_in_vain_is_let_go(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)
    hear(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # when
    asked = status_queries.ask(at=after(86_460), policy=PRODUCTION, addresses=payout_steps.ADDRESSES, limit=10)

    # then
    assert asked == []
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert attempt.next_query_at is None


def test_a_fault_of_ours_in_a_request_that_waits_leaves_it_to_be_sent_anew(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    hear_plain(plain_body(payout, 1))

    # then
    assert states(payout, attempt) == ("PENDING", "FAILED")
    assert [claim.originator_conversation_id for claim in payout_steps.claims(after(100))] == [
        f"{payout.external_ref}-2"
    ]


def test_a_plain_failure_of_a_payout_that_failed_leaves_it_failed(payout: Transaction) -> None:
    # given
    failed_by_refusal(payout)

    # when
    hear_plain(plain_body(payout, 2040), 60)

    # then
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    assert balances(payout) == {"payable": KES_285}


def test_a_late_success_after_redirection_to_the_wallet_is_owed_back(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    attempt = failed_by_refusal(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    verdict = hear(attempt, result_body(attempt), after(60))

    # then
    owes, wallet = f"receivable:{payout.user_id}", f"wallet:{payout.user_id}"
    assert verdict == "paid after the debt was settled otherwise: the member owes it back"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout)[-3:] == [
        (f"redirect:{payout.pk}", "payable", wallet, KES_285),
        (f"late:{attempt.pk}", owes, "mpesa_utility", KES_285),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert balances(payout) == {
        wallet: KES_285,
        owes: KES_285,
        "mpesa_utility": -KES_285,
        "charge_expense": CHARGE,
    }
    assert any("paid after all" in alarm for alarm in alarms())


def test_a_late_success_that_cannot_be_trusted_is_asked_about_first(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)

    # when
    hear(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)
    between = states(payout, attempt)
    ask_and_hear(attempt, status_body(attempt), after(60), PRODUCTION)

    # then
    assert between == ("FAILED", "FAILED")
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_a_forged_late_success_is_not_asked_about_for_ever(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)
    hear(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # when
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(60), PRODUCTION)

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert attempt.next_query_at is None


def test_a_failure_repeated_after_failure_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = failed_by_refusal(payout)

    # when
    with nothing_moved_but_callbacks():
        verdict = hear(attempt, result_body(attempt, 2040), after(60))

    # then
    assert verdict == "failed already"


# --- whose fault -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 2001])
def test_a_fault_of_ours_puts_the_payout_back_to_be_sent_under_a_new_id(
    payout: Transaction, alarms: Callable[[], list[str]], code: int
) -> None:
    # given
    first = sent(payout)
    hear(first, result_body(first, code), after(2))

    # when
    ask_and_hear(first, status_body(first, "Failed"), after(2))

    # then
    assert states(payout, first) == ("PENDING", "FAILED")
    assert payout.due_at == after(33)
    assert len(alarms()) == 1 and "Sending is paused" in alarms()[0]
    assert balances(payout) == {"payable": KES_285}
    assert payout_steps.claims(after(32)) == []
    second = sent(payout, at=after(33))
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    assert hear(second, result_body(second), after(34)) == "paid"
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_a_fault_of_ours_that_goes_on_is_tried_ever_less_often(payout: Transaction) -> None:
    # given
    at, pauses = AT, []

    # when
    for _ in range(6):
        attempt = sent(payout, at=at)
        hear(attempt, result_body(attempt, 1), at)
        ask_and_hear(attempt, status_body(attempt, "Failed"), at)
        payout.refresh_from_db()
        pauses.append((payout.due_at - at).total_seconds() - 1)
        at = payout.due_at

    # then
    assert pauses == [30, 60, 120, 240, 300, 300]


@pytest.mark.parametrize("code", [2, 3, 4, 8, 2040, "SFC_IC0003"])
def test_a_fault_of_the_members_fails_their_payout(payout: Transaction, code: int | str) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt, code), after(2))

    # when
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(2))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert payout_steps.claims(after(100_000)) == []


# --- the guide's plain callback (its part 4.4) -----------------------------------------------------------------------


def plain_body(payout: Transaction, code: int | str = 0, **more: object) -> bytes:
    """The guide's body, its other ids left as "..."."""
    result = {
        "ResultCode": code,
        "ResultDesc": "The service request has been processed successfully.",
        "OriginatorConversationID": "...",
        "ConversationID": "...",
        "ExternalReference": payout.external_ref,
        "ResponseDescription": "success",
        **more,
    }
    return json.dumps({"Result": result}).encode()


def hear_plain(body: bytes, seconds: float = 1) -> str:
    return callbacks.apply_plain(
        body=body, source_ip="127.0.0.1", at=after(seconds), policy=payout_steps.POLICY, addresses=ADDRESSES
    )


def test_a_plain_callback_completes_a_pending_payout_with_a_manual_attempt(payout: Transaction) -> None:
    # when
    verdict = hear_plain(plain_body(payout))

    # then
    attempt = payout.attempts.get()
    assert verdict == "paid"
    assert attempt.kind == "manual"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)
    stored = Callback.objects.get()
    assert (stored.kind, stored.attempt_id, stored.applied_at, stored.trusted) == ("plain", attempt.pk, after(1), False)
    assert payout_steps.claims(after(100)) == []


@pytest.mark.parametrize(
    "said",
    [payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.NO_CONNECTION, payout_steps.THROTTLED],
    ids=str,
)
def test_a_plain_callback_completes_the_attempt_that_is_open(payout: Transaction, said: payout_steps.Said) -> None:
    # given
    attempt = sent(payout, said)

    # when
    hear_plain(plain_body(payout))

    # then
    assert payout.attempts.get().kind == "b2c"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == paid_once(payout, attempt)


def test_a_plain_callback_completes_a_failed_payout(payout: Transaction) -> None:
    # given
    failed_by_refusal(payout)

    # when
    hear_plain(plain_body(payout), 60)

    # then
    manual = payout.attempts.get(number=2)
    assert (manual.kind, *states(payout, manual)) == ("manual", "COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_a_plain_callback_completes_a_held_payout(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    hear_plain(plain_body(payout), 86_401)

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_a_plain_callback_about_a_completed_payout_moves_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved_but_callbacks():
        verdict = hear_plain(plain_body(payout), 2)

    # then
    assert verdict == "COMPLETED already"


def test_a_plain_callback_about_a_redirected_payout_moves_nothing(payout: Transaction) -> None:
    # given
    failed_by_refusal(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    with nothing_moved_but_callbacks():
        hear_plain(plain_body(payout), 60)

    # then
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"


@pytest.mark.parametrize("state", ["PENDING", "ACCEPTED", "FAILED"])
def test_a_plain_callback_with_the_wrong_amount_moves_nothing(
    payout: Transaction, alarms: Callable[[], list[str]], state: str
) -> None:
    # given
    if state == "ACCEPTED":
        sent(payout)
    elif state == "FAILED":
        failed_by_refusal(payout)
    amount = {"ResultParameters": {"ResultParameter": [{"Key": "TransactionAmount", "Value": 28_500}]}}

    # when
    with nothing_moved_but_callbacks():
        verdict = hear_plain(plain_body(payout, **amount), 60)

    # then
    assert verdict.startswith("mismatch: ")
    assert len(alarms()) == 1


def test_a_plain_failure_is_believed_where_nothing_has_left(payout: Transaction) -> None:
    # when
    hear_plain(plain_body(payout, 2040))

    # then
    attempt = payout.attempts.get()
    assert (attempt.kind, *states(payout, attempt)) == ("manual", "FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}
    assert actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60)).status == "PENDING"


def test_a_plain_failure_is_believed_of_a_request_that_never_left(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    hear_plain(plain_body(payout, 2040))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


@pytest.mark.parametrize("said", [payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.THROTTLED], ids=str)
def test_a_plain_failure_of_what_may_have_left_is_asked_about(payout: Transaction, said: payout_steps.Said) -> None:
    # given
    attempt = sent(payout, said)

    # when
    verdict = hear_plain(plain_body(payout, 2040))

    # then
    assert verdict == "reported failed: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


def test_a_plain_callback_with_an_unknown_reference_stores_nothing(payout: Transaction) -> None:
    # given
    body = plain_body(payout).replace(payout.external_ref.encode(), b"KASOKO-1-1-1613398249.5")

    # then
    with nothing_moved(), pytest.raises(callbacks.UnknownReference):
        hear_plain(body)


def test_a_plain_callback_does_not_find_what_went_to_the_wallet() -> None:
    # given
    made = builders.settled_market([(builders.member(), "Yes", "9.99")], fee_pct=0)
    to_wallet = Transaction.objects.get(settlement__market=made)

    # then
    with nothing_moved(), pytest.raises(callbacks.UnknownReference):
        hear_plain(plain_body(to_wallet))


# --- addresses -------------------------------------------------------------------------------------------------------


def test_each_address_takes_only_its_own_kind(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    asked = question(attempt, after(20))
    own = ADDRESSES.token(attempt.originator_conversation_id)

    # then
    for kind, token in (("result", asked.token), ("status", own), ("result", "0" * 64), ("timeout", "0" * 64)):
        with nothing_moved(), pytest.raises(callbacks.UnknownAddress):
            payout_steps.deliver(kind, token, result_body(attempt), after(21))
    assert StatusQuery.objects.get().asked_at - timedelta(seconds=20) == AT
