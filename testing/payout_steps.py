"""The road of one payout, step by step: claimed, sent, called back, asked about. Only the network is not real.

Messages are written as Daraja writes them; callbacks come in by their address's token, as they do by HTTP.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import Q

from payments.ledger import journal
from payments.models import Attempt, Callback, Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.bulk_client import Ended, Payment
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy
from testing import builders
from testing.builders import AT

ADDRESSES = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
POLICY = builders.policy()
RECEIPT = "SKG7ABCDEF"
Said = client.Accepted | gateway_errors.GatewayError

ACCEPTED = client.Accepted("AG_20260216_1", "ours")
NO_CONNECTION = gateway_errors.NotSent("network", message="no connection: ConnectTimeoutError")
THROTTLED = gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation", retry_after_seconds=40.0)
REJECTED = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
READ_TIMEOUT = gateway_errors.OutcomeUnknown(message="no whole answer: ReadTimeout")
DUPLICATE = gateway_errors.OutcomeUnknown("500.002.1001", "Duplicate OriginatorConversationID.", duplicate=True)


def after(seconds: float) -> datetime:
    """So many seconds into a test's story."""
    return AT + timedelta(seconds=seconds)


class FakeGateway:
    """Says what it is told to, in order, and Accepted from then on; keeps what it was asked."""

    def __init__(self, *script: Said) -> None:
        self.script = list(script)
        self.payments: list[dict[str, Any]] = []
        self.questions: list[dict[str, Any]] = []

    def pay(self, **request: Any) -> client.Accepted:
        self.payments.append(request)
        return self._next()

    def ask_status(self, **request: Any) -> client.Accepted:
        self.questions.append(request)
        return self._next()

    def _next(self) -> client.Accepted:
        said = self.script.pop(0) if self.script else ACCEPTED
        if isinstance(said, gateway_errors.GatewayError):
            raise said
        return said


class FakeCalls:
    """Carries requests to a FakeGateway at once, as the bulk gateway carries them to M-Pesa."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.ended: list[Ended] = []

    def start(self, payments: Iterable[Payment]) -> None:
        for payment in payments:
            try:
                said = self.gateway.pay(**payment.request)
            except Exception as error:  # noqa: BLE001 - as the bulk gateway does, for the dispatcher to raise
                said = error
            self.ended.append(Ended(payment.key, said))

    def collect(self, *, patience_seconds: float, enough: int) -> list[Ended]:
        ended, self.ended = self.ended, []
        return ended


# --- sending ---------------------------------------------------------------------------------------------------------


def claims(
    at: datetime = AT,
    policy: Policy = POLICY,
    limit: int = 100,
    transaction_id: int | None = None,
    last_turn: int = 0,
) -> list[sending_claims.Claim]:
    return sending_claims.claim(
        at=at, policy=policy, addresses=ADDRESSES, limit=limit, transaction_id=transaction_id, after=last_turn
    )


def resends(at: datetime, policy: Policy = POLICY) -> list[sending_claims.Claim]:
    return sending_claims.claim_resends(at=at, policy=policy, addresses=ADDRESSES, limit=100)


def put_through(
    claim: sending_claims.Claim, said: Said = ACCEPTED, at: datetime = AT, policy: Policy = POLICY
) -> Attempt:
    """POST one claim to a gateway that says `said`, and write it down."""
    answer = sending_claims.call(claim, gateway=FakeGateway(said), addresses=ADDRESSES)
    responses.record(claim, answer, at=at, policy=policy)
    return Attempt.objects.get(pk=claim.attempt_id)


def sent(payout: Transaction, said: Said = ACCEPTED, at: datetime = AT, policy: Policy = POLICY) -> Attempt:
    """Claim a payout that is due, and POST it."""
    (claim,) = claims(at, policy, transaction_id=payout.pk)
    return put_through(claim, said, at, policy)


def failed(payout: Transaction, at: datetime = AT, policy: Policy = POLICY) -> Attempt:
    """A payout that Daraja refused outright, and so failed for good."""
    return sent(payout, REJECTED, at, policy)


# --- what Daraja posts -----------------------------------------------------------------------------------------------


def result_body(
    attempt: Attempt,
    code: int | str = 0,
    *,
    amount: Decimal | int | str | None = None,
    phone: str | None = None,
    receipt: str = RECEIPT,
    ocid: str | None = None,
    result_type: int = 0,
    without: Sequence[str] = (),
) -> bytes:
    """The result of a B2C request, as posted to its ResultURL."""
    result: dict[str, Any] = {
        "ResultType": result_type,
        "ResultCode": code,
        "ResultDesc": "The service request is processed successfully." if code == 0 else f"Refused with {code}.",
        "OriginatorConversationID": ocid or attempt.originator_conversation_id,
        "ConversationID": "AG_20260216_1",
        "TransactionID": receipt if code == 0 and "TransactionReceipt" not in without else None,
    }
    if code == 0:
        found = {
            "TransactionAmount": int(attempt.amount) if amount is None else amount,
            "TransactionReceipt": receipt,
            "ReceiverPartyPublicName": f"{phone or attempt.phone_number} - JOHN DOE",
            "TransactionCompletedDateTime": "16.02.2026 10:30:05",
        }
        parameters = [{"Key": key, "Value": value} for key, value in found.items() if key not in without]
        result["ResultParameters"] = {"ResultParameter": parameters}
    return json.dumps({"Result": result}).encode()


def status_body(
    attempt: Attempt,
    status: str = "Completed",
    *,
    amount: Decimal | int | str | None = None,
    phone: str | None = None,
    receipt: str = RECEIPT,
    ocid: str | None = None,
) -> bytes:
    """The answer to a status query that worked."""
    found = {
        "DebitPartyName": "600000 - KASOKO",
        "CreditPartyName": f"{phone or attempt.phone_number} - JOHN DOE",
        "OriginatorConversationID": ocid or attempt.originator_conversation_id,
        "TransactionStatus": status,
        "Amount": int(attempt.amount) if amount is None else amount,
        "ReceiptNo": receipt if status == "Completed" else None,
    }
    return _query_result(0, [{"Key": key, "Value": value} for key, value in found.items()])


def not_found_body(code: int | str = 49) -> bytes:
    """The answer to a status query about an id that Daraja does not know, yet."""
    return _query_result(code, [])


def _query_result(code: int | str, parameters: list[dict[str, Any]]) -> bytes:
    result: dict[str, Any] = {
        "ResultType": 0,
        "ResultCode": code,
        "ResultDesc": "The query's own.",
        "OriginatorConversationID": "12345-67890-1",
        "ConversationID": "AG_20260216_2",
        "TransactionID": "MBN0000000",
        "ResultParameters": {"ResultParameter": parameters},
    }
    return json.dumps({"Result": result}).encode()


# --- hearing it ------------------------------------------------------------------------------------------------------


def deliver(
    kind: str, token: str, body: bytes, at: datetime, *, policy: Policy = POLICY, trusted: bool = True
) -> str | None:
    """Bring a callback to one of our addresses and apply it: what came of it, or None where it came before."""
    callbacks.store(
        kind=kind,
        token=token,
        body=body,
        source_ip="196.201.214.200",
        trusted=trusted,
        at=at,
        addresses=ADDRESSES,
    )
    hashed = token_hash(token)
    about = Q(attempt__token_hash=hashed) | Q(query__token_hash=hashed)
    stored = Callback.objects.get(about, kind=kind, digest=hashlib.sha256(body).hexdigest(), trusted=trusted)
    return None if stored.applied_at else callbacks.apply(callback_id=stored.pk, at=at, policy=policy)


def hear(
    attempt: Attempt, body: bytes, at: datetime = AT, *, policy: Policy = POLICY, trusted: bool = True
) -> str | None:
    """The result callback of an attempt."""
    token = ADDRESSES.token(attempt.originator_conversation_id)
    return deliver(Callback.Kind.RESULT, token, body, at, policy=policy, trusted=trusted)


def hear_timeout(token: str, at: datetime = AT) -> str | None:
    """M-Pesa's queue gave up on a request or on a query."""
    return deliver(Callback.Kind.TIMEOUT, token, b'{"Result": {}}', at)


def question(attempt: Attempt, at: datetime, policy: Policy = POLICY) -> status_queries.Question:
    """The question that is due about an attempt, committed."""
    asked = status_queries.ask(at=at, policy=policy, addresses=ADDRESSES, limit=100)
    (found,) = [one for one in asked if one.originator_conversation_id == attempt.originator_conversation_id]
    return found


def answer(question: status_queries.Question, body: bytes, at: datetime, policy: Policy = POLICY) -> str | None:
    """The callback that answers a question."""
    return deliver(Callback.Kind.STATUS, question.token, body, at, policy=policy)


def ask_and_hear(attempt: Attempt, body: bytes, at: datetime, policy: Policy = POLICY) -> str | None:
    """A question that is due at `at`, and its answer a second later."""
    return answer(question(attempt, at, policy), body, at + timedelta(seconds=1), policy)


# --- looking ---------------------------------------------------------------------------------------------------------


def states(payout: Transaction, attempt: Attempt) -> tuple[str, str]:
    """The state of a payout and of an attempt of it, read anew."""
    payout.refresh_from_db()
    attempt.refresh_from_db()
    return payout.status, attempt.state


def booked(payout: Transaction) -> list[tuple[str, str, str, Decimal]]:
    """What was booked about a payout since its debt was born: (key, debit, credit, amount)."""
    return builders.transfers(transaction=payout)[1:]


def balances(payout: Transaction) -> dict[str, Decimal]:
    """The accounts a payout moves through, those at zero left out."""
    codes = [journal.PAYABLE, journal.IN_FLIGHT, journal.MPESA_UTILITY, journal.wallet(payout.user_id)]
    codes += [journal.receivable(payout.user_id), journal.CHARGE_EXPENSE]
    return {code: balance for code in codes if (balance := journal.balance(code))}
