"""Daraja's JSON messages as the simulator sends them: acknowledgements, errors and results. Pure.

Where the portal's samples differ from each other, the seed chooses one of the published shapes.
Source: Daraja portal, pages B2C, Transaction Status, Account Balance and M-Pesa Express.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from payments.mpesa.simulator import draws, faults
from payments.mpesa.simulator.records import NAIROBI, Deposit, Payment

RESULT_DESCRIPTIONS: Mapping[str, str] = {
    **faults.PAYMENT_FAILURES,
    "0": "The service request is processed successfully.",
    "15": "Duplicate Detected",
    "17": "System internal error.",
    "25": "The format of parameter null is invalid.",
    "49": "No transaction was found.",
    "2032": "The transaction receipt number does not exist.",
    "2033": "The transaction receipt number cannot be found by the specified OriginatorConversationID.",
}
# M-Pesa was seen to answer a query about an unknown payment with each of these.
NOT_FOUND_CODES = ("49", "2032", "2033", "SFC_IC0003")
_FIRST_NAMES = ("AMINA", "BRIAN", "CHEBET", "DAUDI", "ESTHER", "FATUMA", "GATHONI", "HASSAN")
_LAST_NAMES = ("ACHIENG", "BARASA", "CHERONO", "KAMAU", "MUTUA", "NJERI", "OTIENO", "WANJIKU")
_ODD_PARAMETERS: tuple[object, ...] = (
    None,
    {"Value": "x"},
    {"Key": "Flag", "Value": True},
    {"Key": "Charge", "Value": {"CurrencyCode": "KES", "BasicAmount": 10}},
    {"Key": "Extra", "Value": [1, None]},
)
_NUMBER = re.compile(r'"\\u0000(-?[0-9]+\.[0-9]{2})"')


class Refused(Exception):
    """A refusal in the HTTP answer: the status, Daraja's error code and its message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def encode(message: object) -> bytes:
    """Encode a message as JSON. A Decimal becomes a number with two decimals, without passing through a float."""
    text = json.dumps(message, separators=(",", ":"), default=lambda amount: f"\0{amount:.2f}")
    return _NUMBER.sub(r"\1", text).encode()


def encode_result(message: Mapping[str, object], payment: Payment) -> bytes:
    """Encode the result of a payment, in an odd form if the payment has the fault `odd_body`."""
    odd = payment.active_faults
    body = encode(message)
    name = name_of(payment.phone).encode()
    if odd.has("odd_body", "windows_1252"):
        return body.replace(name, name.replace(b"A", "\u00c1".encode("cp1252")))
    if odd.has("odd_body", "control"):
        return body.replace(name, name.replace(b" ", b"\t"))
    return b"\xef\xbb\xbf" + body if odd.has("odd_body", "bom") else body


def acknowledgement(*, conversation_id: str, ocid: str) -> dict[str, str]:
    """Build the acceptance of a request. It does not say that money has moved."""
    return {
        "ConversationID": conversation_id,
        "OriginatorConversationID": ocid,
        "ResponseCode": "0",
        "ResponseDescription": "Accept the service request successfully.",
    }


def name_of(phone: str) -> str:
    """Return an invented customer's name. The same phone always gets the same name."""
    return f"{draws.pick(_FIRST_NAMES, phone, 'first')} {draws.pick(_LAST_NAMES, phone, 'last')}"


def _party(payment: Payment) -> str:
    dash = draws.pick((" - ", "- ", " -", "-"), payment.ocid, "dash")
    if "masked_receiver" in payment.active_faults:
        first, _, last = name_of(payment.phone).partition(" ")
        return f"0{payment.phone[3:6]}***{payment.phone[-3:]}{dash}{first[0]}*** {last[0]}***"
    return f"{payment.phone}{dash}{name_of(payment.phone)}"


def _placeholder(key: str) -> str:
    return draws.pick(("OAK0000000", "NLJ0000000", "SG722NMVXQ", "MBN0000000"), key, "placeholder")


def _envelope(result: dict[str, object], active_faults: faults.ActiveFaults) -> dict[str, object]:
    if "string_codes" in active_faults:
        result |= {"ResultType": str(result["ResultType"]), "ResultCode": str(result["ResultCode"])}
    return {"Result": result}


def _code(code: str) -> int | str:
    return int(code) if code.isdigit() else code


def _parameters(items: list[tuple[str, object]], without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "ResultParameter": [
            {"Key": key} if value is None or key in without else {"Key": key, "Value": value} for key, value in items
        ]
    }


def payment_result(payment: Payment) -> dict[str, object]:
    """Build the result of a payment, as posted to its ResultURL."""
    result: dict[str, object] = {
        "ResultType": 0,
        "ResultCode": _code(payment.code),
        "ResultDesc": RESULT_DESCRIPTIONS[payment.code],
        "OriginatorConversationID": payment.ocid,
        "ConversationID": payment.conversation_id,
        "TransactionID": payment.receipt if payment.code == "0" else _placeholder(payment.ocid),
        "ReferenceData": {
            "ReferenceItem": {
                "Key": "QueueTimeoutURL",
                "Value": "https://internalsandbox.safaricom.co.ke/mpesa/b2cresults/v1/submit",
            }
        },
    }
    completed_at = (payment.executed_at or payment.accepted_at).astimezone(NAIROBI)
    if payment.code == "0":
        parameters = _parameters(
            [
                ("TransactionAmount", payment.amount),
                ("TransactionReceipt", payment.receipt),
                ("B2CRecipientIsRegisteredCustomer", "Y"),
                ("B2CChargesPaidAccountAvailableFunds", -payment.charges_after),
                ("ReceiverPartyPublicName", _party(payment)),
                ("TransactionCompletedDateTime", f"{completed_at:%d.%m.%Y %H:%M:%S}"),
                ("B2CUtilityAccountAvailableFunds", Decimal(payment.utility_after)),
                ("B2CWorkingAccountAvailableFunds", Decimal(0)),
            ],
            without=("ReceiverPartyPublicName", "B2CChargesPaidAccountAvailableFunds")
            if "missing_values" in payment.active_faults
            else (),
        )
        if payment.active_faults.has("odd_body", "parameters"):
            parameters = {"ResultParameter": [*_ODD_PARAMETERS, *parameters["ResultParameter"]]}
        if "dict_parameter" in payment.active_faults:
            parameters = {"ResultParameter": {"Key": "TransactionReceipt", "Value": payment.receipt}}
        result["ResultParameters"] = parameters
    elif "dict_parameter" in payment.active_faults:
        completed = int(f"{completed_at:%Y%m%d%H%M%S}")
        result["ResultParameters"] = {"ResultParameter": {"Key": "BOCompletedTime", "Value": completed}}
    return _envelope(result, payment.active_faults)


def duplicate_result(payment: Payment, *, conversation_id: str) -> dict[str, object]:
    """Build the result of a repeated id: code 15, the original's id and a new ConversationID."""
    return _envelope(
        {
            "ResultType": 0,
            "ResultCode": 15,
            "ResultDesc": RESULT_DESCRIPTIONS["15"],
            "OriginatorConversationID": payment.ocid,
            "ConversationID": conversation_id,
            "TransactionID": _placeholder(conversation_id),
        },
        payment.active_faults,
    )


def queue_timeout(payment: Payment, *, security_credential: str) -> dict[str, object]:
    """Build the notice that a request timed out in the queue, in one of the two shapes that integrators describe."""
    if payment.active_faults.has("queue_timeout", "flat"):
        return {
            "OriginatorConversationID": payment.ocid,
            "SecurityCredential": security_credential,
            "Amount": str(payment.amount),
            "PartyB": payment.phone,
            **payment.request,
        }
    return _envelope(
        {
            "ResultType": 0,
            "ResultCode": 1,
            "ResultDesc": "The service request timed out in the queue.",
            "OriginatorConversationID": payment.ocid,
            "ConversationID": payment.conversation_id,
            "TransactionID": _placeholder(payment.ocid),
        },
        payment.active_faults,
    )


def status_answer(payment: Payment, *, conversation_id: str, query_ocid: str, shortcode: str) -> dict[str, object]:
    """Build the answer to a status query. Its outer code only says that the query worked."""
    blanks = draws.fraction(payment.ocid, "blanks") < 0.25
    unpaid = "Expired" if payment.active_faults.has("queue_timeout", "expired") else "Failed"
    status = {"paid": "Completed", "failed": unpaid}.get(payment.state, "Authorized")
    paid = payment.state == "paid"
    initiated = f"{payment.accepted_at.astimezone(NAIROBI):%Y%m%d%H%M%S}"
    finalised = payment.executed_at and f"{payment.executed_at.astimezone(NAIROBI):%Y%m%d%H%M%S}"
    as_number = draws.fraction(payment.ocid, "numbers") < 0.5
    payee_key = draws.pick(("DebitPartyName", "CreditPartyName"), payment.ocid, "payee")
    items: list[tuple[str, object]] = [
        ("DebitPartyName", f"{shortcode} - KASOKO"),
        (payee_key, _party(payment)),
        ("Originator Conversation ID" if blanks else "OriginatorConversationID", payment.ocid),
        ("InitiatedTime", int(initiated) if as_number else initiated),
        ("DebitAccountType", "Utility Account"),
        ("DebitPartyCharges", f"Fee For B2C Payment|KES|{payment.charge:.2f}" if paid else None),
        ("TransactionReason", None),
        ("ReasonType", "Business Payment to Customer via API"),
        ("TransactionStatus", status),
        ("FinalisedTime", int(finalised) if finalised and as_number else finalised),
        ("Amount", payment.amount if as_number else f"{payment.amount}.00"),
        ("Conversation ID" if blanks else "ConversationID", payment.conversation_id),
        ("ReceiptNo", payment.receipt if paid else None),
    ]
    without = ("ReasonType", "DebitAccountType") if "missing_values" in payment.active_faults else ()
    return _query_result(
        "0", conversation_id, query_ocid, parameters=_parameters(items, without), active_faults=payment.active_faults
    )


def query_refusal(code: str, *, conversation_id: str, query_ocid: str) -> dict[str, object]:
    """Build the answer to a query that failed, for example because nothing was found."""
    return _query_result(code, conversation_id, query_ocid, parameters=None, active_faults=faults.NO_FAULTS)


def balance_answer(
    *,
    working: int,
    utility: int,
    charges: Decimal,
    at: datetime,
    conversation_id: str,
    query_ocid: str,
) -> dict[str, object]:
    """Build the answer to a balance query: the current, available, reserved and uncleared balance of each account."""
    accounts = {
        "Working Account": Decimal(working),
        "Float Account": Decimal(0),
        "Utility Account": Decimal(utility),
        "Charges Paid Account": -charges,
        "Organization Settlement Account": Decimal(0),
    }
    text = "&".join(f"{name}|KES|{amount:.2f}|{amount:.2f}|0.00|0.00" for name, amount in accounts.items())
    parameters = _parameters(
        [("AccountBalance", text), ("BOCompletedTime", int(f"{at.astimezone(NAIROBI):%Y%m%d%H%M%S}"))]
    )
    return _query_result("0", conversation_id, query_ocid, parameters=parameters, active_faults=faults.NO_FAULTS)


def deposit_result(deposit: Deposit, *, at: datetime) -> dict[str, object]:
    """Build the callback of a push. Only a success has metadata."""
    callback: dict[str, object] = {
        "MerchantRequestID": deposit.merchant_id,
        "CheckoutRequestID": deposit.checkout_id,
        "ResultCode": _code(deposit.code),
        "ResultDesc": deposit_description(deposit.code),
    }
    if deposit.code == "0":
        callback["CallbackMetadata"] = {
            "Item": [
                {"Name": "Amount", "Value": Decimal(deposit.amount)},
                {"Name": "MpesaReceiptNumber", "Value": deposit.receipt},
                {"Name": "Balance"},
                {"Name": "TransactionDate", "Value": int(f"{at.astimezone(NAIROBI):%Y%m%d%H%M%S}")},
                {"Name": "PhoneNumber", "Value": int(deposit.phone)},
            ]
        }
    return {"Body": {"stkCallback": callback}}


def deposit_description(code: str) -> str:
    """Return the text of an M-Pesa Express result code."""
    return RESULT_DESCRIPTIONS["0"] if code == "0" else faults.DEPOSIT_FAILURES[code]


def _query_result(
    code: str,
    conversation_id: str,
    query_ocid: str,
    *,
    parameters: dict[str, object] | None,
    active_faults: faults.ActiveFaults,
) -> dict[str, object]:
    result: dict[str, object] = {
        "ResultType": 0,
        "ResultCode": _code(code),
        "ResultDesc": RESULT_DESCRIPTIONS[code],
        "OriginatorConversationID": query_ocid,
        "ConversationID": conversation_id,
        "TransactionID": "MBN0000000",
        "ReferenceData": {"ReferenceItem": {"Key": "Occasion"}},
    }
    if parameters is not None:
        result["ResultParameters"] = parameters
    return _envelope(result, active_faults)
