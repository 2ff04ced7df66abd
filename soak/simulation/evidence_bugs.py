"""Planted bugs in reading evidence, which is callbacks and answers to status queries."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import transaction

from payments.models import Attempt, StatusQuery, Transaction
from payments.mpesa import message_fields, messages, result_codes
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts
from payments.payouts.evidence import applying, booking, callbacks, records, rules
from payments.policy import Policy
from soak.simulation.planting import (
    LIKELY_FORGERIES,
    LIKELY_RESENDS,
    NO_ATTEMPT_GUARD,
    NO_PAYOUT_GUARD,
    Catalogue,
    disable_guards,
    instead_of,
)
from soak.simulation.world import World

BUGS = Catalogue()
State = Attempt.State
Result = messages.Result


def failing_on_result(reads_as_failure: Callable[[Result], bool]) -> AbstractContextManager[None]:
    """Mark the attempt as failed at once if `reads_as_failure` returns True for its result."""
    original = applying.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        outcome = original(attempt_id, result, trusted=trusted, at=at, policy=policy)
        if reads_as_failure(result):
            fail_if_open(attempt_id, result.result_desc, at, policy)
        return outcome

    return instead_of(applying, "apply_result", apply_result)


def failing_on_status(payment_status: str) -> AbstractContextManager[None]:
    """Mark the attempt as failed after one answer with this payment status."""
    original = applying.apply_status_answer

    def apply_status_answer(
        query_id: int, answer: messages.StatusAnswer, *, trusted: bool, at: datetime, policy: Policy
    ) -> str:
        outcome = original(query_id, answer, trusted=trusted, at=at, policy=policy)
        if answer.payment_status == payment_status:
            fail_if_open(StatusQuery.objects.get(pk=query_id).attempt_id, payment_status, at, policy)
        return outcome

    return instead_of(applying, "apply_status_answer", apply_status_answer)


def fail_if_open(attempt_id: int, words: str, at: datetime, policy: Policy) -> None:
    """Mark an open attempt as failed, without any proof of failure."""
    with transaction.atomic():
        payout, attempt = attempts.locked(attempt_id)
        if attempt.state in Attempt.OPEN:
            attempts.fail(payout, attempt, code="", words=words, at=at, policy=policy)


def means_failure(result: Result) -> bool:
    """Return True if the result's code is on the allow-list of definite failures."""
    return result_codes.meaning(result.result_code).definite


# --- callbacks -------------------------------------------------------------------------------------------------------


@BUGS.bug(
    "code 15 as failure",
    "D4: result 15 says nothing about the first request",
    LIKELY_RESENDS | {"duplicate by result": 1.0},
)
def _(world: World) -> Iterator[None]:
    with failing_on_result(lambda result: result.result_code == "15"):
        yield


@BUGS.bug("unknown code as failure", "D4: the definite codes are an allow-list", {"unknown code": 0.4})
def _(world: World) -> Iterator[None]:
    doubtful = ("0", "15")
    with failing_on_result(lambda result: not means_failure(result) and result.result_code not in doubtful):
        yield


@BUGS.bug("unconfirmed failure", "D4: one callback alone never proves a failure", LIKELY_FORGERIES)
def _(world: World) -> Iterator[None]:
    with failing_on_result(means_failure):
        yield


@BUGS.bug("queue timeout as failure", "D4: a queue timeout proves nothing", {"queue timeout, executed": 0.4})
def _(world: World) -> Iterator[None]:
    original = applying.apply_timeout

    def apply_timeout(attempt_id: int, *, at: datetime, policy: Policy) -> str:
        outcome = original(attempt_id, at=at, policy=policy)
        fail_if_open(attempt_id, "queue timeout", at, policy)
        return outcome

    with instead_of(applying, "apply_timeout", apply_timeout):
        yield


@BUGS.bug(
    "a paid payout failed by a late callback", "D4: proof of payment always outweighs a failure", LIKELY_FORGERIES
)
def _(world: World) -> Iterator[None]:
    original = applying.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        outcome = original(attempt_id, result, trusted=trusted, at=at, policy=policy)
        if not result.says_paid and Attempt.objects.filter(pk=attempt_id, state=State.PAID).update(state=State.FAILED):
            Transaction.objects.filter(attempts=attempt_id).update(status=Transaction.Status.FAILED)
        return outcome

    disable_guards(NO_ATTEMPT_GUARD, NO_PAYOUT_GUARD)
    with instead_of(applying, "apply_result", apply_result):
        yield


@BUGS.bug(
    "late success dropped",
    "D4: a late success is booked, never dropped",
    {"false failed answer": 1.0, "result late": 0.5},
    seed=4,
)
def _(world: World) -> Iterator[None]:
    original = booking.pay

    def pay(payout: Transaction, attempt: Attempt, **more: Any) -> str:
        return "failed already" if attempt.state == State.FAILED else original(payout, attempt, **more)

    with instead_of(booking, "pay", pay):
        yield


@BUGS.bug("callback trusted without token", "D4: each request has an address of its own", LIKELY_FORGERIES)
def _(world: World) -> Iterator[None]:
    original = callbacks.store

    def store(*, kind: str, token: str, body: bytes, addresses: Addresses, **more: Any) -> None:
        if kind == "result":
            token = addresses.token(messages.parse_result(body).originator_conversation_id or "")
        original(kind=kind, token=token, body=body, addresses=addresses, **more)

    with instead_of(callbacks, "store", store):
        yield


@BUGS.bug(
    "amount not compared", "D4: a result proves only the payment of an attempt with the same amount", LIKELY_FORGERIES
)
def _(world: World) -> Iterator[None]:
    original = applying.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        amount = Attempt.objects.get(pk=attempt_id).amount
        pairs = tuple((key, amount if key == "TransactionAmount" else value) for key, value in result.parameters.pairs)
        matching = replace(result, parameters=message_fields.Parameters(pairs))
        return original(attempt_id, matching, trusted=trusted, at=at, policy=policy)

    with instead_of(applying, "apply_result", apply_result):
        yield


@BUGS.bug(
    "large success not confirmed",
    "D4: for amounts of MPESA_CONFIRM_ABOVE or more, a status query must agree",
    LIKELY_FORGERIES,
    seed=7,
)
def _(world: World) -> Iterator[None]:
    # Only the policy of the services changes. The forger still forges payments above the usual amount.
    world.policy = replace(world.policy, confirm_above=Decimal(10**9))
    yield


@BUGS.bug(
    "foreign address trusted",
    "D4: a result from an address that is not M-Pesa's is confirmed by a status query",
    LIKELY_FORGERIES,
    seed=1,
)
def _(world: World) -> Iterator[None]:
    original = applying.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        return original(attempt_id, result, trusted=True, at=at, policy=policy)

    with instead_of(applying, "apply_result", apply_result):
        yield


@BUGS.bug("booked in bulk without comparing", "D4: bulk booking takes only results that match fully", LIKELY_FORGERIES)
def _(world: World) -> Iterator[None]:
    def is_plainly_paid(facts: records.Facts, result: Result, **_: Any) -> bool:
        return result.says_paid and facts.state in records.UNDER_WAY

    with instead_of(rules, "is_plainly_paid", is_plainly_paid):
        yield


@BUGS.bug(
    "booked in bulk while another request is open",
    "D3: a result is booked in bulk only if its payout is under way",
    LIKELY_RESENDS,
)
def _(world: World) -> Iterator[None]:
    original = rules.is_plainly_paid

    def is_plainly_paid(facts: records.Facts, result: Result, **more: Any) -> bool:
        if facts.state in ("FAILED", "PAID"):
            facts = replace(facts, state="SENDING", payout_status="PROCESSING")
        return original(facts, result, **more)

    disable_guards(NO_PAYOUT_GUARD, NO_ATTEMPT_GUARD)
    with instead_of(rules, "is_plainly_paid", is_plainly_paid):
        yield


# --- status queries --------------------------------------------------------------------------------------------------


@BUGS.bug("not-found as failure", "D4: not found never means failed", {"false not-found answer": 0.6})
def _(world: World) -> Iterator[None]:
    with failing_on_status("not_found"):
        yield


@BUGS.bug("one status answer as failure", "D4: a failure needs two sources", {"false failed answer": 0.8})
def _(world: World) -> Iterator[None]:
    with failing_on_status("failed"):
        yield


@BUGS.bug("shared query token", "D4: each query has an address of its own", LIKELY_FORGERIES, seed=2)
def _(world: World) -> Iterator[None]:
    original = Addresses.token

    def token(self: Addresses, subject: str) -> str:
        return original(self, subject.partition("?")[0])

    disable_guards("ALTER TABLE payments_statusquery DROP CONSTRAINT query_token_once")
    with instead_of(Addresses, "token", token):
        yield
