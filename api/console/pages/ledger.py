"""Pages of the books: accounts, transfers and trial balances, with downloads as CSV files."""

from datetime import date

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.dateparse import parse_date

from api.console import downloads, page, paging
from markets.models import NAIROBI
from payments.ledger import journal, statements
from payments.ledger import trial_balance as ledger_trial_balance
from payments.models import LedgerAccount

KINDS = {
    "wallet": "Members' money in their wallets, which we owe them",
    "pool": "Stakes of markets that are not settled yet",
    "payable": "Payouts that we owe and have not sent yet",
    "in_flight": "Payouts sent to M-Pesa whose result is not known yet",
    "fee_income": "Platform fees earned",
    "opening": "Money that came from outside these books",
    "tax_payable": "Tax withheld and not yet paid to the tax authority",
    "mpesa_charges_paid": "M-Pesa's charges, taken from the float",
    "mpesa_utility": "M-Pesa float that pays the payouts",
    "mpesa_paybill": "Deposits that members paid in over M-Pesa",
    "charge_expense": "M-Pesa's charges as our expense",
    "receivable": "Money that members owe us",
    "bad_debt": "Member debts that we wrote off",
    "misdirected": "Payments that went to a member's old number",
    "suspense": "Payments that M-Pesa reports and that match no payout in these books",
}


@page.page("ledger.view")
def accounts(request: HttpRequest) -> HttpResponse:
    """List the accounts that match the search. Without a search, list the platform's accounts."""
    typed, kind = request.GET.get("q", "").replace("\x00", "")[:80], request.GET.get("kind", "")
    paged = paging.paged(request, statements.search(typed, kind if kind in KINDS else ""))
    context = {"title": "Accounts", "paged": paged, "typed": typed, "kind": kind, "kinds": KINDS}
    return page.render(request, "console/accounts.html", context)


@page.page("ledger.view")
def account(request: HttpRequest, account_id: int) -> HttpResponse:
    """Show an account's balance and its transfers, newest first."""
    account = LedgerAccount.objects.select_related("user", "market").filter(pk=account_id).first()
    if account is None:
        raise Http404("There is no such account.")
    statement = statements.statement(account, before=paging.number(request.GET.get("before", "")))
    context = {
        "title": account.code,
        "statement": statement,
        "paged": {"next": statement.next, "is_later": "before" in request.GET},
        "means": KINDS.get(account.kind, ""),
        "may_export": page.may(request, "ledger.export"),
    }
    return page.render(request, "console/account.html", context)


@page.page("ledger.view")
def trial_balance(request: HttpRequest) -> HttpResponse:
    """Show the trial balance at the end of a day, or the trial balance of now."""
    day, problem = _day(request)
    lines = ledger_trial_balance.trial_balance(day=day)
    context = {
        "title": "Trial balance",
        "day": day,
        "problem": problem,
        "lines": [(line, KINDS.get(line.kind, "")) for line in lines],
        "debits": sum((line.debits for line in lines), journal.ZERO),
        "credits": sum((line.credits for line in lines), journal.ZERO),
        "may_export": page.may(request, "ledger.export"),
    }
    return page.render(request, "console/trial_balance.html", context)


@page.page("ledger.export")
def export_account(request: HttpRequest, account_id: int) -> StreamingHttpResponse:
    """Download an account's transfers as CSV, oldest first."""
    account = LedgerAccount.objects.filter(pk=account_id).first()
    if account is None:
        raise Http404("There is no such account.")
    header = ("transfer", "at", "key", "other account", "transaction", "change", "balance")
    rows = (
        (line.id, line.at.astimezone(NAIROBI).isoformat(), line.key, line.other, line.transaction_id or "",
         line.change, line.balance)
        for line in statements.exported(account)
    )  # fmt: skip
    return downloads.csv_file(f"{account.code.replace(':', '-')}.csv", header, rows)


@page.page("ledger.export")
def export_trial_balance(request: HttpRequest) -> StreamingHttpResponse:
    """Download the trial balance as CSV."""
    day, _ = _day(request)
    lines = ledger_trial_balance.trial_balance(day=day)
    rows = ((line.kind, line.accounts, line.debits, line.credits, line.balance) for line in lines)
    header = ("kind", "accounts", "debits", "credits", "balance")
    return downloads.csv_file(f"trial-balance-{day or 'all'}.csv", header, rows)


def _day(request: HttpRequest) -> tuple[date | None, str]:
    typed = request.GET.get("day", "").strip()
    if not typed:
        return None, ""
    try:
        day = parse_date(typed)
    except ValueError:
        day = None
    if day is None or not 2000 <= day.year <= 2999:
        return None, "That is not a date. All transfers are shown. Type a date such as 2026-12-31."
    return day, ""


urls = [
    path("accounts/", accounts, name="accounts"),
    path("accounts/<int:account_id>/", account, name="account"),
    path("accounts/<int:account_id>/export/", export_account, name="account_export"),
    path("trial-balance/", trial_balance, name="trial_balance"),
    path("trial-balance/export/", export_trial_balance, name="trial_balance_export"),
]
