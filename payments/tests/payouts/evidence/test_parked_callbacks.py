"""Parked callbacks: each address keeps its own messages, also if their bodies are the same."""

import pytest

from payments.models import Attempt, Callback, Orphan
from payments.payouts.evidence import callbacks, orphans
from testing.lost_commits import Loss, store, store_result, sweep
from testing.payout_steps import ACCEPTED, ADDRESSES, POLICY, after, result_body, states

pytestmark = pytest.mark.django_db
SAME_BODY = b'{"Result": {}}'


def lost() -> tuple[Loss, Attempt]:
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (attempt,) = loss.lost
    store_result(attempt, result_body(attempt), after(10))
    return loss, attempt


def test_two_orphans_keep_the_same_answer_each() -> None:
    # given
    for _ in range(2):
        lost()
    first, second = Orphan.objects.order_by("pk")

    # when: M-Pesa sends the same body to both addresses, and repeats it
    for orphan in (first, second, second):
        store("status", ADDRESSES.token(f"{orphan}?orphan"), SAME_BODY, after(20))

    # then
    kept = Callback.objects.filter(kind="status").values_list("originator_conversation_id", flat=True)
    assert sorted(kept) == sorted([str(first), str(second)])


def test_repetition_of_a_parked_result_is_stored_once_when_its_request_is_found() -> None:
    # given: the result was parked, and its request is in the books again
    loss, attempt = lost()
    payout = loss.settle()
    sweep(after(20))
    found = payout.attempts.get()

    # when
    store_result(attempt, result_body(attempt), after(30))
    sweep(after(31))

    # then
    assert Callback.objects.filter(kind="result").count() == 1
    assert states(payout, found) == ("COMPLETED", "PAID")


def test_parked_result_is_applied_beside_a_direct_copy() -> None:
    # given: the same body is stored once as parked, and once more for the request that was found meanwhile
    loss, attempt = lost()
    payout = loss.settle()
    parked = Callback.objects.get(kind="result")
    (orphan,) = Orphan.objects.all()
    orphans.place(orphan_id=orphan.pk, at=after(20), policy=POLICY, addresses=ADDRESSES)
    store_result(attempt, result_body(attempt), after(30))
    assert Callback.objects.filter(kind="result").count() == 2

    # when
    for callback in Callback.objects.filter(kind="result").order_by("-pk"):
        callbacks.apply(callback_id=callback.pk, at=after(31), policy=POLICY)

    # then
    parked.refresh_from_db()
    assert parked.applied_at == after(31)
    found = payout.attempts.get()
    assert states(payout, found) == ("COMPLETED", "PAID")
