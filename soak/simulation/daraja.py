"""Scripted M-Pesa for the real services: it posts the same bytes as Daraja."""

import json
import zlib
from typing import Any

from soak.simulation.provider import Provider, Request

DarajaRequest = Request[str]

# Parameters that we do not need, of the kinds that M-Pesa was seen to add.
EXTRA_PARAMETERS = [None, {"Value": "x"}, {"Key": "Flag", "Value": True}, {"Key": "Extra", "Value": {"Amount": [1]}}]


class DarajaProvider(Provider[str, str, bytes]):
    """M-Pesa that posts its messages to URLs."""

    def result(self, request: DarajaRequest, code: str) -> bytes:
        return result_body(request, code, conversation_id=self._id("AG"))

    def status(self, request: DarajaRequest | None, status: str) -> bytes:
        # M-Pesa was seen to answer with 49 and with 2033 to a query about an id that it does not know.
        known_as = "2033" if status == "49" and self._numbers % 2 else status
        return status_body(request, known_as)

    def timeout(self, request: DarajaRequest) -> bytes:
        return json.dumps({"OriginatorConversationID": request.ocid}).encode()

    def question_timeout(self) -> bytes:
        return b'{"Result": {}}'


def result_body(
    request: DarajaRequest, code: str, *, conversation_id: str, amount: int | None = None, receipt: str | None = None
) -> bytes:
    """Return the result of a B2C request as Daraja posts it."""
    receipt = receipt or request.receipt
    result: dict[str, Any] = {
        "ResultType": 0,
        "ResultCode": int(code) if code.isdigit() else code,
        "ResultDesc": "The service request is processed successfully." if code == "0" else f"Refused with {code}.",
        "OriginatorConversationID": request.ocid,
        "ConversationID": conversation_id,
        "TransactionID": receipt if code == "0" else "SKG0000000",
    }
    if code == "0":
        result["ResultParameters"] = {
            "ResultParameter": [
                {"Key": "TransactionAmount", "Value": request.amount if amount is None else amount},
                {"Key": "TransactionReceipt", "Value": receipt},
                {"Key": "ReceiverPartyPublicName", "Value": f"{request.phone} - JOHN DOE"},
            ]
        }
    return _in_the_wild({"Result": result}, request.ocid)


def _in_the_wild(message: dict[str, Any], ocid: str) -> bytes:
    """Return a result in one of the forms in which M-Pesa's servers were seen to send results.

    The id chooses the form, so that the form uses up no random number.
    """
    form = zlib.crc32(ocid.encode()) % 6
    if form == 1:
        return b"\xef\xbb\xbf" + json.dumps(message).encode()
    if form == 2:
        return json.dumps(message, ensure_ascii=False).replace("JOHN", "JOS\u00c9").encode("cp1252")
    if form == 3:
        return json.dumps(message).replace("JOHN DOE", "JOHN\tDOE").encode()
    parameters = message["Result"].get("ResultParameters", {}).get("ResultParameter", [])
    if form == 4:
        parameters[:0] = EXTRA_PARAMETERS
    if form == 5 and parameters:
        message["Result"]["ResultParameters"] = parameters
    return json.dumps(message).encode()


def status_body(request: DarajaRequest | None, status: str, *, receipt: str | None = None) -> bytes:
    """Return the answer to a status query as Daraja posts it. If `request` is None, `status` is the not-found code."""
    result: dict[str, Any] = {
        "ResultType": 0,
        "ResultCode": 0 if request else status,
        "ResultDesc": "The query's own.",
        "OriginatorConversationID": "12345-67890-1",
        "ConversationID": "AG_20260216_2",
        "TransactionID": "MBN0000000",
    }
    if request is not None:
        parameters = {
            "CreditPartyName": f"{request.phone} - JOHN DOE",
            "Originator Conversation ID" if zlib.crc32(request.ocid.encode()) % 2 else "OriginatorConversationID": (
                request.ocid
            ),
            "TransactionStatus": status,
            "Amount": request.amount,
            "ReceiptNo": (receipt or request.receipt) if status == "Completed" else None,
        }
        result["ResultParameters"] = {"ResultParameter": [{"Key": k, "Value": v} for k, v in parameters.items()]}
    return json.dumps({"Result": result}).encode()
