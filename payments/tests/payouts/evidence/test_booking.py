"""Booking of payments: bulk and single booking lead to the same books and states."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import pytest
from django.db import transaction

from payments.ledger import journal
from payments.models import (
    Attempt,
    Breaker,
    Callback,
    StatusQuery,
    Transaction,
    Transfer,
)
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.sending import responses
from testing import builders, payout_steps
from testing.builders import (
    at_once,
    transfers,
)
from testing.payout_steps import (
    ADDRESSES,
    POLICY,
    READ_TIMEOUT,
    after,
    ask_and_answer,
    deliver_result,
    result_body,
    sent,
    status_body,
)
from users.models import CustomUser

pytestmark = pytest.mark.django_db

POLICIES = tuple(builders.policy(production=production) for production in (False, True))
MODELS = (Attempt, Breaker, Callback, StatusQuery, Transaction)


def store(kind: str, token: str, body: bytes, trusted: bool = True) -> None:
    callbacks.store(
        kind=kind, token=token, body=body, source_ip=None, trusted=trusted, at=after(30), addresses=ADDRESSES
    )


def result(attempt: Attempt, *, trusted: bool = True, **more: Any) -> None:
    token = ADDRESSES.token(attempt.originator_conversation_id)
    store("result", token, result_body(attempt, **{"receipt": f"SKG7{attempt.pk:06}", **more}), trusted)


def everything() -> dict[str, Any]:
    """Return every column that a callback may change, with all transfers and balances."""
    state: dict[str, Any] = {model.__name__: list(model.objects.order_by("pk").values()) for model in MODELS}
    for row in state["Callback"]:
        row["body"] = bytes(row["body"])
    state["transfers"] = sorted(transfers())
    state["balances"] = list(CustomUser.objects.order_by("pk").values_list("pk", "balance"))
    return state


@contextmanager
def rolled_back() -> Any:
    """Run a block in one transaction and roll it back, although its services commit."""
    block = transaction.atomic()
    block._from_testcase = True
    with block:
        yield
        transaction.set_rollback(True)


def apply_one_by_one(policy: Any) -> None:
    for callback_id in callbacks.to_apply(after=0, limit=1_000):
        callbacks.apply(callback_id=callback_id, at=after(40), policy=policy)


def apply_in_bulk(policy: Any, random: Random) -> None:
    ids = callbacks.to_apply(after=0, limit=1_000)
    while ids:
        batch = ids[: random.choice([1, 3, 100])]
        left = callbacks.apply_paid(callback_ids=batch, at=after(40), policy=policy)
        for callback_id in left:
            callbacks.apply(callback_id=callback_id, at=after(40), policy=policy)
        ids = callbacks.to_apply(after=0, limit=1_000)


def prepare(random: Random, policy: Any) -> None:
    """Create payouts in every state that a result can meet, and store trusted and untrusted callbacks about them."""
    messages: list[Callable[[Attempt], None]] = [
        result,
        result,
        partial(result, receipt="SKG7OTHER"),
        partial(result, amount=999),
        partial(result, phone="254799999999"),
        partial(result, ocid="KASOKO-9-9-00000000-1"),
        partial(result, trusted=False),
        partial(result, without=["TransactionAmount"]),
        partial(result, without=["TransactionReceipt"]),
        partial(result, without=["ReceiverPartyPublicName"]),
        partial(result, code=2040),
        partial(result, code=1),
        partial(result, code=17),
        partial(result, result_type=1),
        lambda attempt: store("result", ADDRESSES.token(attempt.originator_conversation_id), b"no JSON"),
        lambda attempt: store("timeout", ADDRESSES.token(attempt.originator_conversation_id), b"{}"),
    ]
    attempts = []
    for number in range(random.randint(2, 6)):
        amount = random.choice([100, 285, 1_500, 60_000])
        payout = builders.payout(amount, policy=policy)
        response = random.choice(
            [
                payout_steps.ACCEPTED,
                payout_steps.ACCEPTED,
                payout_steps.READ_TIMEOUT,
                payout_steps.REJECTED,
                payout_steps.NO_CONNECTION,
                None,
            ]
        )
        if response is None:
            (claim,) = payout_steps.claims(policy=policy, transaction_id=payout.pk)
            attempts.append(Attempt.objects.get(pk=claim.attempt_id))
        else:
            attempts.append(sent(payout, response, policy=policy))
            Breaker.objects.update(opened_at=None, probe_at=None)
        if random.random() < 0.2:
            Transaction.objects.filter(pk=payout.pk, status="PROCESSING").update(status="HELD")
        if random.random() < 0.3:
            for question in status_queries.ask(at=after(25 + number), policy=policy, addresses=ADDRESSES, limit=10):
                about = Attempt.objects.get(originator_conversation_id=question.originator_conversation_id)
                status = random.choice(["Completed", "Failed", "Initiated"])
                store(
                    "status",
                    question.token,
                    status_body(about, status, receipt=f"SKG7{about.pk:06}"),
                    trusted=random.random() < 0.8,
                )
    for _ in range(random.randint(1, 12)):
        random.choice(messages)(random.choice(attempts))


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(25))
def test_bulk_and_single_application_end_the_same(seed: int) -> None:
    # given
    random = Random(seed)
    policy = random.choice(POLICIES)
    prepare(random, replace(policy, breaker_failure_share=Decimal(2)))  # Every payout leaves, whatever came before it.

    # when
    with rolled_back():
        apply_one_by_one(policy)
        single = everything()
    with rolled_back():
        apply_in_bulk(policy, random)
        bulk = everything()

    # then
    assert bulk == single


@pytest.mark.django_db
def test_plain_payments_are_booked_in_bulk(django_assert_max_num_queries: Any) -> None:
    # given
    attempts = [sent(builders.payout(amount)) for amount in (100, 285, 1_500)]
    for attempt in attempts:
        result(attempt)
    ids = callbacks.to_apply(after=0, limit=10)
    for attempt in attempts:  # Their wallets exist, as after a first payout.
        journal.open_accounts([journal.wallet(attempt.transaction.user_id)])
    journal.open_accounts([journal.MPESA_UTILITY, journal.CHARGE_EXPENSE, journal.MPESA_CHARGES_PAID])

    # when
    with django_assert_max_num_queries(12):
        left = callbacks.apply_paid(callback_ids=ids, at=after(2), policy=POLICY)

    # then
    assert left == []
    assert set(Attempt.objects.values_list("state", "transaction__status")) == {("PAID", "COMPLETED")}
    assert Callback.objects.filter(applied_at=after(2), verdict="paid").count() == 3
    assert Transfer.objects.filter(code="paid").count() == Transfer.objects.filter(code="won").count() == 3
    assert callbacks.apply_paid(callback_ids=ids, at=after(3), policy=POLICY) == []


@pytest.mark.django_db
def test_two_callbacks_of_an_attempt_in_one_batch_pay_once() -> None:
    # given
    attempt = sent(builders.payout(285))
    result(attempt)
    result(attempt, receipt="SKG7OTHER")
    first, second = callbacks.to_apply(after=0, limit=10)

    # when
    left = callbacks.apply_paid(callback_ids=[first, second], at=after(2), policy=POLICY)

    # then
    assert left == [second]
    assert len(transfers(code="paid")) == 1
    assert "second receipt" in callbacks.apply(callback_id=second, at=after(3), policy=POLICY)


@pytest.mark.django_db(transaction=True)
def test_concurrent_bulk_and_single_application_book_once() -> None:
    # given
    attempts = [sent(builders.payout(100)) for _ in range(20)]
    for attempt in attempts:
        result(attempt)
    ids = callbacks.to_apply(after=0, limit=100)

    # when
    together = partial(callbacks.apply_paid, callback_ids=ids, at=after(2), policy=POLICY)
    single = [partial(callbacks.apply, callback_id=pk, at=after(2), policy=POLICY) for pk in ids[::3]]
    answers = at_once(*[together] * 4, *single)
    together()

    # then
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert set(Attempt.objects.values_list("state", "transaction__status")) == {("PAID", "COMPLETED")}
    assert len(transfers(code="paid")) == 20
    assert callbacks.to_apply(after=0, limit=100) == []


@pytest.mark.django_db(transaction=True)
def test_concurrent_responses_and_callbacks_do_not_deadlock() -> None:
    # given
    payouts_due = [builders.payout(100) for _ in range(20)]
    claimed = payout_steps.claims(limit=20)
    for claim in claimed:
        result(Attempt.objects.get(pk=claim.attempt_id))
    ids = callbacks.to_apply(after=0, limit=100)

    # when
    acknowledge = partial(
        responses.record_all,
        [(claim, payout_steps.ACCEPTED) for claim in reversed(claimed)],
        at=after(2),
        policy=POLICY,
    )
    apply = partial(callbacks.apply_paid, callback_ids=ids, at=after(2), policy=POLICY)
    ask = partial(status_queries.ask, at=after(60), policy=POLICY, addresses=ADDRESSES, limit=20)
    answers = at_once(acknowledge, apply, ask, apply, acknowledge)
    for callback_id in callbacks.to_apply(after=0, limit=100):
        callbacks.apply(callback_id=callback_id, at=after(70), policy=POLICY)

    # then
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert len(payouts_due) == Attempt.objects.filter(state="PAID").exclude(conversation_id="").count()


@pytest.mark.parametrize(
    ("amount", "charge"),
    [(100, None), (101, "5.00"), (1_500, "5.00"), (1_501, "9.00"), (5_001, "11.00"), (20_001, "13.00")],
)
def test_payment_books_the_charge_of_the_tariff(amount: int, charge: str | None) -> None:
    # given
    payout = builders.payout(amount)
    attempt = sent(payout)

    # when
    deliver_result(attempt, result_body(attempt))

    # then
    charges = builders.transfers(code="charge")
    expected = (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", Decimal(charge or 0))
    assert charges == ([expected] if charge else [])


def test_receipt_after_the_proof_of_payment_is_stored(caplog: pytest.LogCaptureFixture) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    body = json.loads(status_body(attempt))
    parameters = body["Result"]["ResultParameters"]
    parameters["ResultParameter"] = [pair for pair in parameters["ResultParameter"] if pair["Key"] != "ReceiptNo"]
    ask_and_answer(attempt, json.dumps(body).encode(), after(30))

    # when
    deliver_result(attempt, result_body(attempt), after(33))

    # then
    attempt.refresh_from_db()
    payout.refresh_from_db()
    assert (attempt.receipt, payout.receipt) == (payout_steps.RECEIPT, payout_steps.RECEIPT)
    assert "second receipt" not in caplog.text
