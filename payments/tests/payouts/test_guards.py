"""Guards of sending and evidence that hold only between two workers or at an exact limit."""

import hashlib
from decimal import Decimal
from functools import partial

import pytest
from django.core.management import call_command
from django.db import transaction

from payments.models import Attempt, Breaker, Callback, StatusQuery, Transaction
from payments.mpesa.callback_urls import token_hash
from payments.payouts import breakers, float_balance
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.sending import responses
from testing import builders, interleaving, payout_steps
from testing.builders import nothing_moved, policy
from testing.payout_steps import (
    ACCEPTED,
    ADDRESSES,
    POLICY,
    READ_TIMEOUT,
    after,
    claims,
    deliver_result,
    question,
    result_body,
    sent,
    states,
)

pytestmark = pytest.mark.django_db


def stored_result(attempt: Attempt, body: bytes | None = None) -> int:
    """Store the result of an attempt without applying it, and return the callback's id."""
    body = body or result_body(attempt, receipt=f"SKG7{attempt.pk:06}")
    callbacks.store(
        kind=Callback.Kind.RESULT,
        token=ADDRESSES.token(attempt.originator_conversation_id),
        body=body,
        source_ip="196.201.214.200",
        trusted=True,
        at=after(1),
        addresses=ADDRESSES,
    )
    return Callback.objects.get(attempt=attempt, digest=hashlib.sha256(body).hexdigest()).pk


@pytest.mark.parametrize(("confirm_above", "is_booked"), [("285.00", False), ("285.01", True)])
def test_payment_of_exactly_the_limit_is_not_booked_in_bulk(confirm_above: str, is_booked: bool) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    callback_id = stored_result(attempt)

    # when
    rest = callbacks.apply_paid(
        callback_ids=[callback_id], at=after(2), policy=policy(confirm_above=Decimal(confirm_above))
    )

    # then
    assert (rest == []) == is_booked
    assert states(payout, attempt) == (("COMPLETED", "PAID") if is_booked else ("PROCESSING", "ACCEPTED"))


@pytest.mark.django_db(transaction=True)
def test_bulk_booking_skips_a_payout_that_another_worker_holds() -> None:
    # given
    busy, free = builders.payout(285), builders.payout(100)
    attempts = [sent(busy), sent(free, at=after(1))]
    ids = [stored_result(attempt) for attempt in attempts]
    apply_paid = partial(callbacks.apply_paid, callback_ids=ids, at=after(2), policy=POLICY)

    with transaction.atomic():
        # when
        Transaction.objects.select_for_update(no_key=True).get(pk=busy.pk)
        rest = builders.begin(apply_paid).result(timeout=30)

    # then
    assert rest == [ids[0]]
    assert states(busy, attempts[0]) == ("PROCESSING", "ACCEPTED")
    assert states(free, attempts[1]) == ("COMPLETED", "PAID")
    assert apply_paid() == []
    assert states(busy, attempts[0]) == ("COMPLETED", "PAID")


def test_acknowledgements_of_a_batch_close_the_breakers_on_the_way() -> None:
    # given
    for _ in range(2):
        builders.payout(285)
    with transaction.atomic():
        breakers.trip(Breaker.Cause.NETWORK, reason="Down", at=after(0), policy=POLICY)
        breakers.trip(Breaker.Cause.NO_FLOAT, reason="Empty", at=after(0), policy=POLICY)
    batch = [claim for second in (2, 30) for claim in claims(after(second))]
    assert len(batch) == 2

    # when
    responses.record_all([(claim, ACCEPTED) for claim in batch], at=after(31), policy=POLICY)

    # then
    assert list(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True)) == ["no_float"]


def test_invented_token_for_a_balance_is_refused_although_readings_exist() -> None:
    # given: a reading from a result, which has no token, and one that was asked for
    float_balance.note(Decimal(1000), at=after(0))
    float_balance.ask(at=after(1), addresses=ADDRESSES)

    # when
    with nothing_moved(), pytest.raises(callbacks.UnknownAddress):
        callbacks.store(
            kind=Callback.Kind.BALANCE,
            token="f" * 64,
            body=b'{"Result": {}}',
            source_ip=None,
            trusted=True,
            at=after(2),
            addresses=ADDRESSES,
        )

    # then
    assert not Callback.objects.exists()


def test_only_the_named_callback_is_applied() -> None:
    # given
    payouts = [builders.payout(285), builders.payout(100)]
    attempts = [sent(payout, at=after(second)) for second, payout in enumerate(payouts)]
    first, second = [stored_result(attempt) for attempt in attempts]

    # when
    callbacks.apply(callback_id=second, at=after(2), policy=POLICY)

    # then
    assert states(payouts[0], attempts[0]) == ("PROCESSING", "ACCEPTED")
    assert states(payouts[1], attempts[1]) == ("COMPLETED", "PAID")
    assert callbacks.to_apply(after=0, limit=10) == [first]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("trusted", "after_it"), [(True, ("COMPLETED", "PAID")), (False, ("PROCESSING", "IN_DOUBT"))])
def test_request_reported_paid_just_before_its_resend_does_not_go_again(
    trusted: bool, after_it: tuple[str, str]
) -> None:
    # given: a request in doubt that may be sent again
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    Attempt.objects.update(resend_at=after(30))
    report = partial(
        deliver_result, attempt, result_body(attempt), after(31), policy=payout_steps.PRODUCTION, trusted=trusted
    )

    # when: its result is applied after the resend has chosen it and before the resend locks it
    with interleaving.before_statement("FOR NO KEY UPDATE", report):
        claimed = payout_steps.resends(after(32))

    # then
    assert claimed == []
    assert states(payout, attempt) == after_it


def test_daraja_id_of_a_query_is_stored_on_that_query_alone() -> None:
    # given
    attempts = [sent(builders.payout(285), READ_TIMEOUT), sent(builders.payout(100), READ_TIMEOUT, after(2))]
    first = question(attempts[0], after(60))

    # when
    status_queries.record_put(first, "AG_20260216_9")

    # then
    assert list(StatusQuery.objects.order_by("pk").values_list("conversation_id", flat=True)) == ["AG_20260216_9", ""]
    assert StatusQuery.objects.get(conversation_id="AG_20260216_9").token_hash == token_hash(first.token)


def test_person_who_stopped_the_sending_is_recorded() -> None:
    person = builders.operator()

    breakers.switch_off(reason="A rumour", by=builders.actor(person), at=after(0))

    stop = Breaker.objects.get(cause=Breaker.Cause.SWITCH)
    assert (stop.opened_by_id, stop.reason, stop.opened_at) == (person.pk, "A rumour", after(0))
    call_command("sending", "on")


def test_payment_beyond_the_tariff_is_booked_without_a_charge(caplog: pytest.LogCaptureFixture) -> None:
    # given: our limits allow more than the tariff's last band
    payout = builders.payout(250_001, policy=policy(max_amount=300_000))
    attempt = sent(payout)

    # when
    deliver_result(attempt, result_body(attempt), policy=policy(confirm_above=Decimal(1_000_000)))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert builders.transfers(code="charge") == []
    assert "has no band for 250001" in caplog.text
