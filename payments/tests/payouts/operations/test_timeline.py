"""The timeline of a payout, its explanation and its allowed actions."""

import json
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from payments.models import Transaction
from payments.mpesa import result_codes
from payments.payouts import breakers
from payments.payouts.operations import actions, timeline
from payments.payouts.restores import detection, procedure
from testing import builders, console_scenes, payout_steps
from testing.builders import AT


def titles(payout: Transaction) -> list[str]:
    shown = timeline.of_payout(payout.pk, at=AT, policy=builders.policy())
    assert shown is not None
    return [event.title for event in shown.events]


def test_timeline_lists_every_event_in_order(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    console_scenes.send_to_unregistered_phone(payout, at + timedelta(seconds=1))
    assert titles(payout) == [
        "Payout created",
        "Transfer of KES 285.00: pool:1 → payable".replace("pool:1", f"pool:{payout.settlement.market_id}"),
        "Request 1 to M-Pesa",
        "Transfer of KES 285.00: payable → in_flight",
        "Request 1 in doubt",
        "Result received",
        "Status query 1 to M-Pesa",
        "Request 1 proven not executed",
        "Answer to a status query received",
        "Transfer of KES 285.00: in_flight → payable",
    ]
    shown = timeline.of_payout(payout.pk, at=AT, policy=builders.policy())
    assert shown is not None
    assert shown.words == (
        "It failed, and the money is still with us, owed to the member. The number is not a registered M-Pesa customer."
    )
    assert (shown.advice, shown.owed) == (result_codes.NEW_NUMBER, Decimal(285))
    assert timeline.of_payout(10**9, at=at, policy=builders.policy()) is None


def test_timeline_shows_that_mpesa_already_has_the_request(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    payout_steps.sent(payout, payout_steps.DUPLICATE, at)
    listed = [title for title in titles(payout) if not title.startswith("Transfer of")]
    assert listed[1:] == ["Request 1 to M-Pesa", "Request 1 in doubt", "M-Pesa already has request 1"]


def test_allowed_actions_depend_on_where_the_money_is(db: None, at: datetime) -> None:
    pending, failed, doubtful, paid = (builders.payout(amount, at=at) for amount in (100, 200, 300, 400))
    console_scenes.send_and_refuse(failed, at)
    console_scenes.send_and_time_out(doubtful, at)
    console_scenes.pay(paid, at, "SKG7ABC001")
    held = console_scenes.held_in_doubt(500, at)

    def actions(payout: Transaction) -> set[str]:
        shown = timeline.of_payout(payout.pk, at=AT, policy=builders.policy())
        assert shown is not None
        return set(shown.actions)

    assert actions(pending) == {"hold", "release"}
    assert actions(failed) == {"retry", "wallet"}
    assert actions(doubtful) == {"ask"}
    assert actions(held) == {"ask", "decide"}
    assert actions(paid) == set()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("paid", "M-Pesa paid it, receipt SKG7ABC001. The money is on the member's phone."),
        ("doubt", "We do not know whether M-Pesa paid it. The money counts as in flight."),
        ("pending", "It waits to be sent, and the money is still with us."),
        ("sent", "M-Pesa has the request. The money is in flight."),
    ],
)
def test_timeline_explains_where_the_money_is(db: None, at: datetime, status: str, words: str) -> None:
    payout = builders.payout(285, at=at)
    if status == "paid":
        console_scenes.pay(payout, at, "SKG7ABC001")
    elif status == "doubt":
        console_scenes.send_and_time_out(payout, at)
    elif status == "sent":
        payout_steps.sent(payout, at=at)
    shown = timeline.of_payout(payout.pk, at=AT, policy=builders.policy())
    assert shown is not None
    assert shown.words == words


def test_redirected_payout_goes_to_the_wallet(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    console_scenes.send_and_refuse(payout, at)
    assert payout.goes_to == "mpesa"
    actions.redirect_to_wallet(transaction_id=payout.pk, by=builders.actor(), at=at)
    shown = timeline.of_payout(payout.pk, at=at, policy=builders.policy())
    assert shown is not None
    assert (shown.payout.goes_to, shown.words) == ("wallet", "The money went to the member's wallet.")


@pytest.mark.parametrize(("production", "is_foreign"), [(True, True), (False, False)])
def test_callback_of_the_simulator_is_called_foreign_in_production_only(
    db: None, at: datetime, production: bool, is_foreign: bool
) -> None:
    payout = builders.payout(285, at=at)
    attempt = payout_steps.sent(payout, at=at)
    payout_steps.deliver_result(attempt, payout_steps.result_body(attempt), at, trusted=False)
    shown = timeline.of_payout(payout.pk, at=at, policy=builders.policy(production=production))
    assert shown is not None
    (callback,) = [event for event in shown.events if event.title == "Result received"]
    assert ("not M-Pesa's" in callback.words) == is_foreign
    assert callback.tone == ("care" if is_foreign else "busy")


def test_due_payout_that_nothing_stops_is_called_late(db: None, at: datetime) -> None:
    payout = builders.payout(285, at=at)
    late = at + timedelta(minutes=1)
    shown = timeline.of_payout(payout.pk, at=late, policy=builders.policy())
    assert shown is not None
    assert shown.advice.startswith("It should have left already.")
    breakers.switch_off(reason="Odd.", by=builders.actor(), at=at)
    shown = timeline.of_payout(payout.pk, at=late, policy=builders.policy())
    assert shown is not None
    assert [wait.words for wait in shown.waits] == ["a person, who stopped all sending"]
    assert not shown.advice.startswith("It should have left already.")


def test_callback_masks_names_phones_and_unknown_keys() -> None:
    body = {
        "Result": {
            "ResultCode": 0,
            "ResultDesc": "Paid to 254712345678.",
            "Surprise": "JOHN DOE",
            "ResultParameters": {
                "ResultParameter": [
                    {"Key": "TransactionAmount", "Value": 285},
                    {"Key": "ReceiverPartyPublicName", "Value": "254712345678 - JOHN DOE"},
                    {"Key": "Debit Party Name", "Value": "600000 - KASOKO"},
                ]
            },
        }
    }
    shown = timeline.redacted(json.dumps(body).encode())
    assert "JOHN" not in shown
    assert "254712345678" not in shown
    assert "KASOKO" not in shown
    assert json.loads(shown) == {
        "Result": {
            "ResultCode": "0",
            "ResultDesc": "Paid to 2547****678.",
            "Surprise": "•••",
            "ResultParameters": {
                "ResultParameter": [
                    {"Key": "TransactionAmount", "Value": "285"},
                    {"Key": "ReceiverPartyPublicName", "Value": "•••"},
                    {"Key": "Debit Party Name", "Value": "•••"},
                ]
            },
        }
    }
    assert timeline.redacted(b"\xff{") == "[2 bytes that cannot be read: not JSON]"


def test_timeline_says_that_a_request_may_have_left_before_a_restore(db: None) -> None:
    payout = builders.payout(285)
    rules = builders.policy(payouts_a_second=Decimal(1))
    detection.report(survived_at=AT - timedelta(minutes=5), at=AT, policy=rules)
    procedure.advance(at=AT, policy=rules, addresses=payout_steps.ADDRESSES, keep_going=lambda: True)
    shown = titles(payout)
    assert "Request 1 to M-Pesa" not in shown
    assert shown.index("Payout created") < shown.index("Request 1 may have left before a restore of the database")
