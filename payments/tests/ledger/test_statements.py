"""Account statements: running balances, pages, and the search for accounts."""

from datetime import datetime

import pytest

from payments.ledger import journal, statements
from payments.models import LedgerAccount
from testing import console_scenes
from testing.builders import bet, market, member, payout


def test_statement_runs_back_from_todays_balance_across_pages(
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
    assert second.next is None
    assert second.balance == 400
    assert [line.balance for line in statements.exported(wallet)] == [1_000, 900, 700, 400]


def test_account_that_grows_by_debit_is_read_from_its_side(db: None, at: datetime) -> None:
    console_scenes.pay(payout(300, at=at), at, "SKG7ABC001")
    charges = LedgerAccount.objects.get(code="charge_expense")
    (line,) = statements.statement(charges).lines
    assert line.change == line.balance == journal.balance("charge_expense") > 0
    assert line.other == "mpesa_charges_paid"


def test_accounts_are_found_by_code_phone_number_or_kind(db: None) -> None:
    user, on = member(balance=10, phone_number="0712345678"), market()
    bet(on, user, "Yes", 5)
    for typed in (f"wallet:{user.pk}", f"WALLET:{user.pk}", "0712345678"):
        assert [account.code for account in statements.search(typed)] == [f"wallet:{user.pk}"]
    assert f"pool:{on.pk}" in {account.code for account in statements.search(str(on.pk))}
    assert {account.code for account in statements.search("")} == {"opening"}
    assert {account.code for account in statements.search("", "pool")} == {f"pool:{on.pk}"}
    assert list(statements.search("nothing")) == []
