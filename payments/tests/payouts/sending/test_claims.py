"""Claims: due payouts, limits of the day, and the requests that are POSTed."""

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt, Settlement, Transaction
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from testing import builders, payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    KES_285,
    after,
    balances,
    booked,
    claims,
    sent,
    states,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db


TOMORROW = datetime(2026, 2, 16, 21, 5, tzinfo=UTC)  # 00:05 of 17 February in Nairobi


def transaction_ids(found: list[sending_claims.Claim]) -> list[int]:
    return [claim.transaction_id for claim in found]


def test_claim_commits_its_attempt_and_moves_money_in_flight(payout: Transaction) -> None:
    # when
    (claim,) = claims()

    # then
    attempt = payout.attempts.get()
    assert claim == sending_claims.Claim(
        attempt_id=attempt.pk,
        transaction_id=payout.pk,
        settlement_id=payout.settlement_id,
        originator_conversation_id=f"{payout.external_ref}-1",
        amount_shillings=285,
        phone_number=payout.phone_number,
        external_ref=payout.external_ref,
        token=ADDRESSES.token(f"{payout.external_ref}-1"),
        skips_queue=False,
        posted_at=AT,
    )
    assert states(payout, attempt) == ("PROCESSING", "SENDING")
    assert (attempt.posted_at, attempt.first_sent_at, attempt.next_query_at) == (AT, AT, after(20))
    assert booked(payout) == [(f"send:{attempt.pk}", "payable", "in_flight", KES_285)]
    assert balances(payout) == {"in_flight": KES_285}


def test_claimed_payout_is_not_claimed_again(payout: Transaction) -> None:
    # given
    claims()

    # then
    with nothing_moved():
        assert claims(after(100_000)) == []
        assert claims(after(100_000), transaction_id=payout.pk) == []


def test_oldest_payouts_of_a_settlement_are_claimed_first() -> None:
    # given
    market = builders.settled_market([(builders.member(), "Yes", 285) for _ in range(3)], fee_pct=0)
    third, first, second = Transaction.objects.filter(settlement__market=market).order_by("pk")
    for payout, seconds in ((third, 3), (first, 1), (second, 2)):
        Transaction.objects.filter(pk=payout.pk).update(due_at=after(seconds))

    # when
    found = [transaction_ids(claims(after(10), limit=2)), transaction_ids(claims(after(10), limit=2))]

    # then
    assert found == [[first.pk, second.pk], [third.pk]]


def test_payout_that_is_not_due_is_not_claimed(payout: Transaction) -> None:
    # given
    Transaction.objects.update(due_at=after(60))

    # then
    assert claims(after(59)) == []
    assert not sending_claims.any_due(at=after(59), policy=payout_steps.POLICY)
    assert sending_claims.any_due(at=after(60), policy=payout_steps.POLICY)
    assert transaction_ids(claims(after(60))) == [payout.pk]


@pytest.mark.parametrize("release_at", [None, after(3_600)])
def test_payout_of_an_unreleased_settlement_is_not_claimed(payout: Transaction, release_at: datetime | None) -> None:
    # given
    Settlement.objects.update(release_at=release_at)

    # then
    assert claims(after(3_599)) == []
    assert claims(after(3_599), transaction_id=payout.pk) == []
    assert not sending_claims.any_due(at=after(3_599), policy=payout_steps.POLICY)
    assert len(claims(after(3_600))) == (1 if release_at else 0)


def test_wallet_payouts_are_never_claimed() -> None:
    # given
    builders.settled_market([(builders.member(), "Yes", "9.50"), (builders.member(), "Yes", "5")], fee_pct=0)
    builders.settled_market([(builders.member(), "Yes", 500)], rule="VOID")

    # then
    assert set(Transaction.objects.values_list("destination", "type")) == {("wallet", "PAYOUT"), ("wallet", "REFUND")}
    assert claims(after(100_000)) == []


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_claim_each_payout_once() -> None:
    # given
    members = [builders.member() for _ in range(24)]
    builders.settled_market([(member, "Yes", 100) for member in members], fee_pct=0)

    # when
    found = builders.at_once(*[lambda: transaction_ids(claims(limit=10))] * 4)
    rest = transaction_ids(claims())

    # then
    claimed = Counter(pk for one in [*found, rest] for pk in one)
    assert len(claimed) == 24
    assert set(claimed.values()) == {1}
    assert Attempt.objects.count() == 24


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_claim_a_payout_by_its_id_once() -> None:
    # given
    payout = builders.payout(285)

    # when
    found = builders.at_once(*[lambda: claims(transaction_id=payout.pk)] * 6)

    # then
    assert sum(len(one) for one in found) == 1
    assert payout.attempts.count() == 1


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_claim_a_resend_once() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))

    # when
    found = builders.at_once(*[lambda: payout_steps.resends(after(30))] * 4)

    # then
    assert sum(len(one) for one in found) == 1


def test_payout_above_the_limit_of_the_day_leaves_tomorrow() -> None:
    # given
    member = builders.member()
    first, second, third = (builders.payout(amount, user=member) for amount in (250_000, 249_999, 10))
    other = builders.payout(250_000)

    # when
    today = transaction_ids(claims())

    # then
    third.refresh_from_db()
    assert today == [first.pk, second.pk, other.pk]
    assert (third.status, third.due_at) == ("PENDING", TOMORROW)
    assert third.reason == "The member reached M-Pesa's limit of the day. It leaves tomorrow."
    assert third.attempts.count() == 0
    assert claims(TOMORROW - timedelta(seconds=1)) == []
    assert transaction_ids(claims(TOMORROW)) == [third.pk]


def test_payouts_up_to_the_limit_of_the_day_leave_today() -> None:
    # given
    member = builders.member()
    for _ in range(2):
        builders.payout(250_000, user=member)

    # then
    assert len(claims()) == 2


def test_limit_counts_the_nairobi_day_without_failed_payouts() -> None:
    # given
    member = builders.member()
    before_midnight = datetime(2026, 2, 15, 20, 59, tzinfo=UTC)
    yesterday = builders.payout(250_000, user=member, at=before_midnight)
    sent(yesterday, at=before_midnight)
    refused = builders.payout(250_000, user=member)
    payout_steps.failed(refused)
    today = [builders.payout(250_000, user=member) for _ in range(2)]

    # when
    found = transaction_ids(claims(after(1)))

    # then
    assert found == [payout.pk for payout in today]
    actions.retry(transaction_id=refused.pk, by=MACHINE, at=after(2))
    assert claims(after(2)) == []
    refused.refresh_from_db()
    assert (refused.status, refused.due_at) == ("PENDING", TOMORROW)


def test_tranches_of_a_large_dividend_leave_over_days() -> None:
    # given
    member = builders.member()
    builders.settled_market([(member, "Yes", "1000003.20")], fee_pct=0)

    # when
    days = [[claim.amount_shillings for claim in claims(AT + timedelta(days=day))] for day in range(3)]

    # then
    assert days == [[250_000, 250_000], [250_000, 250_000], []]
    member.refresh_from_db()
    assert member.balance == Decimal("3.20")


def test_waiting_request_of_today_is_not_counted_twice() -> None:
    # given
    policy = builders.policy(day_limit=300_000)
    payout = builders.payout(250_000)
    sent(payout, payout_steps.NO_CONNECTION, policy=policy)

    # then
    assert transaction_ids(claims(after(15), policy)) == [payout.pk]


def test_request_has_receiver_amount_and_callback_addresses(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    gateway = payout_steps.FakeGateway()

    # when
    response = sending_claims.call(claim, gateway=gateway, addresses=ADDRESSES)

    # then
    token, reference = claim.token, payout.external_ref.replace("-", " ")
    assert response == payout_steps.ACCEPTED
    assert gateway.payments == [
        {
            "originator_conversation_id": f"{payout.external_ref}-1",
            "amount_shillings": 285,
            "phone_number": payout.phone_number,
            "remarks": f"Payout {reference}",
            "occasion": reference,
            "result_url": f"https://kasoko.app/api/payments/b2c-callback/{token}/",
            "timeout_url": f"https://kasoko.app/api/payments/b2c-timeout/{token}/",
        }
    ]


def test_log_of_a_payout_has_the_text_of_the_guide(payout: Transaction, caplog: pytest.LogCaptureFixture) -> None:
    # given
    caplog.set_level(logging.INFO, "payments.payouts")

    # when
    sent(payout)

    # then
    assert f"Initiating B2C payout for transaction {payout.pk}, amount=285" in caplog.messages
