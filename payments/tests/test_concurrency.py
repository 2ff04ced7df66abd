"""Concurrency on real PostgreSQL: 64 calls at once on one wallet, market, payout, callback or key.

Each call has its own thread and connection, and all calls start together. The tests assert the exact number of calls
that succeed, and the reason for which the other calls are refused. A deadlock or a lock timeout fails the test.
"""

from collections import Counter
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.test import Client

from markets.models import Bet
from payments.ledger import journal
from payments.models import Attempt, Callback, Settlement, Transaction
from payments.payouts.evidence import callbacks
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from payments.settlement import resolutions, settling
from payments.wallet import bets as wallet_bets
from testing import builders
from testing.builders import AT, at_once, transfers
from testing.payout_steps import ADDRESSES, POLICY, after, failed, result_body, sent, states
from users.audit import MACHINE
from users.models import CustomUser

THREADS = 64
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.parametrize("repetition", range(3))]


def kinds(answers: list[Any]) -> dict[str, int]:
    """Count the answers by type. Each refusal counts under its own name, so an unexpected error shows."""
    return dict(Counter(type(answer).__name__ for answer in answers))


def place_bet(market_id: int, user_id: int, amount: int = 10, outcome: str = "Yes", key: str | None = None) -> Any:
    return wallet_bets.place(
        user_id=user_id, market_id=market_id, outcome=outcome, amount=Decimal(amount), client_ref=key, at=AT
    )


def test_bets_at_once_from_one_wallet_place_exactly_the_affordable_ones(repetition: int) -> None:
    # given: money for 40 bets and 9 shillings
    market, member = builders.market(), builders.member(409)

    # when
    answers = at_once(*[partial(place_bet, market.pk, member.pk)] * THREADS)

    # then
    assert kinds(answers) == {"Placed": 40, "InsufficientFunds": 24}
    assert CustomUser.objects.get(pk=member.pk).balance == 9
    assert journal.balance(journal.pool(market.pk)) == 400
    assert Bet.objects.count() == 40
    assert sorted(answer.balance for answer in answers if isinstance(answer, wallet_bets.Placed)) == list(
        range(9, 400, 10)
    )


def test_bets_racing_with_a_resolve_are_in_the_pool_or_refused(repetition: int) -> None:
    # given
    market, first = builders.market(), builders.member(10)
    others = [builders.member(10) for _ in range(THREADS - 1)]
    builders.bet(market, first, amount=10)

    # when
    bets = [partial(place_bet, market.pk, member.pk, outcome="No") for member in others]
    half = len(bets) // 2
    answers = at_once(*bets[:half], partial(builders.resolve, market), *bets[half:])
    builders.settle(market)

    # then
    count = kinds(answers)
    placed, refused = count.get("Placed", 0), count.get("MarketNotOpen", 0)
    assert count.pop("Resolved") == 1
    assert placed + refused == THREADS - 1
    assert Settlement.objects.get().pool == 10 + 10 * placed
    assert Bet.objects.filter(result="LOST").count() == placed
    assert Bet.objects.filter(result="PENDING").count() == 0
    assert CustomUser.objects.filter(pk__in=[member.pk for member in others], balance=10).count() == refused


def test_resolves_at_once_resolve_once(repetition: int) -> None:
    # given
    market = builders.market()
    builders.orm_bet(market, builders.member(), "Yes", 100)

    # when
    resolves = [partial(builders.resolve, market, outcome) for outcome in ("Yes", "No")] * (THREADS // 2)
    answers = at_once(*resolves)

    # then
    (won,) = [number for number, answer in enumerate(answers) if isinstance(answer, resolutions.Resolved)]
    assert kinds(answers) == {"Resolved": 1, "MarketAlreadyResolved": THREADS - 1}
    market.refresh_from_db()
    assert (market.status, market.resolved_outcome) == ("RESOLVED", ("Yes", "No")[won % 2])
    assert market.settlements.count() == 1


@pytest.mark.parametrize("chunk", [20_000, 7])
def test_settling_at_once_settles_once(repetition: int, chunk: int) -> None:
    # given: thirty winners and as many losers
    market = builders.market(fee_pct=0)
    for _ in range(30):
        builders.orm_bet(market, builders.member(), "Yes", 100)
        builders.orm_bet(market, builders.member(), "No", 50)
    builders.resolve(market)

    # when
    policy = builders.policy(settlement_chunk=chunk)
    settle = partial(settling.settle, market_id=market.pk, at=AT, policy=policy, keep_going=lambda: True)
    answers = at_once(*[settle] * THREADS)

    # then: each call that found an unsettled market settled it or saw it settled
    assert kinds(answers) == {"Progress": THREADS}
    assert all(answer.settled == answer.found for answer in answers)
    assert sum(answer.found for answer in answers) >= 1
    assert list(Settlement.objects.values_list("state", "pool", "net")) == [("SETTLED", 4500, 4500)]
    assert [amount for *_, amount in transfers(code="payout")] == [Decimal(150)] * 30
    assert Transaction.objects.filter(status="PENDING", amount=150).count() == Transaction.objects.count() == 30


def test_claims_at_once_of_one_payout_claim_it_once(repetition: int) -> None:
    # given
    payout = builders.payout(285)

    # when
    claim = partial(sending_claims.claim, at=AT, policy=POLICY, addresses=ADDRESSES, limit=10, transaction_id=payout.pk)
    answers = at_once(*[claim] * THREADS)

    # then
    assert kinds(answers) == {"list": THREADS}
    (claimed,) = [claims for claims in answers if claims]
    assert [claim.transaction_id for claim in claimed] == [payout.pk]
    assert Attempt.objects.get().state == "SENDING"
    assert len(transfers(code="send")) == 1


def test_callback_received_at_once_is_stored_once(repetition: int) -> None:
    # given
    attempt = sent(builders.payout(285))
    token, body = ADDRESSES.token(attempt.originator_conversation_id), result_body(attempt)

    # when
    store = partial(
        callbacks.store, kind="result", token=token, body=body, source_ip=None, trusted=True, at=after(1),
        addresses=ADDRESSES,
    )  # fmt: skip
    answers = at_once(*[store] * THREADS)

    # then
    assert kinds(answers) == {"NoneType": THREADS}
    assert Callback.objects.count() == 1


def test_callback_applied_at_once_is_booked_once(repetition: int) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    callbacks.store(
        kind="result", token=ADDRESSES.token(attempt.originator_conversation_id), body=result_body(attempt),
        source_ip=None, trusted=True, at=after(1), addresses=ADDRESSES,
    )  # fmt: skip

    # when
    apply = partial(callbacks.apply, callback_id=Callback.objects.get().pk, at=after(2), policy=POLICY)
    answers = at_once(*[apply] * THREADS)

    # then
    assert Counter(answers) == {"paid": 1, "applied already": THREADS - 1}
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert [(code, len(transfers(code=code))) for code in ("won", "paid")] == [("won", 1), ("paid", 1)]


def test_different_callbacks_about_one_payout_book_it_once(repetition: int) -> None:
    # given: as many different callbacks that report the same payment as an address stores
    payout = builders.payout(285)
    attempt = sent(payout)
    for number in range(callbacks.MOST_BODIES):
        callbacks.store(
            kind="result", token=ADDRESSES.token(attempt.originator_conversation_id),
            body=result_body(attempt) + b" " * number, source_ip=None, trusted=True, at=after(1), addresses=ADDRESSES,
        )  # fmt: skip

    # when
    stored = Callback.objects.values_list("pk", flat=True)
    answers = at_once(*[partial(callbacks.apply, callback_id=pk, at=after(2), policy=POLICY) for pk in stored])

    # then
    assert Counter(answers) == {"paid": 1, "paid already": callbacks.MOST_BODIES - 1}
    assert len(transfers(code="paid")) == 1


def test_retries_at_once_of_one_payout_retry_it_once(repetition: int) -> None:
    # given
    payout = builders.payout(285)
    failed(payout)

    # when
    answers = at_once(*[partial(actions.retry, transaction_id=payout.pk, by=MACHINE, at=after(60))] * THREADS)

    # then
    assert kinds(answers) == {"Transaction": 1, "PayoutNotRetryable": THREADS - 1}
    payout.refresh_from_db()
    assert payout.status == "PENDING"
    assert payout.attempts.count() == 1


def test_retries_and_redirects_at_once_of_one_payout_act_once(repetition: int) -> None:
    # given
    payout = builders.payout(285)
    failed(payout)

    # when
    calls = [
        partial(action, transaction_id=payout.pk, by=MACHINE, at=after(60))
        for action in (actions.retry, actions.redirect_to_wallet)
    ]
    answers = at_once(*calls * (THREADS // 2))

    # then
    assert kinds(answers) == {"Transaction": 1, "PayoutNotRetryable": THREADS - 1}
    payout.refresh_from_db()
    assert (payout.status, len(transfers(code="redirect"))) in (("PENDING", 0), ("COMPLETED", 1))


def test_bet_posted_at_once_under_one_key_is_placed_once(repetition: int) -> None:
    # given
    market, member = builders.market(), builders.member(1_000)
    headers = builders.bearer(member) | {"Idempotency-Key": "tap"}

    # when
    def tap() -> tuple[int, str]:
        answered = Client().post(
            f"/api/markets/{market.pk}/bets/", {"outcome": "Yes", "amount": "100"}, "application/json", headers=headers
        )
        return answered.status_code, answered.json()["bet"]["id"]

    answers = at_once(*[tap] * THREADS)

    # then
    bet = Bet.objects.get()
    assert Counter(answers) == {(201, str(bet.public_id)): 1, (200, str(bet.public_id)): THREADS - 1}
    assert CustomUser.objects.get(pk=member.pk).balance == 900
