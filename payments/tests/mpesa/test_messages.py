"""Daraja's messages in the shapes of the portal's samples (values invented), and bodies that are not messages."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.mpesa import message_fields, messages, strict_json

PAID: dict[str, Any] = {
    "ResultType": 0,
    "ResultCode": 0,
    "ResultDesc": "The service request is processed successfully.",
    "OriginatorConversationID": "KASOKO-1-7-0a1b2c3d-1",
    "ConversationID": "AG_20261123_00004e48cf7e3533f581",
    "TransactionID": "SKN4Q1ABCD",
    "ResultParameters": {
        "ResultParameter": [
            {"Key": "TransactionAmount", "Value": 285},
            {"Key": "TransactionReceipt", "Value": "SKN4Q1ABCD"},
            {"Key": "ReceiverPartyPublicName", "Value": "254712345678 - JANE DOE"},
            {"Key": "TransactionCompletedDateTime", "Value": "23.11.2026 01:30:05"},
            {"Key": "B2CUtilityAccountAvailableFunds", "Value": 10116.0},
            {"Key": "B2CWorkingAccountAvailableFunds", "Value": 900000.0},
            {"Key": "B2CChargesPaidAccountAvailableFunds", "Value": -4510.5},
            {"Key": "B2CRecipientIsRegisteredCustomer", "Value": "Y"},
        ]
    },
    "ReferenceData": {"ReferenceItem": {"Key": "QueueTimeoutURL", "Value": "https://internalapi.safaricom.co.ke/x"}},
}


def body(root: Any) -> bytes:
    return json.dumps(root).encode()


def result(**changes: Any) -> messages.Result:
    return messages.parse_result(body({"Result": {**PAID, **changes}}))


def with_parameters(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"ResultParameter": [{"Key": key, "Value": value} for key, value in pairs]}


def status(*pairs: tuple[str, Any], **changes: Any) -> messages.StatusAnswer:
    root = {**PAID, "TransactionID": "SKN0000000", "ResultParameters": with_parameters(*pairs), **changes}
    return messages.parse_status(body({"Result": root}))


# --- results


def test_paid_result_is_read_completely() -> None:
    read = result()

    assert (read.result_type, read.result_code, read.says_paid) == (0, "0", True)
    assert read.originator_conversation_id == "KASOKO-1-7-0a1b2c3d-1"
    assert read.conversation_id == "AG_20261123_00004e48cf7e3533f581"
    assert (read.amount, read.receipt) == (Decimal(285), "SKN4Q1ABCD")
    assert read.receiver == "254712345678 - JANE DOE"
    assert (read.receiver_phone, read.receiver_phone_visible) == ("254712345678", "254712345678")
    assert read.completed_at == datetime(2026, 11, 22, 22, 30, 5, tzinfo=UTC)
    assert (read.utility_available, read.working_available) == (Decimal(10116), Decimal(900000))
    assert (read.charges_paid_available, read.receiver_is_registered) == (Decimal("-4510.5"), True)


@pytest.mark.parametrize(("sent", "read"), [(0, "0"), ("0", "0"), (" 0 ", "0"), (2001, "2001"), ("SFC_IC0003",) * 2])
def test_result_code_is_text_for_number_and_text(sent: object, read: str) -> None:
    assert result(ResultCode=sent).result_code == read


@pytest.mark.parametrize("code", ["", None, "00", "zero"])
def test_only_code_zero_says_paid(code: object) -> None:
    assert not result(ResultCode=code).says_paid


@pytest.mark.parametrize("code", [False, 0.0, [], {}])
def test_result_code_of_another_type_is_unreadable(code: object) -> None:
    with pytest.raises(strict_json.Unreadable):
        result(ResultCode=code)


def test_failure_has_no_receipt_despite_its_transaction_id() -> None:
    read = result(ResultCode=2001, TransactionID="SG722NMVXQ", ResultParameters=None)

    assert (read.receipt, read.amount, len(read.parameters)) == (None, None, 0)
    assert read.transaction_id == "SG722NMVXQ"


def test_result_type_one_is_not_final_and_not_paid() -> None:
    read = result(ResultType="1")

    assert (read.is_final, read.says_paid, read.receipt) == (False, False, None)


def test_single_parameter_is_read_without_list_and_value() -> None:
    read = result(ResultParameters={"ResultParameter": {"Key": "Occasion"}})

    assert dict(read.parameters) == {"Occasion": None}


def test_repeated_parameter_reads_as_first_value_and_keeps_all() -> None:
    parameters = result(ResultParameters=with_parameters(("A", "x"), ("B", 1), ("A", "y"))).parameters

    assert dict(parameters) == {"A": "x", "B": Decimal(1)}
    assert (parameters["A"], len(parameters)) == ("x", 2)
    assert parameters.all_values("A") == ("x", "y")
    assert parameters.all_values("C") == ()


def test_guides_plain_callback_has_its_external_reference() -> None:
    root = {"ResultCode": 0, "OriginatorConversationID": "...", "ExternalReference": "KASOKO-1-1-1613398249.5"}

    read = messages.parse_result(body({"Result": root}))

    assert (read.external_reference, read.says_paid, read.receipt) == ("KASOKO-1-1-1613398249.5", True, None)


def test_flat_lower_camel_result_is_read() -> None:
    root = {
        "resultType": 0,
        "resultCode": "0",
        "originatorConversationID": "one",
        "transactionID": "MAB1234567",
        "transactionAmount": 10,
        "receiverPartyPublicName": "254712345678 - X",
        "debitAccountCurrentBalance": None,
    }

    read = messages.parse_result(body(root))

    assert (read.originator_conversation_id, read.receipt, read.amount) == ("one", "MAB1234567", Decimal(10))
    assert read.receiver_phone == "254712345678"


@pytest.mark.parametrize(
    ("party", "phone", "visible"),
    [
        ("254712345678 - JANE", "254712345678", "254712345678"),
        ("+254112345678-JANE", "254112345678", "+254112345678"),
        ("0712345678 - JANE", "254712345678", "0712345678"),
        ("2547****678 - JANE", None, "2547****678"),
        ("0722***", None, "0722***"),
        ("2547xxxxxxxx - FIRST LAST", None, "2547xxxxxxxx"),
        ("2547 ***** 678 - JANE", None, "2547*****678"),
        ("2547***** 678- JANE", None, "2547*****678"),
        ("0722 ***", None, "0722***"),
        ("600310 * JANE", None, None),
        ("254712345678 ** JANE", "254712345678", "254712345678"),
        ("2547123456789 - TOO LONG", None, "2547123456789"),
        ("600310 - Safaricom", None, None),
        ("JANE DOE", None, None),
        ("٢٥٤٧١٢٣٤٥٦٧٨ - X", None, None),
        ("", None, None),
        (12, None, None),
    ],
)
def test_receiver_phone_is_complete_or_masked(party: object, phone: str | None, visible: str | None) -> None:
    read = result(ResultParameters=with_parameters(("ReceiverPartyPublicName", party)))

    assert (read.receiver_phone, read.receiver_phone_visible) == (phone, visible)


@pytest.mark.parametrize(
    ("visible", "agrees"),
    [
        ("254712345678", True),
        ("+254712345678", True),
        ("0712345678", True),
        ("2547****678", True),
        ("0712***", True),
        ("****678", True),
        ("2547****679", False),
        ("0722***678", False),
        ("254712345679", False),
        ("25471234567", False),
    ],
)
def test_masked_number_is_compatible_if_its_digits_agree(visible: str, agrees: bool) -> None:
    assert message_fields.phone_is_compatible(visible, "254712345678") is agrees


@pytest.mark.parametrize("amount", ["285", "285.00", 285, 285.0])
def test_amount_is_read_from_number_and_text(amount: object) -> None:
    assert result(ResultParameters=with_parameters(("TransactionAmount", amount))).amount == Decimal(285)


@pytest.mark.parametrize("amount", ["285 KES", "1,000", "", None, "1e3", "٢٨٥", "NaN", "1" * 16])
def test_amount_of_another_form_is_none(amount: object) -> None:
    assert result(ResultParameters=with_parameters(("TransactionAmount", amount))).amount is None


@pytest.mark.parametrize("when", ["31.02.2026 10:00:00", "2026-11-23 10:00:00", "23.11.2026 24:00:00", "", None, 5])
def test_time_of_another_form_is_none(when: object) -> None:
    assert result(ResultParameters=with_parameters(("TransactionCompletedDateTime", when))).completed_at is None


def test_repr_of_a_result_hides_names_and_phones() -> None:
    assert "JANE" not in repr(result())
    assert "254712345678" not in repr(result())
    assert "254712345678" not in repr(status(("A", 1), ("CreditPartyName", "254712345678 - JANE")))


# --- faults of M-Pesa's servers that we read past

PAID_BODY = json.dumps({"Result": PAID}, ensure_ascii=False)
READABLE = {
    "a byte order mark": b"\xef\xbb\xbf" + PAID_BODY.encode(),
    "a name in Windows-1252": PAID_BODY.replace("JANE DOE", "JOS\u00c9 DOE").encode("cp1252"),
    "a raw tab in a name": PAID_BODY.replace("JANE DOE", "JANE\tDOE").encode(),
    "a raw line feed in the description": PAID_BODY.replace("processed", "processed\n").encode(),
}


@pytest.mark.parametrize("message", READABLE.values(), ids=READABLE.keys())
def test_odd_encoding_changes_neither_ids_nor_amounts(message: bytes) -> None:
    read, plain = messages.parse_result(message), result()

    assert read.receiver_phone == plain.receiver_phone
    assert (read.amount, read.receipt, read.says_paid) == (plain.amount, plain.receipt, True)
    assert read.originator_conversation_id == plain.originator_conversation_id


def test_control_characters_in_texts_become_blanks() -> None:
    read = result(ResultDesc="one\ntwo\x1b[31m", ResultParameters=with_parameters(("ReceiverPartyPublicName", "A\tB")))

    assert (read.result_desc, read.receiver) == ("one two [31m", "A B")


@pytest.mark.parametrize("item", [None, 5, "x", [], {}, {"Value": "x"}, {"Key": 5, "Value": 1}, {"Key": None}])
def test_parameters_without_a_key_are_skipped(item: object) -> None:
    listed = with_parameters(("TransactionAmount", 285))
    listed["ResultParameter"].insert(0, item)

    assert dict(result(ResultParameters=listed).parameters) == {"TransactionAmount": Decimal(285)}


@pytest.mark.parametrize("value", [True, False, {}, {"BasicAmount": 285}, [285], [[]]])
def test_parameter_of_another_type_counts_as_absent(value: object) -> None:
    read = result(ResultParameters=with_parameters(("TransactionAmount", value), ("TransactionReceipt", value)))

    assert (read.amount, read.parameters["TransactionReceipt"]) == (None, None)


@pytest.mark.parametrize("message", [*list(READABLE.values())[:1], b'{"a": "x\ty"}', b'{"a": "\xc9"}'])
def test_bodies_from_others_must_be_strict_json(message: bytes) -> None:
    with pytest.raises(strict_json.Unreadable):
        strict_json.read_object(message)


# --- bodies that are not messages

UNREADABLE = {
    "empty": b"",
    "no JSON": b"<html>Bad gateway</html>",
    "a list": b"[]",
    "null": b"null",
    "no envelope": b"{}",
    "Result is text": b'{"Result": "x"}',
    "no code": b'{"Result": {}}',
    "too long": b'{"Result": {"ResultCode": 0, "ResultDesc": "' + b"a" * 17_000 + b'"}}',
    "too deep": b'{"Result": ' + b"[" * 16 + b"]" * 16 + b"}",
    "brackets only": b"[" * 16_000,
    "unterminated text": b'{"a": "' + b'\\"' * 7_000,
    "NaN": b'{"Result": {"ResultCode": 0, "Amount": NaN}}',
    "Infinity": b'{"Result": {"ResultCode": 0, "Amount": -Infinity}}',
    "a huge exponent": b'{"Result": {"ResultCode": 0, "Amount": 1e400}}',
    "an absurd exponent": b'{"Result": {"ResultCode": 0, "Amount": 1e99999999999999999999}}',
    "an endless integer": b'{"Result": {"ResultCode": ' + b"1" * 5_000 + b"}}",
    "the same key twice": b'{"Result": {"ResultCode": 1, "ResultCode": 0}}',
    "the same key with and without a capital": b'{"resultCode": 1, "ResultCode": 0}',
    "NUL": b'{"Result": {"ResultCode": 0, "ResultDesc": "a\\u0000b"}}',
    "a lone surrogate": b'{"Result": {"ResultCode": 0, "\\ud800": 1}}',
    "neither UTF-8 nor Windows-1252": b'{"Result": {"ResultCode": 0, "ResultDesc": "\xff\x81"}}',
    "parameters are text": b'{"Result": {"ResultCode": 0, "ResultParameters": "x"}}',
    "an odd type": b'{"Result": {"ResultCode": 0, "ResultType": "final"}}',
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_body_that_is_not_a_result_is_unreadable(message: bytes) -> None:
    with pytest.raises(strict_json.Unreadable):
        messages.parse_result(message)


def test_brackets_inside_text_do_not_count_as_depth() -> None:
    assert result(ResultDesc='[{"' * 50).result_desc == '[{"' * 50


PARSERS = [
    messages.parse_result,
    messages.parse_timeout,
    messages.parse_status,
    messages.parse_balance,
    messages.parse_stk,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN_KEYS = st.sampled_from([*PAID, "TransactionStatus", "AccountBalance", "DebitPartyCharges", "FinalisedTime"])


def reads_or_refuses(message: bytes) -> None:
    for parse in PARSERS:
        try:
            read = parse(message)
        except strict_json.Unreadable:
            continue
        assert is_dataclass(read) or isinstance(read, dict)
        for name in [] if isinstance(read, dict) else dir(read):
            getattr(read, name)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    reads_or_refuses(message)


@given(
    fields=st.dictionaries(KNOWN_KEYS, JSON),
    pairs=st.lists(st.tuples(KNOWN_KEYS | st.text(max_size=5), JSON), max_size=4),
    code=st.sampled_from([0, "0", 49, "x"]) | JSON,
)
def test_any_values_in_darajas_shapes_are_read_or_refused(fields: dict, pairs: list, code: object) -> None:
    items = [{"Key": key, "Name": key, "Value": value} for key, value in pairs]
    inside = {"ResultCode": code, "ResultParameters": {"ResultParameter": items}, **fields}
    reads_or_refuses(body({"Result": inside}))
    reads_or_refuses(body({key[:1].lower() + key[1:]: value for key, value in inside.items()}))
    stk = {"ResultCode": code, "CheckoutRequestID": "ws_1", "CallbackMetadata": {"Item": items}, **fields}
    reads_or_refuses(body({"Body": {"stkCallback": stk}}))


# --- timeouts, status answers, balances, STK pushes


@pytest.mark.parametrize(
    ("root", "ocid"),
    [
        (
            {"OriginatorConversationID": "KASOKO-1-7-0a-1", "SecurityCredential": "abc", "Amount": "10"},
            "KASOKO-1-7-0a-1",
        ),
        ({"Result": {"ResultCode": 1, "OriginatorConversationID": "KASOKO-1-7-0a-1"}}, "KASOKO-1-7-0a-1"),
        ({"originatorConversationID": "KASOKO-1-7-0a-1"}, "KASOKO-1-7-0a-1"),
        ({"something": "else"}, None),
    ],
)
def test_timeout_is_read_in_both_shapes_without_its_credential(root: dict, ocid: str | None) -> None:
    read = messages.parse_timeout(body(root))

    assert read == messages.Timeout(ocid)


def test_status_answer_of_a_completed_payment_is_read() -> None:
    answer = status(
        ("DebitPartyName", "600310 - Kasoko"),
        ("DebitPartyName", "254712345678 - JANE DOE"),
        ("TransactionStatus", "Completed"),
        ("Amount", "285.00"),
        ("ReceiptNo", "SKN4Q1ABCD"),
        ("Originator Conversation ID", "KASOKO-1-7-0a1b2c3d-1"),
        ("Conversation ID", "AG_20261123_1"),
        ("DebitPartyCharges", "Fee For B2C Payment|KES|22.40"),
        ("InitiatedTime", "20261123013000"),
        ("FinalisedTime", 20261123013005),
        ("TransactionReason", None),
    )

    assert answer.payment_status == "completed"
    assert (answer.receipt, answer.amount, answer.charge) == ("SKN4Q1ABCD", Decimal(285), Decimal("22.40"))
    assert (answer.originator_conversation_id, answer.conversation_id) == ("KASOKO-1-7-0a1b2c3d-1", "AG_20261123_1")
    assert (answer.receiver_phone, answer.receiver_phone_visible) == ("254712345678", "254712345678")
    assert answer.finalised_at == datetime(2026, 11, 22, 22, 30, 5, tzinfo=UTC)
    assert answer.initiated_at == datetime(2026, 11, 22, 22, 30, tzinfo=UTC)
    assert answer.query_originator_conversation_id == "KASOKO-1-7-0a1b2c3d-1"


def test_credit_party_is_the_receiver_and_a_single_debit_party_not() -> None:
    credited = status(("DebitPartyName", "600310 - K"), ("CreditPartyName", "2547****678 - J"))
    deposit = status(("DebitPartyName", "254712345678 - JANE"))

    assert (credited.receiver_phone, credited.receiver_phone_visible) == (None, "2547****678")
    assert (deposit.receiver_phone, deposit.receiver_phone_visible) == (None, None)


@pytest.mark.parametrize(
    ("code", "statuses", "payment_status"),
    [
        (0, ["Completed"], "completed"),
        ("0", ["completed "], "completed"),
        (0, ["Failed"], "failed"),
        (0, ["CANCELLED"], "failed"),
        (0, ["Declined"], "failed"),
        (0, ["expired"], "failed"),
        (0, ["Authorized"], "unknown"),
        (0, ["Initiated"], "unknown"),
        (0, ["Reversed"], "reversed"),
        (0, ["Failed", "Completed"], "unknown"),
        (0, ["Reversed", "Completed"], "unknown"),
        (0, [None], "unknown"),
        (0, [], "unknown"),
        (1, ["Completed"], "unknown"),
        (1, ["Failed"], "unknown"),
        (2001, [], "unknown"),
        (49, [], "not_found"),
        (2032, [], "not_found"),
        ("2033", [], "not_found"),
        ("SFC_IC0003", [], "not_found"),
    ],
)
def test_payment_status_needs_a_working_query_and_one_listed_status(
    code: object, statuses: list, payment_status: str
) -> None:
    answer = status(*(("TransactionStatus", text) for text in statuses), ResultCode=code)

    assert answer.payment_status == payment_status


def test_status_answer_that_is_not_final_has_unknown_payment_status() -> None:
    assert status(("TransactionStatus", "Completed"), ResultType=1).payment_status == "unknown"
    assert status(ResultType=1, ResultCode=49).payment_status == "unknown"


@pytest.mark.parametrize(
    ("charges", "total"),
    [("Fee|KES|22.40&Levy|KES|0.60", Decimal(23)), ("Fee|KES|", None), ("Fee|KES|1&x", None), ("", None), (None, None)],
)
def test_charges_are_summed_if_all_are_readable(charges: object, total: Decimal | None) -> None:
    assert status(("DebitPartyCharges", charges)).charge == total


BALANCES = "Working Account|KES|346568.83|6186.83|340382.00|0.00&Charges Paid Account|KES|-1540.00|-1540.00|0.00|0.00"


def balances(text: object, **changes: Any) -> Mapping[str, messages.Balance]:
    parameters = with_parameters(("AccountBalance", text), ("BOCompletedTime", 20261123013005))
    return messages.parse_balance(body({"Result": {**PAID, "ResultParameters": parameters, **changes}})).balances


def test_balances_are_read_by_account() -> None:
    assert balances(BALANCES) == {
        "Working Account": messages.Balance(Decimal("346568.83"), Decimal("6186.83"), Decimal(340382), Decimal(0)),
        "Charges Paid Account": messages.Balance(Decimal(-1540), Decimal(-1540), Decimal(0), Decimal(0)),
    }


def test_failed_balance_query_has_no_balances() -> None:
    assert balances(None, ResultCode=2001) == {}


@pytest.mark.parametrize("more", ["&", " & ", "&Escrow Account|USD|1|2|3|4", "&Escrow Account|USD|1", "&A|EUR|&"])
def test_empty_and_foreign_accounts_are_skipped(more: str) -> None:
    assert balances(BALANCES + more) == balances(BALANCES)


@pytest.mark.parametrize(
    "text", [None, "x", "A|KES|1|2|3", "A|kes|1|2|3|4", "A|KES|1|2|3|x", "|KES|1|2|3|4", "A|KES|1|2|3|4&A|KES|1|2|3|4"]
)
def test_malformed_balance_is_unreadable(text: object) -> None:
    with pytest.raises(strict_json.Unreadable):
        balances(text)


def test_paid_stk_push_is_read() -> None:
    items = [
        {"Name": "Amount", "Value": 100.0},
        {"Name": "MpesaReceiptNumber", "Value": "SKN4Q1WXYZ"},
        {"Name": "Balance"},
        {"Name": "TransactionDate", "Value": 20261123013005},
        {"Name": "PhoneNumber", "Value": 254712345678},
    ]
    callback = {
        "MerchantRequestID": "29115-1",
        "CheckoutRequestID": "ws_CO_1",
        "ResultCode": 0,
        "ResultDesc": "ok",
        "CallbackMetadata": {"Item": items},
    }

    read = messages.parse_stk(body({"Body": {"stkCallback": callback}}))

    assert (read.says_paid, read.checkout_request_id, read.receipt) == (True, "ws_CO_1", "SKN4Q1WXYZ")
    assert (read.amount, read.phone_number) == (Decimal(100), "254712345678")
    assert read.paid_at == datetime(2026, 11, 22, 22, 30, 5, tzinfo=UTC)


def test_cancelled_stk_push_has_no_amount_and_receipt() -> None:
    callback = {"CheckoutRequestID": "ws_CO_1", "ResultCode": 1032, "ResultDesc": "Request cancelled by user"}

    read = messages.parse_stk(body({"Body": {"stkCallback": callback}}))

    assert (read.says_paid, read.result_code, read.amount, read.receipt) == (False, "1032", None, None)


@pytest.mark.parametrize("root", [{}, {"Body": 1}, {"Body": {"stkCallback": {"ResultCode": 0}}}])
def test_stk_callback_without_id_is_unreadable(root: dict) -> None:
    with pytest.raises(strict_json.Unreadable):
        messages.parse_stk(body(root))
