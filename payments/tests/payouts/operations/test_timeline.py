"""Finding a payout, reading its shown, and the reading side of accounts and markets."""

import json
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from markets.models import NAIROBI
from payments.ledger import journal, statements, trial_balance
from payments.models import LedgerAccount, Transaction
from payments.payouts.operations import search, timeline
from payments.settlement import market_overview
from testing import builders, console_scenes, payout_steps
from testing.builders import bet, market, member, payout, resolve, settle


def found(typed: str = "", **chosen: object) -> set[int]:
    return set(search.search(typed, **chosen).payouts.values_list("pk", flat=True))  # type: ignore[arg-type]


def test_a_payout_is_found_by_whatever_names_it(db: None, at: datetime) -> None:
    # given
    user = member(phone_number="0712345678")
    one, other = payout(285, user=user, at=at), payout(300, at=at)
    console_scenes.paid(one, at, "SKG7ABC001")

    # when, then
    for typed in (
        "0712 345 678",
        "254712345678",
        "skg7abc001",
        one.external_ref,
        f"{one.external_ref}-1",
        f"#{one.pk}",
    ):
        assert found(typed) == {one.pk}, typed
    assert found(f"market {one.settlement.market_id}") == {one.pk}
    assert found(f"m:{other.settlement.market_id}") == {other.pk}
    assert found() == {one.pk, other.pk}
    for typed in ("0799999999", "SKG7ABC999", "KASOKO-9-9-12345678", "999999", "market 999", "x" * 80):
        assert found(typed) == set(), typed
    assert "2547****678" in search.search("0712345678").understood


def test_payouts_are_narrowed_by_state_and_code(db: None, at: datetime) -> None:
    pending, failed, doubtful = payout(100, at=at), payout(200, at=at), payout(300, at=at)
    console_scenes.not_registered(failed, at)
    console_scenes.in_doubt(doubtful, at)
    assert found(state="pending") == {pending.pk}
    assert found(state="failed") == found(code="2040") == {failed.pk}
    assert found(state="in_doubt") == found(state="processing") == {doubtful.pk}
    assert found(state="held") == found(code="1") == set()
    assert found(state="nonsense") == {pending.pk, failed.pk, doubtful.pk}
    assert found(market_id=failed.settlement.market_id, state="failed") == {failed.pk}


def titles(one: Transaction) -> list[str]:
    shown = timeline.of_payout(one.pk)
    assert shown is not None
    return [event.title for event in shown.events]


def test_timeline_lists_every_event_in_order(db: None, at: datetime) -> None:
    one = payout(285, at=at)
    console_scenes.not_registered(one, at + timedelta(seconds=1))
    assert titles(one) == [
        "Payout created",
        "Transfer of KES 285.00: pool:1 → payable".replace("pool:1", f"pool:{one.settlement.market_id}"),
        "Request 1 to M-Pesa",
        "Transfer of KES 285.00: payable → in_flight",
        "Request 1 in doubt",
        "Result received",
        "Status query 1 to M-Pesa",
        "Request 1 proven not executed",
        "Answer to a status query received",
        "Transfer of KES 285.00: in_flight → payable",
    ]
    shown = timeline.of_payout(one.pk)
    assert shown is not None
    assert shown.words == (
        "It failed, and the money is still with us, owed to the member. The number is not a registered M-Pesa customer."
    )
    assert (shown.advice, shown.owed) == ("Correct the number, or pay to the wallet.", Decimal(285))
    assert timeline.of_payout(10**9) is None


def test_timeline_shows_that_mpesa_already_has_the_request(db: None, at: datetime) -> None:
    one = payout(285, at=at)
    payout_steps.sent(one, payout_steps.DUPLICATE, at)
    listed = [title for title in titles(one) if not title.startswith("Transfer of")]
    assert listed[1:] == ["Request 1 to M-Pesa", "Request 1 in doubt", "M-Pesa already has request 1"]


def test_allowed_actions_follow_the_place_of_the_money(db: None, at: datetime) -> None:
    pending, failed, doubtful, paid = (payout(amount, at=at) for amount in (100, 200, 300, 400))
    console_scenes.refused(failed, at)
    console_scenes.in_doubt(doubtful, at)
    console_scenes.paid(paid, at, "SKG7ABC001")
    held = console_scenes.held_in_doubt(500, at)

    def actions(one: Transaction) -> set[str]:
        shown = timeline.of_payout(one.pk)
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
    one = payout(285, at=at)
    if status == "paid":
        console_scenes.paid(one, at, "SKG7ABC001")
    elif status == "doubt":
        console_scenes.in_doubt(one, at)
    elif status == "sent":
        payout_steps.sent(one, at=at)
    shown = timeline.of_payout(one.pk)
    assert shown is not None and shown.words == words


def test_a_callback_is_shown_with_names_phones_and_unknown_keys_masked() -> None:
    attempt_like = {
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
    shown = timeline.redacted(json.dumps(attempt_like).encode())
    assert "JOHN" not in shown and "254712345678" not in shown and "KASOKO" not in shown
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
    assert timeline.redacted(b"\xff{") == "[2 bytes that cannot be read: not UTF-8]"


# --- accounts --------------------------------------------------------------------------------------------------------


def test_a_statement_runs_back_from_todays_balance_and_goes_on_where_a_page_ends(
    db: None, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "PAGE", 2)
    user, on = member(balance=1_000), market()
    for amount in (100, 200, 300):
        bet(on, user, "Yes", amount, at=at)
    wallet = LedgerAccount.objects.get(user=user)
    first = statements.statement(wallet)
    assert first.balance == 400
    assert [(line.change, line.balance) for line in first.lines] == [(-300, 400), (-200, 700)]
    second = statements.statement(wallet, before=first.next)
    assert [(line.change, line.balance) for line in second.lines] == [(-100, 900), (1_000, 1_000)]
    assert second.next is None and second.balance == 400
    assert [line.balance for line in statements.exported(wallet)] == [1_000, 900, 700, 400]


def test_an_account_that_grows_by_debit_is_read_from_its_side(db: None, at: datetime) -> None:
    console_scenes.paid(payout(300, at=at), at, "SKG7ABC001")
    charges = LedgerAccount.objects.get(code="charge_expense")
    (line,) = statements.statement(charges).lines
    assert line.change == line.balance == journal.balance("charge_expense") > 0
    assert line.other == "mpesa_charges_paid"


def test_accounts_are_found_by_code_phone_number_or_kind(db: None) -> None:
    user, on = member(balance=10, phone_number="0712345678"), market()
    bet(on, user, "Yes", 5)
    for typed in (f"wallet:{user.pk}", f"WALLET:{user.pk}", "0712345678"):
        assert [one.code for one in statements.search(typed)] == [f"wallet:{user.pk}"]
    assert f"pool:{on.pk}" in {one.code for one in statements.search(str(on.pk))}
    assert {one.code for one in statements.search("")} == {"opening"}
    assert {one.code for one in statements.search("", "pool")} == {f"pool:{on.pk}"}
    assert list(statements.search("nothing")) == []


def test_a_trial_balance_of_a_day_leaves_out_what_came_later(db: None, at: datetime) -> None:
    user = member()
    for place, amount in enumerate((100, 50)):
        builders.orm_bet(market(), user, "Yes", amount, at=at)
        on = user.bets.order_by("-pk")[0].market
        resolve(on, "Yes", at=at + timedelta(days=place))
        settle(on, at=at + timedelta(days=place))

    def booked(day: date | None) -> dict[str, Decimal]:
        lines = trial_balance.trial_balance(day=day)
        assert sum(line.debits for line in lines) == sum(line.credits for line in lines)
        return {line.kind: line.credits for line in lines}

    today = at.astimezone(NAIROBI).date()
    for _ in range(2):  # As they are read live, and from days that are summed.
        assert booked(today)["payable"] == 100
        assert booked(today + timedelta(days=2))["payable"] == 150
        assert booked(None)["payable"] == 150
        assert "payable" not in booked(today - timedelta(days=1))
        trial_balance.advance(keep_going=lambda: True)


# --- markets ---------------------------------------------------------------------------------------------------------


def test_pools_have_shares_and_what_a_shilling_would_bring(db: None) -> None:
    made = market(["A", "B", "C"])
    for outcome, amount in (("A", 100), ("A", 200), ("B", 100)):
        builders.orm_bet(made, member(), outcome, amount)
    assert market_overview.pools(made) == [
        market_overview.Pool("A", Decimal(300), 2, Decimal("75.0"), Decimal("1.33")),
        market_overview.Pool("B", Decimal(100), 1, Decimal("25.0"), Decimal("4.00")),
        market_overview.Pool("C", Decimal(0), 0, Decimal(0), None),
    ]


def test_the_curve_sums_up_bets_into_a_bounded_number_of_steps(db: None, at: datetime) -> None:
    made = market()
    for place in range(150):
        builders.orm_bet(made, builders.member() if place < 2 else made.bets.all()[0].user, ["Yes", "No"][place % 2],
                         10, at=at + timedelta(minutes=place))  # fmt: skip
    curve = market_overview.curve(made)
    assert len(curve.moments) == market_overview.POINTS
    assert curve.shares["Yes"][-1] == curve.shares["No"][-1] == 50.0
    assert all(abs(yes + no - 100) < 0.11 for yes, no in zip(*curve.shares.values(), strict=True))
    assert curve.moments == sorted(curve.moments)
    assert market_overview.curve(market()) == market_overview.Curve([], {"Yes": [], "No": []})


def test_progress_counts_bets_and_payouts_and_estimates_the_end(db: None, at: datetime) -> None:
    made = market(fee_pct=0)
    for place in range(4):
        builders.orm_bet(made, member(), "Yes", 100 + place)
    assert market_overview.progress(made, at=at) is None
    resolve(made, "Yes", at=at)
    begun = market_overview.progress(made, at=at)
    assert begun is not None and (begun.bets, begun.bets_done, begun.finished) == (4, 0, False)
    settle(made, at=at)
    one, *_ = Transaction.objects.filter(settlement__market=made).order_by("pk")
    console_scenes.paid(one, at, "SKG7ABC001", after=10)
    under_way = market_overview.progress(made, at=at + timedelta(seconds=20))
    assert under_way is not None
    assert (under_way.bets_done, under_way.count, under_way.amount) == (4, 4, Decimal(406))
    assert under_way.by_state["completed"] == (Decimal(100), 1) and under_way.by_state["pending"][1] == 3
    assert (under_way.per_minute, under_way.ends_at) == (1, at + timedelta(seconds=20, minutes=3))
    for place, rest in enumerate(Transaction.objects.filter(settlement__market=made, status="PENDING")):
        console_scenes.paid(rest, at, f"SKG7ABC1{place}")
    done = market_overview.progress(made, at=at + timedelta(hours=1))
    assert done is not None and done.finished and done.ends_at is None
