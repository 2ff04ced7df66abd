"""Allocation: whole shillings leave by M-Pesa in tranches, and the rest goes to the wallet."""

from decimal import Decimal

import pytest

from markets.models import Bet
from payments.ledger import journal
from payments.models import Settlement, Transaction
from testing import builders
from testing.builders import AT, bet, member, orm_bet, policy, resolve, settle, settled_market, transfers
from testing.settlement_steps import due, opened
from users.models import CustomUser


@pytest.mark.parametrize(
    ("dividend", "by_mpesa", "to_wallet"),
    [
        ("0.01", [], "0.01"),
        ("9.99", [], "9.99"),
        ("10", [10], None),
        ("10.01", [10], "0.01"),
        ("285.37", [285], "0.37"),
        ("249999.99", [249_999], "0.99"),
        ("250000", [250_000], None),
        ("250005", [250_000], "5"),
        ("250009.99", [250_000], "9.99"),
        ("250010", [250_000, 10], None),
        ("500000.50", [250_000, 250_000], "0.50"),
        ("1200003.20", [250_000, 250_000, 250_000, 250_000, 200_003], "0.20"),
        ("10000000", [250_000] * 40, None),
    ],
)
def test_whole_shillings_leave_in_tranches_and_the_rest_goes_to_the_wallet(
    db: None, dividend: str, by_mpesa: list[int], to_wallet: str | None
) -> None:
    user = member()

    market = settled_market([(user, "Yes", dividend)], fee_pct=0)

    expected = [("mpesa", tranche, "PENDING", Decimal(amount)) for tranche, amount in enumerate(by_mpesa, start=1)]
    if to_wallet:
        expected.append(("wallet", 1, "COMPLETED", Decimal(to_wallet)))
    assert due(market) == expected
    user.refresh_from_db()
    assert user.balance == Decimal(to_wallet or 0)
    assert journal.balance("payable") == sum(by_mpesa)


def test_policy_sets_the_limits_of_mpesa(db: None) -> None:
    user = member()
    rules = policy(min_amount=100, max_amount=1_000)
    market = settled_market([(user, "Yes", "3099.99")], fee_pct=0, policy=rules)
    assert due(market) == [("mpesa", tranche, "PENDING", Decimal(1_000)) for tranche in (1, 2, 3)] + [
        ("wallet", 1, "COMPLETED", Decimal("99.99"))
    ]
    market = settled_market([(user, "Yes", 2_100)], fee_pct=0, policy=rules)
    assert [amount for _, _, _, amount in due(market)] == [1_000, 1_000, 100]


def test_wallet_policy_sends_nothing_by_mpesa(db: None) -> None:
    user, loser = member(balance=7), member()
    market = settled_market([(user, "Yes", 100), (loser, "No", 200)], policy=policy(destination="wallet"))
    paid = Transaction.objects.get()
    assert due(market) == [("wallet", 1, "COMPLETED", Decimal(285))]
    assert (paid.completed_at, paid.type) == (AT, "PAYOUT")
    assert transfers(code="wallet") == [(f"wallet:{paid.pk}", f"pool:{market.pk}", f"wallet:{user.pk}", Decimal(285))]
    user.refresh_from_db()
    assert user.balance == 292
    assert journal.balance("payable") == 0


@pytest.mark.parametrize("how", ["void", "nobody won"])
def test_refund_returns_the_whole_stake_to_the_wallet(db: None, how: str) -> None:
    # given
    first, second, outside = member(balance=100), member(balance=400), member()
    market = builders.market()
    bet(market, first, "No", "99.99")
    bet(market, second, "No", "300")
    bet(market, second, "No", "0.01")
    orm_bet(market, outside, "No", "250000.37")

    # when
    resolve(market, rule="VOID") if how == "void" else resolve(market, "Yes")
    settle(market)

    # then
    settlement = Settlement.objects.get()
    assert (settlement.refund, settlement.fee, settlement.winning_pool) == (True, 0, 0)
    assert market.status == ("VOID" if how == "void" else "SETTLED")
    assert set(Bet.objects.values_list("result", flat=True)) == {"REFUNDED"}
    assert due(market) == [("wallet", 1, "COMPLETED", Decimal(amount)) for amount in ("99.99", "300.01", "250000.37")]
    assert set(Transaction.objects.values_list("type", flat=True)) == {"REFUND"}
    assert list(CustomUser.objects.order_by("pk").values_list("balance", flat=True)) == [
        100,
        400,
        Decimal("250000.37"),
    ]
    assert transfers(code="fee") == []


def test_payout_has_the_phone_at_settlement(db: None) -> None:
    user = member(phone_number="254712345678")
    market = opened([(user, "A", 100)])
    user.phone_number = "254700000001"
    user.save()
    resolve(market, "A")
    user.phone_number = "254700000002"
    user.save()
    settle(market)

    user.phone_number = "254700000003"
    user.save()

    assert Transaction.objects.get().phone_number == "254700000002"


def test_wallet_of_a_loser_is_not_opened(db: None) -> None:
    market = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    assert sorted(code for code in _accounts()) == sorted(["fee_income", "opening", "payable", f"pool:{market.pk}"])


def _accounts() -> set[str]:
    return {code for _, debit, credit, _ in transfers() for code in (debit, credit)}
