"""Callbacks are stored once, applied once, and only at their own address."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import transaction

from payments.models import Callback, FloatReading, StatusQuery, Transaction
from payments.payouts.evidence import callbacks
from testing import builders, payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    after,
    answer,
    booked,
    deliver_result,
    payment_transfers,
    question,
    result_body,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db


def test_repeated_callback_pays_once(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    body = result_body(attempt)
    deliver_result(attempt, body, after(1))

    # when
    outcomes = [deliver_result(attempt, body, after(2)), deliver_result(attempt, body + b"\n", after(3))]

    # then
    assert outcomes == [None, "paid already"]
    assert Callback.objects.count() == 2
    assert booked(payout) == payment_transfers(payout, attempt)


def test_applied_callback_is_not_applied_again(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved():
        outcome = callbacks.apply(callback_id=Callback.objects.get().pk, at=after(2), policy=payout_steps.POLICY)

    # then
    assert outcome == "applied already"


def test_callback_is_not_applied_inside_a_transaction(payout: Transaction) -> None:
    """A transaction around it could take a booked payment back after the answer."""
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(1))
    callback_id = Callback.objects.get().pk

    with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"):
            callbacks.apply(callback_id=callback_id, at=after(2), policy=payout_steps.POLICY)
        with pytest.raises(RuntimeError, match="durable"):
            callbacks.apply_paid(callback_ids=[callback_id], at=after(2), policy=payout_steps.POLICY)


@pytest.mark.django_db(transaction=True)
def test_concurrent_results_and_answers_pay_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    query = question(attempt, after(20))
    bodies = [result_body(attempt), result_body(attempt) + b" ", result_body(attempt) + b"\n"]

    # when
    outcomes = builders.at_once(
        *(lambda body=body: deliver_result(attempt, body, after(21)) for body in bodies),
        lambda: answer(query, status_body(attempt), after(21)),
    )

    # then
    assert sorted(outcomes) == ["paid", "paid already", "paid already", "paid already"]
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_apply_a_callback_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    token = ADDRESSES.token(attempt.originator_conversation_id)
    callbacks.store(
        kind="result",
        token=token,
        body=result_body(attempt),
        source_ip=None,
        trusted=True,
        at=after(1),
        addresses=payout_steps.ADDRESSES,
    )
    stored = Callback.objects.get().pk

    # when
    outcomes = builders.at_once(
        *[lambda: callbacks.apply(callback_id=stored, at=after(2), policy=payout_steps.POLICY)] * 4
    )

    # then
    assert sorted(outcomes) == ["applied already"] * 3 + ["paid"]
    assert booked(payout) == payment_transfers(payout, attempt)


def test_unreadable_result_raises_an_alarm_and_is_asked_about(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, b"<html>Service Unavailable</html>", after(2))

    # then
    assert outcome is not None
    assert outcome.startswith("unreadable (not JSON); in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert len(alarms()) == 1


def store(kind: str, token: str, body: bytes, *, trusted: bool = False) -> None:
    callbacks.store(
        kind=kind, token=token, body=body, source_ip=None, trusted=trusted, at=after(1), addresses=ADDRESSES
    )


@pytest.mark.parametrize("lost", [False, True])
def test_address_stores_fifty_bodies_and_mpesas_own_beyond_them(
    payout: Transaction, alarms: Callable[[], list[str]], lost: bool
) -> None:
    # given: an address of a request, or of one that the last commits before a loss have taken away
    attempt = sent(payout)
    name = "KASOKO-1-1-0a1b2c3d-1" if lost else attempt.originator_conversation_id
    bodies = [result_body(attempt, ocid=name) + b" " * number for number in range(51)]

    # when
    for body in bodies[:49]:
        store("result", ADDRESSES.token(name), body)
    assert not any("different body" in alarm for alarm in alarms())
    store("result", ADDRESSES.token(name), bodies[49])

    # then: only the 50th raises the alarm, and the 51st is refused
    assert sum("different body" in alarm for alarm in alarms()) == 1
    with pytest.raises(callbacks.TooManyBodies):
        store("result", ADDRESSES.token(name), bodies[50])
    store("result", ADDRESSES.token(name), bodies[50], trusted=True)
    assert Callback.objects.count() == 51


def test_limit_of_a_lost_request_is_its_own(payout: Transaction) -> None:
    attempt = sent(payout)
    first, second = "KASOKO-1-1-0a1b2c3d-1", "KASOKO-1-1-0a1b2c3d-2"
    for number in range(50):
        store("result", ADDRESSES.token(first), result_body(attempt, ocid=first) + b" " * number)
    store("result", ADDRESSES.token(second), result_body(attempt, ocid=second))
    assert Callback.objects.filter(originator_conversation_id=second).count() == 1


@pytest.mark.parametrize("kind", Callback.Kind.values)
def test_unknown_address_is_refused_although_others_are_known(payout: Transaction, kind: str) -> None:
    question(sent(payout), after(20))
    FloatReading.objects.create(source="balance", token_hash="0" * 64, asked_at=after(1))
    with pytest.raises(callbacks.UnknownAddress):
        store(kind, "unknown", b'{"Result": {}}')
    assert not Callback.objects.exists()


def test_address_refuses_callbacks_of_another_kind(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))
    own = ADDRESSES.token(attempt.originator_conversation_id)

    # then
    for kind, token in (("result", query.token), ("status", own), ("result", "0" * 64), ("timeout", "0" * 64)):
        with nothing_moved(), pytest.raises(callbacks.UnknownAddress):
            payout_steps.deliver(kind, token, result_body(attempt), after(21))
    assert StatusQuery.objects.get().asked_at - timedelta(seconds=20) == AT
