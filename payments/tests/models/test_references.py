"""References and ids of requests that M-Pesa cannot take are refused by PostgreSQL."""

import pytest
from django.db import IntegrityError, transaction

from payments.models import Attempt, Transaction
from testing import builders, payout_steps

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("reference", ["", "KASOKO-1-1-" + "0" * 22, "KASOKO_1", "KASOKO 1", "KASOKO-é"])
def test_reference_that_mpesa_cannot_take_is_refused(reference: str) -> None:
    payout = builders.payout(285)
    row = {"user": payout.user, "type": "PAYOUT", "amount": 1, "destination": "mpesa", "due_at": builders.AT}
    with pytest.raises(IntegrityError, match="reference_fits_mpesa"), transaction.atomic():
        Transaction.objects.create(**row, external_ref=reference, phone_number=payout.phone_number, tranche=9)


@pytest.mark.parametrize("request_id", ["", "KASOKO_1-1", "KASOKO-1-1-\n"])
def test_request_id_that_mpesa_cannot_take_is_refused(request_id: str) -> None:
    payout = builders.payout(285)
    payout_steps.failed(payout)
    row = {"amount": 285, "phone_number": payout.phone_number, "opened_at": builders.AT, "token_hash": "x"}
    with pytest.raises(IntegrityError, match="request_id_fits_mpesa"), transaction.atomic():
        Attempt.objects.create(transaction=payout, number=9, originator_conversation_id=request_id, **row)


def test_longest_reference_leaves_room_for_three_digits() -> None:
    assert 32 + len("-999") == Attempt._meta.get_field("originator_conversation_id").max_length
