"""Steps of one payout for tests: claim, send, callback, status query.

Only the network is simulated. Messages have Daraja's format. A callback is delivered by the token of its address, as
over HTTP.
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
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy
from testing import builders
from testing.builders import AT
from users.audit import MACHINE

ADDRESSES = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
POLICY = builders.policy()
PRODUCTION = builders.policy(production=True)
RECEIPT = "SKG7ABCDEF"
# An amount and M-Pesa's charge for it.
KES_285, CHARGE = Decimal("285.00"), Decimal("5.00")
Response = client.Accepted | gateway_errors.GatewayError

ACCEPTED = client.Accepted("AG_20260216_1", "ours")
NO_CONNECTION = gateway_errors.NotSent("network", message="no connection to Daraja (timeout)")
THROTTLED = gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation", retry_after_seconds=40.0)
REJECTED = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
READ_TIMEOUT = gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
DUPLICATE = gateway_errors.OutcomeUnknown("500.002.1001", "Duplicate OriginatorConversationID.", duplicate=True)
# Changes to a result or an answer that make it contradict its attempt.
MISMATCHES = {
    "one shilling more": {"amount": 286},
    "a cent less": {"amount": "284.99"},
    "another phone": {"phone": "254799999999"},
    "another phone, masked": {"phone": "2547****998"},
    "another request": {"ocid": "KASOKO-9-9-ffffffff-1"},
}


def after(seconds: float) -> datetime:
    """Return the time `seconds` after AT."""
    return AT + timedelta(seconds=seconds)


class FakeGateway:
    """A gateway that returns the scripted responses in order, then Accepted. It records its requests."""

    def __init__(self, *script: Response) -> None:
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
        response = self.script.pop(0) if self.script else ACCEPTED
        if isinstance(response, gateway_errors.GatewayError):
            raise response
        return response


class FakeCalls:
    """A replacement for the bulk gateway that passes each request to a FakeGateway at once."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.ended: list[Ended] = []

    def start(self, payments: Iterable[Payment]) -> None:
        for payment in payments:
            try:
                response = self.gateway.pay(**payment.request)
            except Exception as error:
                response = error
            self.ended.append(Ended(payment.key, response))

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]:
        ended, self.ended = self.ended, []
        return ended


# --- sending ----------------------------------------------------------------------------------------------------------


def claims(
    at: datetime = AT,
    policy: Policy = POLICY,
    limit: int = 100,
    transaction_id: int | None = None,
    last_served: int = 0,
) -> list[sending_claims.Claim]:
    return sending_claims.claim(
        at=at, policy=policy, addresses=ADDRESSES, limit=limit, transaction_id=transaction_id, after=last_served
    )


def resends(at: datetime, policy: Policy = POLICY) -> list[sending_claims.Claim]:
    return sending_claims.claim_resends(at=at, policy=policy, addresses=ADDRESSES, limit=100)


def put_through(
    claim: sending_claims.Claim, response: Response = ACCEPTED, at: datetime = AT, policy: Policy = POLICY
) -> Attempt:
    """POST one claim to a gateway that returns `response`, and record this response."""
    received = sending_claims.call(claim, gateway=FakeGateway(response), addresses=ADDRESSES)
    responses.record(claim, received, at=at, policy=policy)
    return Attempt.objects.get(pk=claim.attempt_id)


def sent(payout: Transaction, response: Response = ACCEPTED, at: datetime = AT, policy: Policy = POLICY) -> Attempt:
    """Claim a due payout and POST its request."""
    (claim,) = claims(at, policy, transaction_id=payout.pk)
    return put_through(claim, response, at, policy)


def failed(payout: Transaction, at: datetime = AT, policy: Policy = POLICY) -> Attempt:
    """Fail a payout for good by a request that Daraja rejects."""
    return sent(payout, REJECTED, at, policy)


def refused(payout: Transaction) -> Attempt:
    """Fail a payout as `failed` does, and assert that it failed."""
    attempt = failed(payout)
    assert states(payout, attempt) == ("FAILED", "FAILED")
    return attempt


def retried(payout: Transaction, response: Response = ACCEPTED) -> tuple[Attempt, Attempt]:
    """Fail a payout and send it again, and return both attempts."""
    first = refused(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))
    second = sent(payout, response, after(31))
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    return first, second


def held(amount: int = 285) -> tuple[Transaction, Attempt]:
    """Hold a payout because its request was in doubt for a day."""
    payout = builders.payout(amount)
    attempt = sent(payout, READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    return payout, attempt


# --- messages of Daraja -----------------------------------------------------------------------------------------------


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
    """Return the result of a B2C request, as Daraja posts it to the ResultURL."""
    result: dict[str, Any] = {
        "ResultType": result_type,
        "ResultCode": code,
        "ResultDesc": "The service request is processed successfully." if code == 0 else f"Refused with {code}.",
        "OriginatorConversationID": ocid or attempt.originator_conversation_id,
        "ConversationID": "AG_20260216_1",
        "TransactionID": receipt if code == 0 and "TransactionReceipt" not in without else None,
    }
    if code == 0:
        values = {
            "TransactionAmount": int(attempt.amount) if amount is None else amount,
            "TransactionReceipt": receipt,
            "ReceiverPartyPublicName": f"{phone or attempt.phone_number} - JOHN DOE",
            "TransactionCompletedDateTime": "16.02.2026 10:30:05",
        }
        parameters = [{"Key": key, "Value": value} for key, value in values.items() if key not in without]
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
    without: Sequence[str] = (),
) -> bytes:
    """Return the answer to a successful status query. `without`: parameters that M-Pesa left out."""
    values = {
        "DebitPartyName": "600000 - KASOKO",
        "CreditPartyName": f"{phone or attempt.phone_number} - JOHN DOE",
        "OriginatorConversationID": ocid or attempt.originator_conversation_id,
        "TransactionStatus": status,
        "Amount": int(attempt.amount) if amount is None else amount,
        "ReceiptNo": receipt if status == "Completed" else None,
    }
    return _query_result(0, [{"Key": key, "Value": value} for key, value in values.items() if key not in without])


def not_found_body(code: int | str = 49) -> bytes:
    """Return the answer to a status query about an id that Daraja does not know yet."""
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


# --- callbacks --------------------------------------------------------------------------------------------------------


def deliver(
    kind: str, token: str, body: bytes, at: datetime, *, policy: Policy = POLICY, trusted: bool = True
) -> str | None:
    """Store a callback to one of our addresses and apply it.

    Returns the outcome in words, or None if the same callback was applied before.
    """
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


def deliver_result(
    attempt: Attempt, body: bytes, at: datetime = AT, *, policy: Policy = POLICY, trusted: bool = True
) -> str | None:
    """Deliver the result callback of an attempt. Returns as `deliver`."""
    token = ADDRESSES.token(attempt.originator_conversation_id)
    return deliver(Callback.Kind.RESULT, token, body, at, policy=policy, trusted=trusted)


def deliver_timeout(token: str, at: datetime = AT) -> str | None:
    """Deliver a queue timeout about a request or a status query. Returns as `deliver`."""
    return deliver(Callback.Kind.TIMEOUT, token, b'{"Result": {}}', at)


def ask(at: datetime, policy: Policy = POLICY, limit: int = 100) -> list[status_queries.DueQuery]:
    """Commit the status queries that are due, record their POSTs, and return them."""
    asked = status_queries.ask(at=at, policy=policy, addresses=ADDRESSES, limit=limit)
    for query in asked:
        status_queries.record_put(query, None)
    return asked


def question(attempt: Attempt, at: datetime, policy: Policy = POLICY) -> status_queries.DueQuery:
    """Ask the status queries that are due, and return the one about an attempt."""
    asked = ask(at, policy)
    ocid = attempt.originator_conversation_id
    (due,) = [question for question in asked if question.originator_conversation_id == ocid]
    return due


def answer(question: status_queries.DueQuery, body: bytes, at: datetime, policy: Policy = POLICY) -> str | None:
    """Deliver the answer to a status query. Returns as `deliver`."""
    return deliver(Callback.Kind.STATUS, question.token, body, at, policy=policy)


def ask_and_answer(attempt: Attempt, body: bytes, at: datetime, policy: Policy = POLICY) -> str | None:
    """Ask the status query due at `at`, and deliver its answer a second later. Returns as `deliver`."""
    return answer(question(attempt, at, policy), body, at + timedelta(seconds=1), policy)


# --- states and books -------------------------------------------------------------------------------------------------


def states(payout: Transaction, attempt: Attempt) -> tuple[str, str]:
    """Reload a payout and one of its attempts, and return their states."""
    payout.refresh_from_db()
    attempt.refresh_from_db()
    return payout.status, attempt.state


def booked(payout: Transaction) -> list[tuple[str, str, str, Decimal]]:
    """Return a payout's transfers after its debt arose: (key, debit, credit, amount)."""
    return builders.transfers(transaction=payout)[1:]


def payment_transfers(
    payout: Transaction, attempt: Attempt, amount: Decimal = KES_285
) -> list[tuple[str, str, str, Decimal]]:
    """Return the transfers of a payout that its first attempt paid, as `booked` does."""
    wallet = f"wallet:{payout.user_id}"
    return [
        (f"send:{attempt.pk}", "payable", "in_flight", amount),
        (f"won:{attempt.pk}", "in_flight", wallet, amount),
        (f"paid:{attempt.pk}", wallet, "mpesa_utility", amount),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]


class nothing_moved_but_callbacks:
    """Assert that a block moves no money and changes no state. It may store callbacks."""

    def __enter__(self) -> None:
        self.before = {**builders.money_snapshot(), "callbacks": None}

    def __exit__(self, *_: object) -> None:
        assert {**builders.money_snapshot(), "callbacks": None} == self.before


def balances(payout: Transaction) -> dict[str, Decimal]:
    """Return the balances other than zero of the accounts that a payout uses."""
    codes = [journal.PAYABLE, journal.IN_FLIGHT, journal.MPESA_UTILITY, journal.wallet(payout.user_id)]
    codes += [journal.receivable(payout.user_id), journal.CHARGE_EXPENSE]
    return {code: balance for code in codes if (balance := journal.balance(code))}
