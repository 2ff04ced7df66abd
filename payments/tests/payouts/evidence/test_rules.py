"""Rules of evidence as a table: each message about each state of an attempt, without a database."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from payments.models import Attempt
from payments.mpesa import messages
from payments.mpesa.message_fields import Parameters
from payments.payouts.evidence import answers, records, rules
from testing.builders import AT, policy

POLICY = policy()
OCID, PHONE, RECEIPT, CONVERSATION = "KASOKO-1-7-0a1b2c3d-1", "254700000001", "SKG7ABCDEF", "AG_20260216_1"
OPEN = [str(state) for state in Attempt.OPEN]
UNDER_WAY = ["SENDING", "ACCEPTED", "IN_DOUBT"]
ALL = [*OPEN, "PAID", "FAILED"]
FACTS = records.Facts(
    attempt=OCID,
    state="ACCEPTED",
    payout_status="PROCESSING",
    settlement_stands=True,
    originator_conversation_id=OCID,
    conversation_id=CONVERSATION,
    amount=Decimal(285),
    phone_number=PHONE,
    opened_at=AT,
    posted_at=AT,
    first_sent_at=AT,
    next_query_at=AT,
    known_at=None,
    cleared_at=None,
    result_code="",
    result_words="",
    receipt="",
    paid_report="",
    decision="",
)
NEVER_LEFT = replace(FACTS, state="WAITING", first_sent_at=None)
Question = Callable[..., records.Action]


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def result(code: str = "0", *, final: bool = True, without: str = "", **changed: Any) -> messages.Result:
    """Return a result of FACTS with this code, without one parameter and with changed fields."""
    values = {
        "TransactionAmount": changed.pop("amount", Decimal(285)),
        "TransactionReceipt": RECEIPT,
        "ReceiverPartyPublicName": f"{changed.pop('phone', PHONE)} - JOHN DOE",
    }
    complete = messages.Result(
        result_type=0 if final else 1,
        result_code=code,
        result_desc="Words.",
        originator_conversation_id=OCID,
        conversation_id=CONVERSATION,
        transaction_id=None,
        external_reference=None,
        parameters=Parameters(tuple(pair for pair in values.items() if pair[0] != without)),
    )
    return replace(complete, **changed)


def answer(
    status: messages.PaymentStatus = "completed", *, thin: bool = False, **changed: Any
) -> messages.StatusAnswer:
    """Return an answer about FACTS with this status, without any detail if `thin`."""
    complete = messages.StatusAnswer(
        result_code="0",
        result_desc="Words.",
        payment_status=status,
        status_text=status.title(),
        originator_conversation_id=None if thin else OCID,
        conversation_id=None,
        receipt=None if thin else RECEIPT,
        amount=None if thin else Decimal(285),
        receiver_phone=None,
        receiver_phone_visible=None if thin else PHONE,
        initiated_at=None,
        finalised_at=None,
        charge=None,
        query_originator_conversation_id="q",
        query_conversation_id="q",
    )
    return replace(complete, **changed)


def weigh(facts: records.Facts, message: messages.Result, *, trusted: bool = True) -> records.Action:
    return rules.weigh_result(facts, message, trusted=trusted, at=after(3), policy=POLICY)


def weigh_answer(
    facts: records.Facts,
    message: messages.StatusAnswer,
    *,
    asked_at: float = 30,
    stored: str = "",
    others: tuple[records.Query, ...] = (),
    trusted: bool = True,
) -> records.Action:
    query = records.Query(after(asked_at), stored)
    return answers.weigh_answer(facts, query, others, message, trusted=trusted, at=after(asked_at + 1), policy=POLICY)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ALL)
def test_trusted_complete_small_payment_is_booked_in_every_state(state: str) -> None:
    action = weigh(replace(FACTS, state=state), result())
    assert (action.step, action.receipt) == ("pay", RECEIPT)


@pytest.mark.parametrize("state", [*OPEN, "FAILED"])
@pytest.mark.parametrize("without", ["TransactionAmount", "TransactionReceipt", "ReceiverPartyPublicName"])
def test_incomplete_payment_is_only_reported(state: str, without: str) -> None:
    action = weigh(replace(FACTS, state=state), result(without=without))
    assert (action.step, action.paid_report, action.ask_at) == ("report", "untrusted", after(3))


@pytest.mark.parametrize("state", [*OPEN, "FAILED"])
def test_untrusted_payment_is_only_reported(state: str) -> None:
    action = weigh(replace(FACTS, state=state), result(), trusted=False)
    assert (action.step, action.paid_report, action.ask_at) == ("report", "untrusted", after(3))


@pytest.mark.parametrize("amount", [POLICY.confirm_above, POLICY.confirm_above + 1])
def test_large_payment_is_reported_as_trusted_and_confirmed_first(amount: Decimal) -> None:
    facts = replace(FACTS, amount=amount)
    action = weigh(facts, result(amount=amount))
    assert (action.step, action.paid_report) == ("report", "trusted")
    just_below = replace(FACTS, amount=POLICY.confirm_above - 1)
    assert weigh(just_below, result(amount=just_below.amount)).step == "pay"


@pytest.mark.parametrize("changed", [{"amount": Decimal("284.99")}, {"phone": "254799999999"}], ids=str)
@pytest.mark.parametrize("state", ALL)
def test_mismatch_changes_no_state(state: str, changed: dict[str, Any]) -> None:
    action = weigh(replace(FACTS, state=state), result(**changed))
    assert action.step == ("ask" if state in UNDER_WAY else "nothing")
    assert action.level == "error"


def test_later_report_never_replaces_a_trusted_report_of_payment() -> None:
    facts = replace(FACTS, paid_report="trusted", result_code="0", result_words="Paid.", receipt=RECEIPT)
    action = weigh(facts, result("2040"))
    assert (action.code, action.words, action.receipt, action.paid_report) == ("0", "Paid.", RECEIPT, "trusted")


@pytest.mark.parametrize("code", ["1", "2", "4", "21", "2001", "2040", "SFC_IC0003"])
def test_definite_failure_is_reported_and_may_open_a_breaker(code: str) -> None:
    action = weigh(FACTS, result(code))
    assert (action.step, action.code, action.paid_report, action.trips) == ("report", code, "", code)


@pytest.mark.parametrize(("code", "final"), [("17", True), ("26", True), ("999", True), ("2040", False), ("", True)])
@pytest.mark.parametrize("state", UNDER_WAY)
def test_other_codes_leave_the_attempt_in_doubt(state: str, code: str, final: bool) -> None:
    action = weigh(replace(FACTS, state=state), result(code, final=final))
    assert (action.step, action.ask_at, action.is_known) == ("doubt", after(23), False)


@pytest.mark.parametrize(
    ("code", "final", "kept"), [("1", False, ""), ("2001", False, ""), ("TP40153", True, "TP40153")]
)
def test_definite_code_of_a_message_that_is_not_final_is_no_source(code: str, final: bool, kept: str) -> None:
    action = weigh(FACTS, result(code, final=final))

    assert (action.step, action.code, action.trips) == ("doubt", kept, code)


@pytest.mark.parametrize("code", ["15", "41"])
def test_duplicate_code_makes_the_id_known_only_from_a_trusted_sender(code: str) -> None:
    assert weigh(FACTS, result(code)).is_known
    assert not weigh(FACTS, result(code), trusted=False).is_known
    assert not weigh(FACTS, result(code, final=False)).is_known
    assert weigh(FACTS, result(code)).step == "doubt"


@pytest.mark.parametrize("code", ["1", "15", "17", "2040"])
@pytest.mark.parametrize("facts", [replace(FACTS, state="PAID"), replace(FACTS, state="FAILED"), NEVER_LEFT])
def test_failure_changes_nothing_once_decided_or_never_sent(facts: records.Facts, code: str) -> None:
    assert weigh(facts, result(code)).step == "nothing"


@pytest.mark.parametrize("state", ALL)
def test_timeout_only_leaves_an_attempt_in_doubt(state: str) -> None:
    action = rules.weigh_timeout(replace(FACTS, state=state), at=after(3), policy=POLICY)
    assert action.step == ("doubt" if state in OPEN else "nothing")
    assert action.ask_at == (after(23) if state in OPEN else None)
    for facts in (NEVER_LEFT, replace(FACTS, state="REVERSED")):
        assert rules.weigh_timeout(facts, at=after(3), policy=POLICY).step == "nothing"


# --- after a booked payment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [result(), result("2040"), result("17"), result("TP40153"), result(amount=Decimal(1))]
)
def test_reversed_attempt_ignores_all_but_another_receipt(message: messages.Result) -> None:
    action = weigh(replace(FACTS, state="REVERSED", receipt=RECEIPT), message)
    assert (action.step, action.alarm, action.trips) == ("nothing", "", "")


@pytest.mark.parametrize("state", ["PAID", "REVERSED"])
def test_second_receipt_is_booked_if_proven_and_else_alarmed(state: str) -> None:
    facts = replace(FACTS, state=state, receipt="SKG7OTHER1")
    assert (weigh(facts, result()).step, weigh(facts, result()).receipt) == ("pay", RECEIPT)
    unproven = weigh(facts, result(), trusted=False)
    assert (unproven.step, unproven.level) == ("nothing", "error")
    assert RECEIPT in unproven.alarm


def test_first_receipt_again_in_other_letters_is_no_second_receipt() -> None:
    facts = replace(FACTS, state="PAID", receipt=RECEIPT.lower())
    for trusted in (True, False):
        action = weigh(facts, result(), trusted=trusted)
        assert (action.step, action.receipt, action.alarm) == ("pay", RECEIPT, "")
    assert not rules.names_another_receipt(replace(FACTS, receipt=""), RECEIPT)
    assert not rules.names_another_receipt(replace(FACTS, receipt=RECEIPT), None)


@pytest.mark.parametrize(
    ("amount", "trusted", "step", "ask_at"),
    [
        (Decimal(285), True, "pay", None),
        (Decimal(285), False, "ask", after(3)),
        (POLICY.confirm_above - 1, True, "pay", None),
        (POLICY.confirm_above, True, "ask", after(3)),
    ],
)
def test_persons_word_that_it_was_paid_needs_proof(
    amount: Decimal, trusted: bool, step: str, ask_at: datetime | None
) -> None:
    facts = replace(FACTS, state="PAID", decision="paid", receipt=RECEIPT, amount=amount)
    action = weigh(facts, result(amount=amount), trusted=trusted)
    assert (action.step, action.ask_at, action.receipt) == (step, ask_at, RECEIPT if step == "pay" else "")


@pytest.mark.parametrize(
    ("message", "trusted", "step"),
    [
        (result("2040"), True, "contradict"),
        (result("2040"), False, "nothing"),
        (result("2040", final=False), True, "nothing"),
        (result("17"), True, "nothing"),
    ],
)
def test_proven_failure_takes_a_persons_word_back(message: messages.Result, trusted: bool, step: str) -> None:
    action = weigh(replace(FACTS, state="PAID", decision="paid"), message, trusted=trusted)
    assert (action.step, action.ask_at) == (step, after(3) if step == "contradict" else None)
    assert action.level == ("critical" if step == "contradict" else "warning")


@pytest.mark.parametrize(
    ("facts", "level"),
    [(replace(FACTS, state="PAID"), "warning"), (replace(FACTS, state="FAILED"), ""), (NEVER_LEFT, "error")],
)
def test_late_failure_is_alarmed_only_if_it_contradicts(facts: records.Facts, level: str) -> None:
    action = weigh(facts, result("2040"))
    assert (action.level, bool(action.alarm)) == (level, level != "")


@pytest.mark.parametrize("stored", [{"paid_report": "untrusted"}, {"result_code": "2040"}], ids=str)
def test_fault_of_ours_replaces_no_other_report(stored: dict[str, str]) -> None:
    assert weigh(FACTS, result("TP40153")).code == "TP40153"
    action = weigh(replace(FACTS, **stored), result("TP40153"))
    assert (action.step, action.code, action.trips) == ("doubt", "", "TP40153")


def test_payment_of_a_failed_attempt_is_reported_as_after_a_failure() -> None:
    assert weigh(replace(FACTS, state="FAILED"), result(), trusted=False).outcome.startswith("failed before")
    assert weigh(FACTS, result(), trusted=False).outcome.startswith("reported paid")
    assert weigh(FACTS, result("2040")).outcome.startswith("reported failed")


# --- our conversation id under another id ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [*UNDER_WAY, "WAITING", "FAILED"])
@pytest.mark.parametrize("named", ["29115-34620561-1", None])
def test_payment_of_our_conversation_under_another_id_is_kept_and_held(state: str, named: str | None) -> None:
    action = weigh(replace(FACTS, state=state), result(originator_conversation_id=named))
    assert (action.step, action.paid_report, action.receipt) == ("report", "trusted", RECEIPT)
    words = named or "no id"
    assert f"paid this request as {words}, not under our id" in action.hold_reason
    assert words in action.outcome
    assert words in action.alarm
    assert action.level == "critical"


@pytest.mark.parametrize("state", ["PAID", "REVERSED"])
def test_payment_under_another_id_changes_no_booked_payment(state: str) -> None:
    action = weigh(replace(FACTS, state=state, receipt="SKG7OTHER1"), result(originator_conversation_id="other"))
    assert (action.step, action.hold_reason) == ("nothing", "")


@pytest.mark.parametrize(
    ("message", "trusted"), [(result(), False), (result(without="TransactionReceipt"), True)], ids=["untrusted", "thin"]
)
def test_unproven_payment_under_another_id_is_not_reported_as_trusted(message: messages.Result, trusted: bool) -> None:
    action = weigh(FACTS, replace(message, originator_conversation_id="other"), trusted=trusted)
    assert (action.step, action.paid_report) == ("report", "untrusted")


def test_payment_under_another_id_and_another_conversation_is_a_mismatch() -> None:
    for facts in (FACTS, replace(FACTS, conversation_id="")):
        action = weigh(facts, result(originator_conversation_id="other", conversation_id="AG_other"))
        assert (action.step, action.hold_reason) == ("ask", "")
    no_id = weigh(replace(FACTS, conversation_id=""), result(originator_conversation_id="other", conversation_id=""))
    assert no_id.step == "ask"


def test_payment_that_names_another_of_our_requests_is_a_mismatch() -> None:
    assert weigh(FACTS, result(originator_conversation_id="KASOKO-1-8-ffffffff-1")).step == "ask"


def test_failure_under_another_id_is_a_mismatch() -> None:
    assert weigh(FACTS, result("2040", originator_conversation_id="other")).step == "ask"


# --- results that are booked in bulk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ALL)
@pytest.mark.parametrize("status", ["PENDING", "PROCESSING", "HELD", "FAILED", "COMPLETED", "CANCELLED"])
def test_only_a_payout_under_way_is_plainly_paid(state: str, status: str) -> None:
    facts = replace(FACTS, state=state, payout_status=status)
    plainly = rules.is_plainly_paid(facts, result(), trusted=True, at=after(3), policy=POLICY)
    assert plainly == (state in UNDER_WAY and status == "PROCESSING")


@pytest.mark.parametrize(
    ("facts", "message", "trusted"),
    [
        (FACTS, result(), False),
        (FACTS, result(amount=Decimal(286)), True),
        (FACTS, result(without="TransactionReceipt"), True),
        (FACTS, result("17"), True),
        (FACTS, result(final=False), True),
        (FACTS, result(originator_conversation_id="other"), True),
        (replace(FACTS, amount=POLICY.confirm_above), result(amount=POLICY.confirm_above), True),
    ],
)
def test_result_that_proves_less_is_not_plainly_paid(
    facts: records.Facts, message: messages.Result, trusted: bool
) -> None:
    assert not rules.is_plainly_paid(facts, message, trusted=trusted, at=after(3), policy=POLICY)


# --- answers to status queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ALL)
def test_trusted_completed_answer_is_booked_in_every_state(state: str) -> None:
    action = weigh_answer(replace(FACTS, state=state), answer())
    assert (action.step, action.receipt, action.keeps_answer) == ("pay", RECEIPT, True)


@pytest.mark.parametrize(
    ("state", "step"),
    [("SENDING", "doubt"), ("ACCEPTED", "doubt"), ("IN_DOUBT", "doubt"), ("FAILED", "ask"), ("WAITING", "nothing")],
)
def test_thin_completed_answer_is_asked_again_and_not_booked(state: str, step: str) -> None:
    action = weigh_answer(replace(FACTS, state=state), answer(thin=True))
    assert (action.step, action.keeps_answer) == (step, True)
    assert action.ask_at == (after(91) if step != "nothing" else None)


@pytest.mark.parametrize(
    ("facts", "others"),
    [(FACTS, (records.Query(after(20), "completed"),)), (replace(FACTS, paid_report="untrusted"), ())],
)
def test_thin_completed_answer_with_a_second_source_is_booked(
    facts: records.Facts, others: tuple[records.Query, ...]
) -> None:
    assert weigh_answer(facts, answer(thin=True), others=others).step == "pay"


@pytest.mark.parametrize("detail", ["originator_conversation_id", "amount", "receiver_phone_visible"])
def test_answer_with_one_matching_detail_is_not_thin(detail: str) -> None:
    full = answer()
    assert weigh_answer(FACTS, answer(thin=True, **{detail: getattr(full, detail)})).step == "pay"


@pytest.mark.parametrize("state", ALL)
def test_reversed_answer_goes_to_a_person(state: str) -> None:
    action = weigh_answer(replace(FACTS, state=state), answer("reversed", thin=True))
    named = weigh_answer(replace(FACTS, state=state), answer("reversed"))
    assert named.step == ("reverse" if state == "PAID" else "hold")
    assert (action.step, action.level, action.keeps_answer) == ("hold", "critical", True)
    assert "reversed this payment" in action.hold_reason


@pytest.mark.parametrize("status", ["completed", "failed", "not_found", "unknown", "reversed"])
def test_untrusted_answer_alone_only_asks_again(status: messages.PaymentStatus) -> None:
    action = weigh_answer(FACTS, answer(status), trusted=False)
    assert (action.step, action.ask_at) == ("doubt", after(91))
    assert action.keeps_answer == (status == "completed")


def test_untrusted_completed_answer_with_a_second_source_is_booked() -> None:
    reported = weigh_answer(replace(FACTS, paid_report="untrusted"), answer(), trusted=False)
    answered = weigh_answer(FACTS, answer(), others=(records.Query(after(20), "completed"),), trusted=False)
    assert (reported.step, answered.step) == ("pay", "pay")


@pytest.mark.parametrize("code", ["1", "2040", "2001"])
def test_failed_answer_and_definite_code_together_fail(code: str) -> None:
    action = weigh_answer(replace(FACTS, result_code=code, result_words="Words."), answer("failed"))
    assert (action.step, action.code, action.words) == ("fail", code, "Words.")


@pytest.mark.parametrize(
    ("others", "stored", "step"),
    [
        ((), "", "doubt"),
        ((records.Query(after(-5), "failed"),), "", "doubt"),  # Asked before the latest POST.
        ((records.Query(after(1), "failed"),), "", "doubt"),  # Too close.
        ((records.Query(after(0), "failed"),), "", "fail"),
        ((records.Query(after(0), "not_found"),), "", "doubt"),
        ((records.Query(after(0), "failed"),), "completed", "doubt"),  # An untrusted answer took the query's place.
        ((records.Query(after(0), "failed"), records.Query(after(70), "failed")), "completed", "fail"),
    ],
)
def test_two_failed_answers_must_lie_apart(others: tuple[records.Query, ...], stored: str, step: str) -> None:
    assert weigh_answer(FACTS, answer("failed"), asked_at=60, others=others, stored=stored).step == step


@pytest.mark.parametrize(("report", "step"), [("", "fail"), ("untrusted", "fail"), ("trusted", "hold")])
def test_two_failed_answers_against_a_trusted_report_of_payment_hold(report: str, step: str) -> None:
    facts = replace(FACTS, state="IN_DOUBT", paid_report=report, result_code="0" if report else "")
    first = (records.Query(after(0), "failed"),)
    action = weigh_answer(facts, answer("failed"), asked_at=60, others=first)
    assert (action.step, bool(action.hold_reason)) == (step, step == "hold")


def test_answer_older_than_the_latest_post_says_nothing() -> None:
    facts = replace(FACTS, state="IN_DOUBT", posted_at=after(31), result_code="2040")
    assert weigh_answer(facts, answer("failed")).step == "nothing"
    assert weigh_answer(facts, answer("not_found")).step == "nothing"
    assert weigh_answer(replace(facts, posted_at=after(30)), answer("failed")).step == "fail"


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({}, "resend"),
        ({"state": "ACCEPTED"}, "nothing"),
        ({"known_at": AT}, "nothing"),
        ({"paid_report": "trusted"}, "nothing"),
        ({"paid_report": "untrusted"}, "resend"),
        ({"settlement_stands": False}, "nothing"),
        ({"first_sent_at": AT - POLICY.resend_horizon + timedelta(seconds=31)}, "nothing"),
        ({"first_sent_at": AT - POLICY.resend_horizon + timedelta(seconds=32)}, "resend"),
    ],
    ids=str,
)
def test_not_found_sends_the_same_id_again_only_if_that_is_safe(changed: dict[str, Any], step: str) -> None:
    facts = replace(FACTS, **{"state": "IN_DOUBT", **changed})
    assert weigh_answer(facts, answer("not_found")).step == step


@pytest.mark.parametrize(
    ("status", "report", "step"),
    [
        ("failed", "", "stop_asking"),
        ("failed", "untrusted", "stop_asking"),
        ("failed", "trusted", "hold"),
        ("not_found", "", "stop_asking"),
        ("not_found", "untrusted", "nothing"),
        ("unknown", "", "nothing"),
    ],
)
def test_failed_attempt_is_asked_about_until_confirmed(status: messages.PaymentStatus, report: str, step: str) -> None:
    facts = replace(FACTS, state="FAILED", paid_report=report)
    assert weigh_answer(facts, answer(status)).step == step
    assert weigh_answer(replace(facts, next_query_at=None), answer(status)).step == "nothing"


@pytest.mark.parametrize(
    ("trusted", "known", "kept"), [(True, "", RECEIPT), (False, "", ""), (False, RECEIPT, RECEIPT)]
)
def test_receipt_of_a_payment_without_one_comes_from_mpesa_only(trusted: bool, known: str, kept: str) -> None:
    action = weigh(replace(FACTS, state="PAID", receipt=known), result(), trusted=trusted)
    assert (action.step, action.receipt) == ("pay", kept)


@pytest.mark.parametrize("state", OPEN)
def test_only_a_reported_failure_may_open_a_breaker(state: str) -> None:
    facts = replace(FACTS, state=state)
    assert weigh(facts, result("2001")).trips == "2001"
    assert weigh(facts, result(), trusted=False).trips == ""


def test_plain_message_pays_with_its_receipt_and_opens_no_breaker() -> None:
    at = after(3)
    assert rules.weigh_plain_result(FACTS, result(), at=at).receipt == RECEIPT
    assert rules.weigh_plain_result(FACTS, result(without="TransactionReceipt"), at=at).receipt == ""
    assert rules.weigh_plain_result(FACTS, result("2001"), at=at).trips == ""


@pytest.mark.parametrize("stored", ["completed", "failed", "reversed"])
def test_decisive_stored_answer_stays(stored: str) -> None:
    assert not weigh_answer(FACTS, answer("unknown"), stored=stored).keeps_answer
    assert weigh_answer(FACTS, answer("unknown"), stored="not_found").keeps_answer


@pytest.mark.parametrize("code", ["21", "2001", "8006", "TP40153"])
def test_refused_query_opens_the_credentials_breaker(code: str) -> None:
    action = weigh_answer(FACTS, answer("unknown", result_code=code))
    assert (action.step, action.trips) == ("nothing", code)


@pytest.mark.parametrize("code", ["0", "1", "49", "2040", "SFC_IC0003"])
def test_other_codes_of_a_query_open_no_breaker(code: str) -> None:
    assert weigh_answer(FACTS, answer("unknown", result_code=code)).trips == ""


@pytest.mark.parametrize("changed", [{"amount": Decimal(286)}, {"originator_conversation_id": "other"}], ids=str)
def test_answer_about_another_payment_changes_no_state(changed: dict[str, Any]) -> None:
    for state in ALL:
        action = weigh_answer(replace(FACTS, state=state), answer(**changed))
        assert action.step == ("ask" if state in UNDER_WAY else "nothing")


# --- the guide's plain callback --------------------------------------------------------------------------------------


def test_plain_failure_is_believed_only_if_no_request_can_have_left() -> None:
    sent = rules.weigh_plain_result(FACTS, result("2040"), at=after(3))
    manual = rules.weigh_plain_result(replace(FACTS, first_sent_at=None), result("2040"), at=after(3))
    assert (sent.step, sent.trips, manual.step) == ("report", "", "fail")
    assert rules.weigh_plain_result(FACTS, result(), at=after(3)).step == "pay"
