"""Previews: the settlement books exactly the previewed figures, to the cent."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markets import parimutuel
from markets.models import Market
from payments.ledger import debt_decisions, journal, receivables
from payments.models import Callback, FloatReading, Recovery, Settlement, Transaction
from payments.mpesa import tariff
from payments.payouts import float_balance
from payments.payouts.evidence import callbacks
from payments.settlement import preview, resolutions
from payments.settlement.decision import Decision
from testing import builders
from testing.builders import AT, actor, member, nothing_moved, orm_bet, policy, resolve, settle
from testing.payout_steps import ADDRESSES, POLICY, FakeGateway, after, deliver_result, result_body, sent
from users import first_figures
from users.models import CustomUser

OUTCOMES = ("A", "B", "C")
TARIFF = first_figures.bands_of(first_figures.TARIFF)


def seen(made: Market, rule: Any = "WINNER", weights: Any = None, rules: Any = POLICY, at: Any = AT) -> preview.Preview:
    shares = {name: Decimal(weight) for name, weight in (weights if weights is not None else {"A": 100}).items()}
    return preview.preview(made, Decision(rule, shares), at=at, policy=rules)


@st.composite
def decisions(draw: st.DrawFn) -> tuple[Any, dict[str, Decimal]]:
    rule = draw(st.sampled_from(["WINNER", "WINNER", "JOINT", "SPLIT", "VOID"]))
    if rule == "VOID":
        return rule, {}
    if rule == "WINNER":
        return rule, {draw(st.sampled_from(OUTCOMES)): Decimal(100)}
    first = draw(st.integers(1, 99))
    return rule, {"A": Decimal(first), "B": Decimal(100 - first)}


STAKES = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(OUTCOMES), st.integers(1, 90_000_000), st.booleans()), max_size=12
)


def test_settlement_books_exactly_the_previewed_figures(db: None) -> None:
    # given: two of five members have debts, one of three outcomes may be scratched, and some bets are late
    users = [member() for _ in range(5)]
    for user in users[:2]:
        recoveries_of(user, Decimal("100041.17"))

    @settings(max_examples=50)
    @given(stakes=STAKES, decided=decisions(), fee_pct=st.integers(0, 30), scratched=st.booleans())
    def holds(stakes: Any, decided: Any, fee_pct: int, scratched: bool) -> None:
        rule, weights = decided
        made = builders.market(OUTCOMES, fee_pct=fee_pct)
        for who, outcome, cents, late in stakes:
            orm_bet(made, users[who], outcome, Decimal(cents) / 100, at=after(61) if late else AT)
        if scratched and "C" not in weights:
            resolutions.scratch(market_id=made.pk, outcome="C", reason="", by=actor(), at=AT, policy=POLICY)
            settle(made)
        recovered = recovered_so_far()

        # when
        made.effective_close_at = after(60)
        shown = seen(made, rule, weights)
        resolve(made, rule=rule, weights=weights, effective_close_at=after(60), at=after(100))
        settle(made, at=after(100))

        # then
        run = Settlement.objects.exclude(rule="SCRATCH").get(market=made)
        figures, members = shown.figures.division, shown.figures.members
        assert (figures.pool, figures.winning_pool, figures.fee, figures.net, figures.late_refund) == tuple(
            int(amount * 100) for amount in (run.pool, run.winning_pool, run.fee, run.net, run.late_refund)
        )
        booked = list(Transaction.objects.filter(settlement=run, type="PAYOUT"))
        by_mpesa = [row.amount for row in booked if row.destination == "mpesa"]
        assert members["by_mpesa"] == sum(by_mpesa)
        assert members["payments"] == len(by_mpesa)
        assert members["to_wallet"] == sum(row.amount for row in booked if row.destination == "wallet")
        assert shown.charges == sum(tariff.charge(amount, TARIFF) for amount in by_mpesa)
        total: dict[int, Decimal] = {}
        for row in booked:
            total[row.user_id] = total.get(row.user_id, Decimal(0)) + row.amount
        assert members["winners"] == len(total)
        largest = sorted(total.items(), key=lambda one: (-one[1], one[0]))[:10]
        assert [(one["user_id"], one["amount"]) for one in shown.largest] == largest
        assert members["kept"] == recovered_so_far() - recovered

    holds()


def recovered_so_far() -> Decimal:
    return sum(Recovery.objects.values_list("recovered", flat=True), Decimal(0))


def recoveries_of(user: CustomUser, amount: Decimal) -> None:
    """Create a debt from a double payment, and decide to set it off."""
    receivables.owe(settlement_id=None, user_id=user.pk, amount=amount, at=AT)
    journal.post(
        [journal.Entry(f"late:test{user.pk}", journal.receivable(user.pk), journal.MPESA_UTILITY, amount)], at=AT
    )
    debt_decisions.decide_set_off(recovery_id=Recovery.objects.get(user=user).pk, pct=30, by=actor(), at=AT)


def test_guides_example_is_previewed_in_words_and_figures(db: None) -> None:
    # given
    made = builders.market()
    winner = member()
    orm_bet(made, winner, "Yes", 100)
    orm_bet(made, member(), "No", 200)

    # when
    shown = seen(made, weights={"Yes": 100})

    # then
    assert shown.equation == (
        "Pool 300.00 − platform fee 15.00 (5.00 %) = 285.00; 285.00 ÷ stakes of 100.00 on Yes = 2.850000 for each"
        " shilling."
    )
    assert shown.outcomes[0]["per_shilling"] == Decimal("2.850000")
    assert (shown.charges, shown.float_needed, shown.float_available) == (5, 290, None)
    assert shown.largest == (
        {"user_id": winner.pk, "phone": shown.largest[0]["phone"], "amount": Decimal(285), "by_mpesa": Decimal(285)},
    )
    assert winner.phone_number not in str(shown)


def test_void_and_unbacked_outcome_preview_a_full_refund(db: None) -> None:
    made = builders.market()
    orm_bet(made, member(), "No", 200)

    assert seen(made, "VOID", {}).equation == "Void: every stake goes back whole, 200.00 in all, without a fee."
    nobody = seen(made, weights={"Yes": 100})
    assert nobody.figures.division.refund
    assert "Nobody backed Yes" in nobody.equation
    assert nobody.notes == ()
    assert nobody.float_needed == 0


def test_members_not_paid_as_usual_are_listed_with_the_reason(db: None) -> None:
    # given
    made = builders.market(fee_pct=0)
    small, large, suspended, debtor = member(), member(), member(is_active=False), member()
    for user, amount in ((small, 5), (large, 600_000), (suspended, 50), (debtor, 100)):
        orm_bet(made, user, "Yes", amount)
    recoveries_of(debtor, Decimal(20))

    # when
    notes = {note.reason: note for note in seen(made, weights={"Yes": 100}).notes}

    # then
    found = {reason: (note.count, note.amount, note.members[0]["user_id"]) for reason, note in notes.items()}
    assert found == {
        "below_minimum": (1, 5, small.pk),
        "day_limit": (1, 100_000, large.pk),
        "suspended": (1, 50, suspended.pk),
        "set_off": (1, 20, debtor.pk),
    }
    assert notes["day_limit"].what.endswith("The last part leaves on 17 Feb 2026 at the earliest.")
    assert not seen(made, weights={"Yes": 100}, rules=policy(destination="wallet")).figures.members["by_mpesa"]


def test_preview_moves_nothing(db: None) -> None:
    made = builders.settled_market([(member(), "Yes", 1)]) and builders.market()
    orm_bet(made, member(), "Yes", 100)
    with nothing_moved():
        for decision in preview.choices(made):
            preview.preview(made, decision, at=AT, policy=POLICY)


def test_preview_of_an_impossible_decision_is_refused(db: None) -> None:
    with pytest.raises(parimutuel.UnknownOutcome):
        seen(builders.market(), weights={"Maybe": 100})
    with pytest.raises(parimutuel.BadWeights):
        seen(builders.market(), "SPLIT", {"Yes": 60, "No": 60})


# --- the float -------------------------------------------------------------------------------------------------------


FUNDS = b'"ResultParameter": [{"Key": "B2CUtilityAccountAvailableFunds", "Value": 1234.5}, '


def test_float_comes_from_payment_results_at_intervals(db: None) -> None:
    # given
    attempts = [sent(builders.payout(285)) for _ in range(2)]
    body = result_body(attempts[0]).replace(b'"ResultParameter": [', FUNDS)

    # when
    deliver_result(attempts[0], body, after(1))

    # then
    reading = float_balance.latest()
    assert reading is not None
    assert (reading.amount, reading.read_at, reading.source) == (
        Decimal("1234.50"),
        after(1),
        "result",
    )

    # when: another payment result arrives within seconds
    again = result_body(attempts[1], receipt="SKG8").replace(b'"ResultParameter": [', FUNDS)
    deliver_result(attempts[1], again, after(2))

    # then
    assert FloatReading.objects.count() == 1


BALANCES = b"Working Account|KES|0.00|0.00|0.00|0.00&Utility Account|KES|900.00|750.25|149.75|0.00"


def balance_body(code: int = 0) -> bytes:
    return (
        b'{"Result": {"ResultType": 0, "ResultCode": %d, "ResultDesc": "ok", "OriginatorConversationID": "1-2-3",'
        b' "ConversationID": "AG_1", "TransactionID": "X", "ResultParameters": {"ResultParameter":'
        b' [{"Key": "AccountBalance", "Value": "%s"}]}}}' % (code, BALANCES)
    )


def asked(at: Any = AT) -> float_balance.BalanceQuestion:
    question = float_balance.ask(at=at, addresses=ADDRESSES)
    gateway = FakeGateway()
    gateway.ask_balance = gateway.ask_status  # type: ignore[attr-defined]
    assert float_balance.post(question, gateway=gateway, addresses=ADDRESSES)  # type: ignore[arg-type]
    assert gateway.questions[0]["result_url"].endswith(f"/api/payments/balance-result/{question.token}/")
    return question


def told(question: float_balance.BalanceQuestion, body: bytes, *, trusted: bool = True, rules: Any = POLICY) -> str:
    callbacks.store(
        kind="balance", token=question.token, body=body, source_ip=None, trusted=trusted, at=AT, addresses=ADDRESSES
    )
    ((callback_id),) = callbacks.to_apply(after=0, limit=10)
    return callbacks.apply(callback_id=callback_id, at=after(5), policy=rules)


def test_answer_to_a_balance_query_sets_the_float(db: None) -> None:
    question = asked()

    assert told(question, balance_body()) == "the Utility account holds 750.25"

    shown = seen(builders.market(), weights={"Yes": 100}, at=after(65))
    assert (shown.float_available, shown.float_at) == (Decimal("750.25"), after(5))


def test_failed_or_untrusted_balance_answer_sets_no_float(db: None) -> None:
    assert told(asked(), balance_body(26)) == "ignored: the balance query failed"
    strange = told(asked(), balance_body(), trusted=False, rules=policy(production=True))
    assert strange == "ignored: the message came from an address that is not M-Pesa's"
    assert told(asked(), b"{}").startswith("unreadable")
    assert float_balance.latest() is None


def test_answer_to_an_unknown_balance_query_is_not_stored(db: None) -> None:
    with nothing_moved(), pytest.raises(callbacks.UnknownAddress):
        callbacks.store(
            kind="balance",
            token="f" * 64,
            body=balance_body(),
            source_ip=None,
            trusted=True,
            at=AT,
            addresses=ADDRESSES,
        )
    assert not Callback.objects.exists()
