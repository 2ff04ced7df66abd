"""Daraja's callbacks, read strictly into frozen records.

Pure: a parser takes bytes and returns a record or raises `Unreadable`. An unreadable body proves nothing, so the
payment in question stays in doubt.
Units: amounts are Decimal shillings, times are aware UTC, codes are text ("0", "SFC_IC0003").
Source: Daraja portal, pages Business To Customer, Transaction Status, Account Balance and M-Pesa Express.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from payments.mpesa.message_fields import (
    Parameters,
    Value,
    full_phone,
    parameter_value,
    read_amount,
    read_code,
    read_parameters,
    read_text,
    read_time,
    read_value,
    visible_phone,
)
from payments.mpesa.strict_json import Unreadable, object_without_duplicates, read_message

PaymentStatus: TypeAlias = Literal["completed", "failed", "reversed", "not_found", "unknown"]


@dataclass(frozen=True)
class Result:
    """An asynchronous result that Daraja posted. It is a report, not a proof.

    Check the token, ids, amount and phone before you believe a result. None in a property means absent or unreadable
    and never counts as a match.
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
        """False for ResultType 1, which means "waiting for further messages". A result without a type is final."""
        return self.result_type in (0, None)

    @property
    def says_paid(self) -> bool:
        return self.is_final and self.result_code == "0"

    @property
    def amount(self) -> Decimal | None:
        return read_amount(self.parameters.get("TransactionAmount", self.parameters.get("Amount")))

    @property
    def receipt(self) -> str | None:
        """M-Pesa's receipt. None if the result is a failure, because its TransactionID is only a placeholder."""
        if not self.says_paid:
            return None
        return read_value(self.parameters.get("TransactionReceipt")) or self.transaction_id

    @property
    def receiver(self) -> str | None:
        return read_value(self.parameters.get("ReceiverPartyPublicName"))

    @property
    def receiver_phone(self) -> str | None:
        """The complete number as `2547XXXXXXXX`. None if M-Pesa masks it."""
        return full_phone(self.receiver)

    @property
    def receiver_phone_visible(self) -> str | None:
        """The number as M-Pesa shows it, possibly masked. Compare it with `phone_is_compatible`."""
        return visible_phone(self.receiver)

    @property
    def completed_at(self) -> datetime | None:
        return read_time(self.parameters.get("TransactionCompletedDateTime"))

    @property
    def utility_available(self) -> Decimal | None:
        return read_amount(self.parameters.get("B2CUtilityAccountAvailableFunds"))

    @property
    def working_available(self) -> Decimal | None:
        return read_amount(self.parameters.get("B2CWorkingAccountAvailableFunds"))

    @property
    def charges_paid_available(self) -> Decimal | None:
        """Funds of the Charges Paid account. They are usually negative, because M-Pesa books its charges there."""
        return read_amount(self.parameters.get("B2CChargesPaidAccountAvailableFunds"))

    @property
    def receiver_is_registered(self) -> bool | None:
        return {"Y": True, "N": False}.get(read_value(self.parameters.get("B2CRecipientIsRegisteredCustomer")) or "")


def parse_result(body: bytes) -> Result:
    """Read a result callback: the `Result` envelope, or the flat lower-camel shape of Daraja's 2018 sandbox.

    Raises: Unreadable.
    """
    return _result(read_message(body))


def _result(root: Mapping[str, Any]) -> Result:
    if "Result" in root:
        fields = root["Result"]
        if not isinstance(fields, dict):
            raise Unreadable("Result is no object")
        parameters = read_parameters(fields.get("ResultParameters"), "ResultParameter", "Key")
    elif "resultCode" in root:
        fields = object_without_duplicates([(key[:1].upper() + key[1:], value) for key, value in root.items()])
        # The flat shape has its parameters at the top level and sets unused parameters to null.
        scalars = {
            key: value for key, value in fields.items() if value is not None and not isinstance(value, dict | list)
        }
        parameters = Parameters(tuple((key, parameter_value(value)) for key, value in scalars.items()))
    else:
        raise Unreadable("neither Result nor resultCode")
    result_type = read_text(fields.get("ResultType"))
    if result_type is not None and not re.fullmatch(r"[0-9]{1,4}", result_type):
        raise Unreadable("ResultType is not a number")
    return Result(
        result_type=None if result_type is None else int(result_type),
        result_code=read_code(fields),
        result_desc=read_text(fields.get("ResultDesc")) or "",
        originator_conversation_id=read_text(fields.get("OriginatorConversationID")),
        conversation_id=read_text(fields.get("ConversationID")),
        transaction_id=read_text(fields.get("TransactionID")),
        external_reference=read_text(fields.get("ExternalReference")),
        parameters=parameters,
    )


@dataclass(frozen=True)
class Timeout:
    """A notice that a request timed out in Daraja's queue. It proves nothing: the payment may still be made."""

    originator_conversation_id: str | None


def parse_timeout(body: bytes) -> Timeout:
    """Read a queue timeout: our own request posted back (flat), or a `Result` envelope. Sources describe both forms.

    Only the id is kept, because the request holds the security credential.
    Raises: Unreadable.
    """
    root = read_message(body)
    fields = root.get("Result", root)
    if not isinstance(fields, dict):
        raise Unreadable("Result is no object")
    return Timeout(read_text(fields.get("OriginatorConversationID", fields.get("originatorConversationID"))))


_FAILED_STATUSES = frozenset({"cancelled", "declined", "expired", "failed"})
# Code 49 is the broker's NoTransactionFound. The portal's status page lists SFC_IC0003. In 2026 production gave
# 2033 as the answer to a query by our id, and 2032 to a query by receipt.
_NOT_FOUND_CODES = frozenset({"49", "2032", "2033", "SFC_IC0003"})
# M-Pesa acknowledges a query whatever our password. Its answer is then the first sign of a refused initiator.
_CREDENTIAL_CODES = frozenset({"21", "2001", "8006", "TP40153"})


@dataclass(frozen=True)
class StatusAnswer:
    """M-Pesa's answer to a status query. `result_code` is about the query; `payment_status` is about the payment.

    `not_found` does not mean failed, because the request may still wait in Daraja's queue. `reversed` means that the
    money went out and came back, so a person must decide. `unknown` covers every status that is not final, every
    unlisted text and every contradiction.
    """

    result_code: str
    result_desc: str
    payment_status: PaymentStatus
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

    @property
    def is_thin(self) -> bool:
        """True for a "Completed" that names neither the request nor the amount nor the receiver. It proves nothing."""
        named = (self.originator_conversation_id, self.amount, self.receiver_phone_visible)
        return self.payment_status == "completed" and all(part is None for part in named)

    @property
    def refuses_our_credentials(self) -> bool:
        """True if M-Pesa refused our initiator or its password. Such an answer says nothing about the payment."""
        return self.result_code in _CREDENTIAL_CODES


def parse_status(body: bytes) -> StatusAnswer:
    """Read the answer to a status query. Raises: Unreadable."""
    result = parse_result(body)
    parameters = result.parameters
    payment = parameters if result.says_paid else Parameters()
    party = _receiving_party(payment)
    return StatusAnswer(
        result_code=result.result_code,
        result_desc=result.result_desc,
        payment_status=_payment_status(result),
        status_text=read_value(parameters.get("TransactionStatus")),
        originator_conversation_id=read_value(payment.get("OriginatorConversationID")),
        conversation_id=read_value(payment.get("ConversationID")),
        receipt=read_value(payment.get("ReceiptNo")),
        amount=read_amount(payment.get("Amount")),
        receiver_phone=full_phone(party),
        receiver_phone_visible=visible_phone(party),
        initiated_at=read_time(payment.get("InitiatedTime")),
        finalised_at=read_time(payment.get("FinalisedTime")),
        charge=_charge(payment.get("DebitPartyCharges")),
        query_originator_conversation_id=result.originator_conversation_id,
        query_conversation_id=result.conversation_id,
    )


def _payment_status(result: Result) -> PaymentStatus:
    if result.is_final and result.result_code in _NOT_FOUND_CODES:
        return "not_found"
    statuses = {(read_value(value) or "").casefold() for value in result.parameters.all_values("TransactionStatus")}
    # Code 0 only says that the query worked. Two different statuses in one answer say nothing.
    if not (result.is_final and result.result_code == "0" and len(statuses) == 1):
        return "unknown"
    status = statuses.pop()
    if status in _FAILED_STATUSES:
        return "failed"
    return "completed" if status == "completed" else "reversed" if status == "reversed" else "unknown"


def _receiving_party(parameters: Parameters) -> str | None:
    """Return the party that was paid.

    The portal's sample names this party in a second DebitPartyName. A single DebitPartyName is the payer.
    """
    debit_parties = parameters.all_values("DebitPartyName")
    candidates = parameters.all_values("CreditPartyName") or (debit_parties if len(debit_parties) > 1 else ())
    return next((name for name in map(read_value, candidates) if visible_phone(name)), None)


def _charge(value: Value) -> Decimal | None:
    """Sum charges such as `Fee For B2C Payment|KES|22.40`, joined by `&`. Return None if any part is unreadable."""
    text = read_value(value)
    amounts = [read_amount(part.rsplit("|", 1)[-1]) for part in text.split("&")] if text else []
    readable = [amount for amount in amounts if amount is not None]
    return sum(readable, Decimal(0)) if readable and len(readable) == len(amounts) else None


@dataclass(frozen=True)
class Balance:
    """Balance of one of our M-Pesa accounts, in shillings. Payouts can spend `available`."""

    current: Decimal
    available: Decimal
    reserved: Decimal
    uncleared: Decimal


@dataclass(frozen=True)
class BalanceAnswer:
    """M-Pesa's answer to a balance query: balances by account name ("Utility Account"). Empty if the query failed."""

    result_code: str
    result_desc: str
    balances: Mapping[str, Balance]

    @property
    def refuses_our_credentials(self) -> bool:
        """True if M-Pesa refused our initiator or its password."""
        return self.result_code in _CREDENTIAL_CODES


def parse_balance(body: bytes) -> BalanceAnswer:
    """Read the answer to a balance query. Accounts in currencies other than KES are skipped.

    The order current, available, reserved, uncleared is inferred from the portal's samples, where current = available +
    reserved, because the portal's legend is garbled.
    Raises: Unreadable.
    """
    result = parse_result(body)
    return BalanceAnswer(result.result_code, result.result_desc, _balances(result) if result.says_paid else {})


def _balances(result: Result) -> dict[str, Balance]:
    text = read_value(result.parameters.get("AccountBalance"))
    if text is None:
        raise Unreadable("no AccountBalance")
    balances: dict[str, Balance] = {}
    # Some answers end with an `&` and so with an empty account.
    for account in filter(None, map(str.strip, text.split("&"))):
        name, currency, *columns = (part.strip() for part in account.split("|")) if "|" in account else ("", "")
        amounts = [amount for amount in map(read_amount, columns) if amount is not None]
        if currency != "KES" and re.fullmatch("[A-Z]{3}", currency):
            continue
        if not name or currency != "KES" or len(columns) != 4 or len(amounts) != 4 or name in balances:
            raise Unreadable("an account of AccountBalance is malformed")
        balances[name] = Balance(*amounts)
    return balances


@dataclass(frozen=True)
class StkResult:
    """The result of an STK push. Match deposits by `checkout_request_id`, because the payer's number may be masked."""

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
    """Read an STK push callback. Its codes differ from those of B2C: here 2001 is the member's wrong PIN.

    Raises: Unreadable.
    """
    outer = read_message(body).get("Body")
    fields = outer.get("stkCallback") if isinstance(outer, dict) else None
    if not isinstance(fields, dict):
        raise Unreadable("no Body.stkCallback")
    checkout_request_id = read_text(fields.get("CheckoutRequestID"))
    if checkout_request_id is None:
        raise Unreadable("no CheckoutRequestID")
    metadata = read_parameters(fields.get("CallbackMetadata"), "Item", "Name")
    phone = read_value(metadata.get("PhoneNumber"))
    return StkResult(
        merchant_request_id=read_text(fields.get("MerchantRequestID")),
        checkout_request_id=checkout_request_id,
        result_code=read_code(fields),
        result_desc=read_text(fields.get("ResultDesc")) or "",
        amount=read_amount(metadata.get("Amount")),
        receipt=read_value(metadata.get("MpesaReceiptNumber")),
        phone_number=full_phone(phone),
        phone_visible=visible_phone(phone),
        paid_at=read_time(metadata.get("TransactionDate")),
    )
