"""What Daraja posts to us, read strictly and turned into frozen records.

Pure: bytes in, a record out, or `Unreadable`. A body that cannot be read is evidence of nothing, so the payment it may
speak of stays in doubt. Units: amounts are Decimal shillings, times are aware UTC, codes are text ("0", "SFC_IC0003").
Source: Daraja portal, pages Business To Customer, Transaction Status, Account Balance and M-Pesa Express.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

MAX_BYTES = 16 * 1024
MAX_DEPTH = 16
MAX_DIGITS = 30
NAIROBI = ZoneInfo("Africa/Nairobi")

Value: TypeAlias = str | Decimal | None
Verdict: TypeAlias = Literal["completed", "failed", "not_found", "unknown"]
Fault: TypeAlias = Literal["ours", "member", "unknown"]

# A string literal swallows its brackets; an unterminated one swallows the rest, which keeps the scan linear.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_AMOUNT = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")
_DOTTED_TIME = re.compile(r"([0-3][0-9])\.([01][0-9])\.(20[0-9]{2}) ([0-2][0-9]):([0-5][0-9]):([0-5][0-9])")
_DIGIT_TIME = re.compile(r"(20[0-9]{2})([01][0-9])([0-3][0-9])([0-2][0-9])([0-5][0-9])([0-5][0-9])")
_FULL_PHONE = re.compile(r"\+?(?:254|0)([17][0-9]{8})(?![0-9*xX])")
_VISIBLE_PHONE = re.compile(r"\+?[0-9*xX]{4,13}(?![0-9A-Za-z*])")
_MASK = re.compile(r"[*xX]+")


class Unreadable(Exception):
    """A body that is no message of Daraja's. `reason` says why without quoting the body, which holds personal facts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# -------- strict JSON


def read_object(body: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON object strictly: bounded in size, depth and digits, floats as Decimal.

    Raises: Unreadable for anything longer, deeper, not UTF-8, not an object, with NaN or Infinity, with a key twice in
    one object (two readers could see two amounts), or with text PostgreSQL cannot store (NUL, lone surrogates).
    """
    if len(body) > max_bytes:
        raise Unreadable(f"longer than {max_bytes} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8") from None
    _refuse_depth(text)
    try:
        root = json.loads(
            text,
            parse_float=_bounded_decimal,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object_without_duplicates,
        )
    except (ValueError, InvalidOperation):
        raise Unreadable("not JSON") from None
    if not isinstance(root, dict):
        raise Unreadable("not an object")
    _refuse_unstorable(root)
    return root


def _refuse_depth(text: str) -> None:
    depth = 0
    for token in _BRACKETS.finditer(text):
        opening = token.group()[0]
        depth += (opening in "[{") - (opening in "]}")
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")


def _refuse_constant(name: str) -> None:
    raise Unreadable(f"holds {name}")


def _bounded_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Unreadable("number too long")
    return int(text)


def _bounded_decimal(text: str) -> Decimal:
    number = Decimal(text) if len(text) <= 2 * MAX_DIGITS else None
    # A short text can still stand for a number of a billion digits, so its exponent is bounded too.
    if number is None or not -MAX_DIGITS <= number.adjusted() <= MAX_DIGITS:
        raise Unreadable("number too long")
    return number


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("a key appears twice in one object")
    return found


def _refuse_unstorable(value: Any) -> None:
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise Unreadable("holds NUL or a lone surrogate")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_unstorable(inner)


# -------- scalars


def _text(value: Any) -> str | None:
    """Ids come as text, now and then as a number or null; blank counts as absent."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unreadable("an id or text of another type")
    return str(value).strip() or None


def _code(fields: Mapping[str, Any]) -> str:
    if "ResultCode" not in fields:
        raise Unreadable("no ResultCode")
    # "Paid" is the integer 0 or the text "0", so absence is decided by None, never by falsehood.
    return _text(fields["ResultCode"]) or ""


def _value_text(value: Value) -> str | None:
    if isinstance(value, Decimal):
        return format(value, "f")
    return (value or "").strip() or None


def _amount(value: Value) -> Decimal | None:
    text = _value_text(value)
    return Decimal(text) if text and _AMOUNT.fullmatch(text) else None


def _time(value: Value) -> datetime | None:
    """Both of Daraja's spellings, `DD.MM.YYYY HH:MM:SS` and fourteen digits; no zone is given, Nairobi is meant."""
    text = _value_text(value) or ""
    if dotted := _DOTTED_TIME.fullmatch(text):
        day, month, year, hour, minute, second = map(int, dotted.groups())
    elif digits := _DIGIT_TIME.fullmatch(text):
        year, month, day, hour, minute, second = map(int, digits.groups())
    else:
        return None
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=NAIROBI).astimezone(UTC)
    except ValueError:
        return None


def _full_phone(party: str | None) -> str | None:
    found = _FULL_PHONE.match(party or "")
    return f"254{found.group(1)}" if found else None


def _visible_phone(party: str | None) -> str | None:
    found = _VISIBLE_PHONE.match(party or "")
    # Six digits without a mask are a shortcode, not a phone.
    return found.group() if found and (_MASK.search(found.group()) or len(found.group()) >= 9) else None


def phone_is_compatible(visible: str, phone_number: str) -> bool:
    """Say whether a shown, possibly masked number (`2547****678`, `0722***`) can be `phone_number` (`2547XXXXXXXX`)."""
    parts = _MASK.split(visible.strip().removeprefix("+"))
    spellings = (phone_number, "0" + phone_number[3:], phone_number[3:])
    if len(parts) == 1:
        return parts[0] in spellings
    return any(spelling.startswith(parts[0]) and spelling.endswith(parts[-1]) for spelling in spellings)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_NAMED_SECRET = re.compile(
    r"(?i)(\"?(?:SecurityCredential|Password|access_token|Authorization)\"?\s*[:=]\s*\"?)(?:Bearer |Basic )?[^\"\s,}&]+"
)
_TOKEN_AFTER_WORDS = re.compile(r"(?i)(access token\W{1,4})[A-Za-z0-9_.-]{12,}")
_LONG_SECRET = re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}")
_PHONE_IN_TEXT = re.compile(r"(?<![0-9])(?:\+?254|0)([17])[0-9]{5}([0-9]{3})(?![0-9])")


def redact(text: str, *secrets: str) -> str:
    """Make a text fit for logs: no tokens, credentials or control characters, phones as `2547****678`."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    text = _NAMED_SECRET.sub(r"\1[redacted]", _CONTROL.sub(" ", text))
    text = _LONG_SECRET.sub("[redacted]", _TOKEN_AFTER_WORDS.sub(r"\1[redacted]", text))
    return _PHONE_IN_TEXT.sub(r"254\1****\2", text)


# -------- parameters


@dataclass(frozen=True, eq=False, repr=False)
class Parameters(Mapping[str, Value]):
    """The Key/Value list of a result, in order. A repeated key reads as its first value; `all_values` gives each.

    Keys are kept without blanks, because some portal samples spell "Originator Conversation ID". A missing Value is
    None. The repr shows keys only: values name people and phones.
    """

    pairs: tuple[tuple[str, Value], ...] = ()

    def __getitem__(self, key: str) -> Value:
        for name, value in self.pairs:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self.pairs))

    def __len__(self) -> int:
        return len({name for name, _ in self.pairs})

    def __repr__(self) -> str:
        return f"Parameters({', '.join(self)})"

    def all_values(self, key: str) -> tuple[Value, ...]:
        """Every value given for `key`, in the order sent; empty when the key is absent."""
        return tuple(value for name, value in self.pairs if name == key)


def _parameters(holder: Any, list_name: str, key_name: str) -> Parameters:
    """Daraja sends a list, one bare object instead of a list of one, or nothing at all (absent, null, empty text)."""
    items = holder.get(list_name) if isinstance(holder, dict) else holder
    if items is None or items == "":
        return Parameters()
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        raise Unreadable(f"{list_name} is no list")
    return Parameters(tuple(_pair(item, key_name) for item in items))


def _pair(item: Any, key_name: str) -> tuple[str, Value]:
    key = item.get(key_name) if isinstance(item, dict) else None
    if not isinstance(key, str):
        raise Unreadable(f"a parameter without {key_name}")
    return key.replace(" ", ""), _parameter_value(item.get("Value"))


def _parameter_value(value: Any) -> Value:
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if value is None or isinstance(value, str | Decimal):
        return value
    raise Unreadable("a parameter value of another type")


# -------- payment results


@dataclass(frozen=True)
class Result:
    """One asynchronous answer of Daraja's. It is a claim: match token, ids, amount and phone before believing it.

    None in a property means absent or unreadable, which never counts as a match.
    """

    result_type: int | None
    result_code: str
    result_desc: str
    originator_conversation_id: str | None
    conversation_id: str | None
    transaction_id: str | None
    external_reference: str | None
    parameters: Parameters = field(default_factory=Parameters)

    @property
    def is_final(self) -> bool:
        """False for ResultType 1, "waiting for further messages". A result without a type counts as final."""
        return self.result_type in (0, None)

    @property
    def says_paid(self) -> bool:
        return self.is_final and self.result_code == "0"

    @property
    def amount(self) -> Decimal | None:
        return _amount(self.parameters.get("TransactionAmount", self.parameters.get("Amount")))

    @property
    def receipt(self) -> str | None:
        """M-Pesa's receipt; None unless paid, for a failure fills TransactionID with a placeholder."""
        if not self.says_paid:
            return None
        return _value_text(self.parameters.get("TransactionReceipt")) or self.transaction_id

    @property
    def receiver(self) -> str | None:
        return _value_text(self.parameters.get("ReceiverPartyPublicName"))

    @property
    def receiver_phone(self) -> str | None:
        """The whole number as `2547XXXXXXXX`; None where M-Pesa masks it."""
        return _full_phone(self.receiver)

    @property
    def receiver_phone_visible(self) -> str | None:
        """The number as shown, perhaps masked; compare it with `phone_is_compatible`."""
        return _visible_phone(self.receiver)

    @property
    def completed_at(self) -> datetime | None:
        return _time(self.parameters.get("TransactionCompletedDateTime"))

    @property
    def utility_available(self) -> Decimal | None:
        return _amount(self.parameters.get("B2CUtilityAccountAvailableFunds"))

    @property
    def working_available(self) -> Decimal | None:
        return _amount(self.parameters.get("B2CWorkingAccountAvailableFunds"))

    @property
    def charges_paid_available(self) -> Decimal | None:
        """Usually negative: M-Pesa books its charges there until they are settled."""
        return _amount(self.parameters.get("B2CChargesPaidAccountAvailableFunds"))

    @property
    def receiver_is_registered(self) -> bool | None:
        return {"Y": True, "N": False}.get(_value_text(self.parameters.get("B2CRecipientIsRegisteredCustomer")) or "")


def parse_result(body: bytes) -> Result:
    """Read a result callback: the `Result` envelope, or the flat lower-camel shape seen in the sandbox of 2018.

    Raises: Unreadable.
    """
    return _result(read_object(body))


def _result(root: Mapping[str, Any]) -> Result:
    if "Result" in root:
        fields = root["Result"]
        if not isinstance(fields, dict):
            raise Unreadable("Result is no object")
        parameters = _parameters(fields.get("ResultParameters"), "ResultParameter", "Key")
    elif "resultCode" in root:
        fields = _object_without_duplicates([(key[:1].upper() + key[1:], value) for key, value in root.items()])
        # The flat shape names its parameters at the top level and fills the ones it does not use with null.
        scalars = {
            key: value for key, value in fields.items() if value is not None and not isinstance(value, dict | list)
        }
        parameters = Parameters(tuple((key, _parameter_value(value)) for key, value in scalars.items()))
    else:
        raise Unreadable("neither Result nor resultCode")
    result_type = _text(fields.get("ResultType"))
    if result_type is not None and not re.fullmatch(r"[0-9]{1,4}", result_type):
        raise Unreadable("ResultType is no number")
    return Result(
        result_type=None if result_type is None else int(result_type),
        result_code=_code(fields),
        result_desc=_text(fields.get("ResultDesc")) or "",
        originator_conversation_id=_text(fields.get("OriginatorConversationID")),
        conversation_id=_text(fields.get("ConversationID")),
        transaction_id=_text(fields.get("TransactionID")),
        external_reference=_text(fields.get("ExternalReference")),
        parameters=parameters,
    )


@dataclass(frozen=True)
class Timeout:
    """Daraja's queue gave a request up. It proves nothing: the payment may still be made, so ask."""

    originator_conversation_id: str | None


def parse_timeout(body: bytes) -> Timeout:
    """Read a queue time-out: our own request posted back (flat), or a `Result` envelope; sources name both shapes.

    Nothing else is kept, because the request holds the security credential. Raises: Unreadable.
    """
    root = read_object(body)
    fields = root.get("Result", root)
    if not isinstance(fields, dict):
        raise Unreadable("Result is no object")
    return Timeout(_text(fields.get("OriginatorConversationID", fields.get("originatorConversationID"))))


# -------- status, balance, deposits

_FAILED_STATUSES = frozenset({"cancelled", "declined", "expired", "failed"})
# Code 49 is the broker's NoTransactionFound; the portal's status page lists SFC_IC0003 beside 0.
_NOT_FOUND_CODES = frozenset({"49", "SFC_IC0003"})


@dataclass(frozen=True)
class StatusAnswer:
    """What became of a payment, says M-Pesa. `result_code` is the query's own; `verdict` is about the payment.

    `not_found` never means failed: the request may still wait in Daraja's queue. Unknown covers every status that is
    not final, every spelling not listed and every contradiction.
    """

    result_code: str
    result_desc: str
    verdict: Verdict
    status_text: str | None
    originator_conversation_id: str | None
    conversation_id: str | None
    receipt: str | None
    amount: Decimal | None
    receiver_phone: str | None = field(repr=False)
    receiver_phone_visible: str | None = field(repr=False)
    initiated_at: datetime | None
    finalised_at: datetime | None
    charge: Decimal | None
    query_originator_conversation_id: str | None
    query_conversation_id: str | None


def parse_status(body: bytes) -> StatusAnswer:
    """Read the answer to a status query. Raises: Unreadable."""
    result = parse_result(body)
    parameters = result.parameters
    found = parameters if result.says_paid else Parameters()
    party = _receiving_party(found)
    return StatusAnswer(
        result_code=result.result_code,
        result_desc=result.result_desc,
        verdict=_verdict(result),
        status_text=_value_text(parameters.get("TransactionStatus")),
        originator_conversation_id=_value_text(found.get("OriginatorConversationID")),
        conversation_id=_value_text(found.get("ConversationID")),
        receipt=_value_text(found.get("ReceiptNo")),
        amount=_amount(found.get("Amount")),
        receiver_phone=_full_phone(party),
        receiver_phone_visible=_visible_phone(party),
        initiated_at=_time(found.get("InitiatedTime")),
        finalised_at=_time(found.get("FinalisedTime")),
        charge=_charge(found.get("DebitPartyCharges")),
        query_originator_conversation_id=result.originator_conversation_id,
        query_conversation_id=result.conversation_id,
    )


def _verdict(result: Result) -> Verdict:
    if result.is_final and result.result_code in _NOT_FOUND_CODES:
        return "not_found"
    statuses = {(_value_text(value) or "").casefold() for value in result.parameters.all_values("TransactionStatus")}
    # Code 0 says the query worked, no more; two different statuses in one answer say nothing.
    if not (result.is_final and result.result_code == "0" and len(statuses) == 1):
        return "unknown"
    status = statuses.pop()
    return "completed" if status == "completed" else "failed" if status in _FAILED_STATUSES else "unknown"


def _receiving_party(parameters: Parameters) -> str | None:
    """The credit party. The portal's sample names it by a second DebitPartyName; a lone one is the payer."""
    debit_parties = parameters.all_values("DebitPartyName")
    candidates = parameters.all_values("CreditPartyName") or (debit_parties if len(debit_parties) > 1 else ())
    return next((name for name in map(_value_text, candidates) if _visible_phone(name)), None)


def _charge(value: Value) -> Decimal | None:
    """`Fee For B2C Payment|KES|22.40`, several joined by `&`; None unless every part is readable."""
    text = _value_text(value)
    amounts = [_amount(part.rsplit("|", 1)[-1]) for part in text.split("&")] if text else []
    readable = [amount for amount in amounts if amount is not None]
    return sum(readable, Decimal(0)) if readable and len(readable) == len(amounts) else None


@dataclass(frozen=True)
class Balance:
    """One M-Pesa account of ours, in shillings; `available` is what a payout can spend."""

    current: Decimal
    available: Decimal
    reserved: Decimal
    uncleared: Decimal


def parse_balance(body: bytes) -> dict[str, Balance]:
    """Read the answer to a balance query, by account name ("Utility Account"). Empty when the query itself failed.

    The order current, available, reserved, uncleared is read off the portal's samples, where the first is the sum of
    the second and third; its legend is garbled. Raises: Unreadable.
    """
    result = parse_result(body)
    if not result.says_paid:
        return {}
    text = _value_text(result.parameters.get("AccountBalance"))
    if text is None:
        raise Unreadable("no AccountBalance")
    balances: dict[str, Balance] = {}
    for account in text.split("&"):
        name, currency, *columns = (part.strip() for part in account.split("|")) if "|" in account else ("", "")
        amounts = [amount for amount in map(_amount, columns) if amount is not None]
        if not name or currency != "KES" or len(columns) != 4 or len(amounts) != 4 or name in balances:
            raise Unreadable("an account of AccountBalance is malformed")
        balances[name] = Balance(*amounts)
    return balances


@dataclass(frozen=True)
class StkResult:
    """The outcome of an STK push. Match deposits on `checkout_request_id`: the payer's number may be masked."""

    merchant_request_id: str | None
    checkout_request_id: str
    result_code: str
    result_desc: str
    amount: Decimal | None
    receipt: str | None
    phone_number: str | None = field(repr=False)
    phone_visible: str | None = field(repr=False)
    paid_at: datetime | None

    @property
    def says_paid(self) -> bool:
        return self.result_code == "0"


def parse_stk(body: bytes) -> StkResult:
    """Read an STK push callback. Its codes are not those of B2C: here 2001 is the member's wrong PIN.

    Raises: Unreadable.
    """
    outer = read_object(body).get("Body")
    fields = outer.get("stkCallback") if isinstance(outer, dict) else None
    if not isinstance(fields, dict):
        raise Unreadable("no Body.stkCallback")
    checkout_request_id = _text(fields.get("CheckoutRequestID"))
    if checkout_request_id is None:
        raise Unreadable("no CheckoutRequestID")
    found = _parameters(fields.get("CallbackMetadata"), "Item", "Name")
    phone = _value_text(found.get("PhoneNumber"))
    return StkResult(
        merchant_request_id=_text(fields.get("MerchantRequestID")),
        checkout_request_id=checkout_request_id,
        result_code=_code(fields),
        result_desc=_text(fields.get("ResultDesc")) or "",
        amount=_amount(found.get("Amount")),
        receipt=_value_text(found.get("MpesaReceiptNumber")),
        phone_number=_full_phone(phone),
        phone_visible=_visible_phone(phone),
        paid_at=_time(found.get("TransactionDate")),
    )


# -------- what a B2C code is worth


@dataclass(frozen=True)
class Meaning:
    """What a B2C ResultCode says. `definite`: M-Pesa said that no money moved; only then may a new id be drawn.

    `fault` says whose: ours stops the sending (float, credentials, set-up), the member's concerns one payout.
    """

    definite: bool
    fault: Fault
    words: str
    advice: str


def _ours(words: str, advice: str) -> Meaning:
    return Meaning(True, "ours", words, advice)


def _member(words: str, advice: str) -> Meaning:
    return Meaning(True, "member", words, advice)


def _in_doubt(words: str, advice: str = "Ask M-Pesa with a status query; never pay again on this word.") -> Meaning:
    return Meaning(False, "unknown", words, advice)


_UNLISTED = _in_doubt("M-Pesa gave a code we do not know.")
_BAD_REQUEST = _in_doubt("M-Pesa found the request malformed.", "Ask with a status query, and report the fault to us.")
_BAD_LOGIN = _in_doubt("M-Pesa refused our operator.", "Ask with a status query; check the operator and its roles.")
_BAD_PARTY = _in_doubt(
    "M-Pesa could not find an account of the payment.", "Ask with a status query; check the shortcode."
)
_DUPLICATE = _in_doubt("M-Pesa has seen this id before; this says nothing of the first request.")

# The definite codes are an allow-list: whatever is not on it leaves the money in doubt, however clear its text sounds.
MEANING: dict[str, Meaning] = {
    "0": _in_doubt("Paid.", "Nothing to do."),
    "1": _ours("The Utility account is short of funds.", "Top up the Utility account; sending resumes by itself."),
    "2": _member("The amount is below M-Pesa's minimum.", "Pay it to the wallet."),
    "3": _member("The amount is above M-Pesa's maximum.", "Pay it in smaller parts or to the wallet."),
    "4": _member("The member would pass their daily limit.", "Retry on the next day."),
    "8": _member("The member's M-Pesa balance would pass its limit.", "Ask the member to make room, then retry."),
    "11": _ours("M-Pesa says the paying account is invalid.", "Check the shortcode with Safaricom."),
    "21": _ours("Our operator may not make this payment.", "Give it the role ORG B2C API Initiator."),
    "2001": _ours("M-Pesa refused our operator's name or password.", "Renew the password and encrypt it again."),
    "2006": _ours("Our M-Pesa account is not active.", "Have Safaricom activate the account."),
    "2028": _ours("Our shortcode lacks this product.", "Have Safaricom enable B2C on the shortcode."),
    "2040": _member("The number is no registered M-Pesa customer.", "Correct the number, or pay to the wallet."),
    "8006": _ours("Our security credential is locked.", "Have the business administrator unlock it."),
    "SFC_IC0003": _member("M-Pesa knows no such receiver.", "Correct the number, or pay to the wallet."),
    "5": _in_doubt("The payment would break our account's minimum balance.", "Ask with a status query; top up."),
    "15": _DUPLICATE,
    "41": _DUPLICATE,
    "17": _in_doubt("M-Pesa failed internally, before or after the payment."),
    "19": _in_doubt("M-Pesa says the message came too late or out of order."),
    "26": _in_doubt("M-Pesa is too busy."),
    "43": _in_doubt("M-Pesa awaits a further step."),
    "45": _in_doubt("M-Pesa failed in the middle of the payment."),
    "46": _in_doubt("M-Pesa says a further step was confirmed."),
    "47": _in_doubt("M-Pesa says a further step was rejected."),
    "49": _in_doubt("M-Pesa finds no such payment, yet.", "Ask again later: the request may still be queued."),
    "100000000": _in_doubt("Daraja keeps the request to send it later."),
    **dict.fromkeys(("6", "7", "12", "13", "14"), _BAD_PARTY),
    **dict.fromkeys(("18", "20", "22", "28", "31", "48"), _BAD_LOGIN),
    **dict.fromkeys(("23", "24", "25", "29", "30", "32", "33", "34", "35", "36", "37"), _BAD_REQUEST),
}


def meaning(code: str) -> Meaning:
    """The meaning of a B2C ResultCode; a code not listed is in doubt."""
    return MEANING.get(code, _UNLISTED)


def says_duplicate(code: str) -> bool:
    """Whether a B2C ResultCode says that M-Pesa has had the request's id before."""
    return meaning(code) is _DUPLICATE
