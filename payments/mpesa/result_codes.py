"""B2C result codes: meaning and advice for staff. Pure."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Fault: TypeAlias = Literal["ours", "member", "unknown"]


@dataclass(frozen=True)
class Meaning:
    """Meaning of a B2C ResultCode.

    `definite`: M-Pesa said that no money moved. Only then may the payout be sent under a new id.
    `fault`: "ours" (float, credentials, set-up) concerns every payout; "member" concerns one payout.
    `waits_for_next_day`: the payout is sent again on the next day in Nairobi without a person.
    `retry_helps`: a failed payout with this code may succeed if it is sent again with the same number and amount.
    """

    definite: bool
    fault: Fault
    words: str
    advice: str
    retry_helps: bool
    waits_for_next_day: bool = False


NEW_NUMBER = "Re-issue it to the member's new number if the number has changed. If not, pay it to the wallet."
_ASK = "Ask M-Pesa with a status query. Do not pay again because of this code."


def _ours(words: str, advice: str) -> Meaning:
    return Meaning(True, "ours", words, advice, retry_helps=True)


def _member(words: str, advice: str, *, retry_helps: bool) -> Meaning:
    return Meaning(True, "member", words, advice, retry_helps)


def _in_doubt(words: str, advice: str = _ASK) -> Meaning:
    return Meaning(False, "unknown", words, advice, retry_helps=True)


_UNLISTED = _in_doubt("M-Pesa gave a code that we do not know.")
_BAD_REQUEST = _in_doubt(
    "M-Pesa found the request malformed.", "Ask with a status query, and report the fault to the developers."
)
_BAD_LOGIN = Meaning(
    False,
    "ours",
    "M-Pesa refused our initiator.",
    "Ask with a status query; check the initiator and its roles.",
    retry_helps=True,
)
_BAD_PARTY = _in_doubt(
    "M-Pesa could not find an account of the payment.", "Ask with a status query; check the shortcode."
)
_DUPLICATE = _in_doubt("M-Pesa has seen this id before. This says nothing about the first request.")

# The definite codes are an allow-list. Every other code leaves the money in doubt, however clear its text sounds.
MEANING: dict[str, Meaning] = {
    "0": _in_doubt("Paid.", "Nothing to do."),
    "1": _ours("The Utility account is short of funds.", "Top up the Utility account. Sending resumes by itself."),
    "2": _member("The amount is below M-Pesa's minimum.", "Pay it to the wallet.", retry_helps=False),
    "3": _member("The amount is above M-Pesa's maximum.", "Pay it to the wallet.", retry_helps=False),
    "4": Meaning(
        True,
        "member",
        "The payment would exceed the member's daily limit at M-Pesa.",
        "Nothing to do. It is sent again on the next day. If the member needs the money today, pay to the wallet.",
        retry_helps=True,
        waits_for_next_day=True,
    ),
    "8": _member(
        "The payment would exceed the limit of the member's M-Pesa balance.",
        "Ask the member to make room, then retry.",
        retry_helps=True,
    ),
    "11": _ours("M-Pesa says the paying account is invalid.", "Check MPESA_PAYBILL with Safaricom."),
    "21": _ours("Our initiator may not make this payment.", "Give the initiator the role ORG B2C API Initiator."),
    "2001": _ours("M-Pesa refused our initiator's name or password.", "Renew the password and encrypt it again."),
    "2006": _ours("Our M-Pesa account is not active.", "Have Safaricom activate the account."),
    "2028": _ours("Our shortcode lacks this product.", "Have Safaricom enable B2C on the shortcode."),
    "2040": _member(
        "The number is not a registered M-Pesa customer.",
        NEW_NUMBER,
        retry_helps=False,
    ),
    "8006": _ours("Our security credential is locked.", "Have the business administrator unlock it."),
    "SFC_IC0003": _member("M-Pesa does not know this receiver.", NEW_NUMBER, retry_helps=False),
    "5": _in_doubt("The payment would break our account's minimum balance.", "Ask with a status query; top up."),
    "TP40153": Meaning(
        False,
        "ours",
        "Our initiator does not belong to the organisation, or has no right to pay.",
        "Ask with a status query; check MPESA_INITIATOR_NAME and the initiator's roles with Safaricom.",
        retry_helps=True,
    ),
    "15": _DUPLICATE,
    "41": _DUPLICATE,
    "17": _in_doubt("M-Pesa failed internally, before or after the payment."),
    "19": _in_doubt("M-Pesa says the message came too late or out of order."),
    "26": _in_doubt("M-Pesa is too busy."),
    "43": _in_doubt("M-Pesa waits for a further step."),
    "45": _in_doubt("M-Pesa failed in the middle of the payment."),
    "46": _in_doubt("M-Pesa says a further step was confirmed."),
    "47": _in_doubt("M-Pesa says a further step was rejected."),
    "49": _in_doubt("M-Pesa has not found this payment yet.", "Ask again later: the request may still be queued."),
    "100000000": _in_doubt("Daraja keeps the request to send it later."),
    **dict.fromkeys(("6", "7", "12", "13", "14"), _BAD_PARTY),
    **dict.fromkeys(("18", "20", "22", "28", "31", "48"), _BAD_LOGIN),
    **dict.fromkeys(("23", "24", "25", "29", "30", "32", "33", "34", "35", "36", "37"), _BAD_REQUEST),
}


def meaning(code: str) -> Meaning:
    """Return the meaning of a B2C ResultCode. An unlisted code is in doubt."""
    return MEANING.get(code, _UNLISTED)


def says_duplicate(code: str) -> bool:
    """Return True if a B2C ResultCode says that M-Pesa has seen the request's id before."""
    return meaning(code) is _DUPLICATE
