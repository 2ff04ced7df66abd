"""Every body of `testing/shapes.jsonl` that M-Pesa posts to us is stored, applied, and changes the books as it must."""

from datetime import timedelta

import pytest

from payments.models import Attempt, Breaker, Callback, FloatReading, Transaction
from payments.mpesa.callback_urls import token_hash
from payments.payouts import float_balance
from payments.payouts.evidence import callbacks
from testing import builders, shapes
from testing.builders import AT
from testing.payout_steps import ADDRESSES, POLICY, after, answer, deliver, deliver_result, question, sent, states
from testing.shapes import Shape, of_kind

pytestmark = pytest.mark.django_db


@pytest.fixture
def payout() -> Transaction:
    """The payout that the shapes are about."""
    return builders.payout(shapes.AMOUNT, user=builders.member(phone_number=shapes.PHONE))


@pytest.fixture
def attempt(payout: Transaction) -> Attempt:
    return sent(payout)


def about(attempt: Attempt, shape: Shape) -> bytes:
    """Return the body of a shape with the id of this attempt."""
    return shape.body.replace(shapes.OCID.encode(), attempt.originator_conversation_id.encode())


@pytest.mark.parametrize("shape", of_kind("b2c_result"), ids=str)
def test_result_pays_or_is_asked_about(payout: Transaction, attempt: Attempt, shape: Shape) -> None:
    # given
    before = builders.transfers()

    # when
    deliver_result(attempt, about(attempt, shape), after(5))

    # then
    state = states(payout, attempt)
    if shape.means["paid"]:
        assert state == ("COMPLETED", "PAID")
        assert attempt.receipt == shapes.RECEIPT
    else:
        assert builders.transfers() == before
        assert state[0] == "HELD" or (
            state[0] == "PROCESSING" and attempt.next_query_at <= after(5) + POLICY.query_after
        )


@pytest.mark.parametrize("shape", of_kind("b2c_timeout"), ids=str)
def test_timeout_leaves_the_payout_in_doubt(payout: Transaction, attempt: Attempt, shape: Shape) -> None:
    # when
    deliver(Callback.Kind.TIMEOUT, ADDRESSES.token(attempt.originator_conversation_id), about(attempt, shape), after(5))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


@pytest.mark.parametrize("shape", of_kind("status_answer"), ids=str)
def test_status_answer_pays_only_what_it_names(payout: Transaction, attempt: Attempt, shape: Shape) -> None:
    # given
    asked = question(attempt, after(20))

    # when
    answer(asked, about(attempt, shape), after(21))

    # then
    state = states(payout, attempt)
    if shape.means["payment"] == "completed" and not shape.means.get("thin"):
        assert state == ("COMPLETED", "PAID")
    else:
        assert state[0] == ("HELD" if shape.means["payment"] == "reversed" else "PROCESSING")
        assert state[1] in ("ACCEPTED", "IN_DOUBT")
    opened = list(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))
    assert opened == (["credentials"] if shape.means.get("fault") == "ours" else [])


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("shape", of_kind("balance_answer"), ids=str)
def test_balance_answer_is_noted_and_a_refused_initiator_pauses_sending(shape: Shape, trusted: bool) -> None:
    # given
    asked = float_balance.ask(at=AT, addresses=ADDRESSES)
    callbacks.store(
        kind=Callback.Kind.BALANCE,
        token=asked.token,
        body=shape.body,
        source_ip=None,
        trusted=trusted,
        at=after(1),
        addresses=ADDRESSES,
    )
    stored = Callback.objects.get(reading__token_hash=token_hash(asked.token))

    # when
    callbacks.apply(callback_id=stored.pk, at=AT + timedelta(seconds=2), policy=builders.policy(production=True))

    # then
    utility = shape.means["utility"] if trusted else None
    amount = FloatReading.objects.values_list("amount", flat=True).get()
    assert (amount is not None and f"{amount:.2f}") == (utility or False)
    opened = list(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))
    assert opened == (["credentials"] if trusted and shape.means.get("fault") == "ours" else [])
