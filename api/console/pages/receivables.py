"""What members owe back after an undo or a payment that came twice, the two decisions about it, and what undos cost."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeAlias

from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import timezone

from api.console import page, paging
from payments.ledger import journal, receivables
from payments.models import Recovery
from users import phone
from users.models import CustomUser
from users.refusal import Refusal


class NotAPercentage(Refusal):
    """What was typed is no whole number from 1 to 100."""


# The ids of debts, and what is owed on each.
Owing: TypeAlias = list[tuple[int, Decimal]]
TABS = {"": "Still owed", "open": "To decide", "set_off": "Set off", "written_off": "Written off", "all": "All"}


@page.page("view_ledger")
def recoveries(request: HttpRequest) -> HttpResponse:
    tab, market_id = request.GET.get("show", ""), paging.number(request.GET.get("market", ""))
    found = _found(market_id)
    if tab in ("", "open"):
        found = found.filter(amount__gt=F("recovered") + F("written_off"))
    if tab in ("open", "set_off", "written_off"):
        found = found.filter(decision=tab.upper())
    owed = receivables.still_owed(market_id)
    context = {
        "title": "Debts of members",
        "paged": paging.paged(request, found),
        "tabs": TABS,
        "tab": tab if tab in TABS else "",
        "market_id": market_id,
        "owed": owed,
        "may_decide": page.may(request, "decide_recovery"),
        "may_members": page.may(request, "view_members"),
    }
    return page.render(request, "console/recoveries.html", context)


@page.page("view_ledger")
def costs(request: HttpRequest) -> HttpResponse:
    """What undone settlements have cost: by market, and by the operator who had resolved."""
    by_market, by_operator = receivables.undo_costs()
    people = CustomUser.objects.in_bulk([one.user_id for one in by_operator if one.user_id is not None])
    context = {
        "title": "What undos cost",
        "by_market": by_market,
        "by_operator": [(people.get(one.user_id or 0), one) for one in by_operator],
    }
    return page.render(request, "console/undo_costs.html", context)


# --- deciding --------------------------------------------------------------------------------------------------------


@page.page("decide_recovery", posts=True)
def set_off(request: HttpRequest, recovery_id: int) -> HttpResponseBase:
    return _set_off(request, recovery_id=recovery_id)


@page.page("decide_recovery", posts=True)
def write_off(request: HttpRequest, recovery_id: int) -> HttpResponseBase:
    return _write_off(request, recovery_id=recovery_id)


@page.page("decide_recovery", posts=True)
def set_off_market(request: HttpRequest, market_id: int) -> HttpResponseBase:
    return _set_off(request, market_id=market_id)


@page.page("decide_recovery", posts=True)
def write_off_market(request: HttpRequest, market_id: int) -> HttpResponseBase:
    return _write_off(request, market_id=market_id)


def _set_off(request: HttpRequest, **which: int) -> HttpResponseBase:
    owing = _owing(**which)
    will = [
        f"{_who(owing)} KES {_sum(owing):,.2f}. Of each later dividend up to the percentage you give stays with us,"
        " until nothing is owed any more; the rest is paid as always.",
        "Nothing is taken from a wallet now, and nothing of a stake that goes back. The member sees what stayed.",
    ]
    field = page.Field("pct", "Of each later dividend, at most (percent, 1 to 100)", max_length=3)

    def act(answers: dict[str, str]) -> str:
        typed = paging.number(answers["pct"])
        if typed is None or typed > 100:
            raise NotAPercentage("The percentage is a whole number from 1 to 100.")
        decided = receivables.decide_set_off(
            **which, pct=typed, by=page.actor(request), at=timezone.now(), expected=request.POST.get("seen", "")
        )
        return f"Up to {typed} % of each later dividend is kept, for {_debts(len(decided))}."

    return _decide(request, owing, which, "Set off against later dividends", will, field, "", act)


def _write_off(request: HttpRequest, **which: int) -> HttpResponseBase:
    owing = _owing(**which)
    will = [
        f"{_who(owing)} KES {_sum(owing):,.2f}. We bear that as our loss: it becomes bad debt in our books.",
        "Nothing of it is owed any more, and what was paid is kept.",
        "It is not taken back. If M-Pesa proves later that a payment of it never came, the loss is less by it.",
    ]
    field = page.Field("reason", "Why", kind="area", help="It stands on the debt and in the audit trail.")

    def act(answers: dict[str, str]) -> str:
        decided = receivables.write_off(
            **which, reason=answers["reason"], by=page.actor(request), at=timezone.now(),
            expected=request.POST.get("seen", ""),
        )  # fmt: skip
        return f"KES {_sum(owing):,.2f} of {_debts(len(decided))} is written off."

    return _decide(request, owing, which, "Write off", will, field, "write off", act)


def _decide(
    request: HttpRequest,
    owing: Owing,
    which: dict[str, int],
    title: str,
    will: list[str],
    field: page.Field,
    typed: str,
    act: Callable[[dict[str, str]], str],
) -> HttpResponse:
    facts: list[tuple[str, Any]] = []
    market_id = which.get("market_id")
    if "recovery_id" in which:
        one = _found(None).get(pk=which["recovery_id"])
        market_id = one.settlement.market_id if one.settlement else None
        facts.append(("Member", f"{one.user.full_name or one.user_id} · {phone.masked(one.user.phone_number)}"))
    facts.append(("Market", market_id or "none: a payment that came twice"))
    question = page.Question(
        title=title,
        will=will,
        button=title,
        back=reverse("admin:recoveries") + (f"?market={market_id}" if market_id else ""),
        facts=facts,
        fields=[field],
        typed=typed,
        danger=bool(typed),
        hidden={"seen": receivables.fingerprint(owing)},
    )
    return page.ask(request, question, act)


def _who(owing: Owing) -> str:
    return "The member owes" if len(owing) == 1 else f"{len(owing):,} members owe"


def _debts(count: int) -> str:
    return "1 debt" if count == 1 else f"{count:,} debts"


def _sum(owing: Owing) -> Decimal:
    return sum((owed for _, owed in owing), journal.ZERO)


# --- finding ---------------------------------------------------------------------------------------------------------


def _found(market_id: int | None) -> QuerySet[Recovery]:
    rows = Recovery.objects.select_related("user", "settlement", "decided_by")
    return rows if market_id is None else rows.filter(settlement__market=market_id)


def _owing(**which: int) -> Owing:
    found = receivables.owing(**{name: min(number, paging.LARGEST_ID) for name, number in which.items()})
    if not found:
        raise Http404("Nothing is owed there any more: it has come back, or was written off.")
    return found


urls = [
    path("recoveries/", recoveries, name="recoveries"),
    path("recoveries/costs/", costs, name="undo_costs"),
    path("recoveries/<int:recovery_id>/set-off/", set_off, name="recovery_set_off"),
    path("recoveries/<int:recovery_id>/write-off/", write_off, name="recovery_write_off"),
    path("markets/<int:market_id>/recoveries/set-off/", set_off_market, name="market_set_off"),
    path("markets/<int:market_id>/recoveries/write-off/", write_off_market, name="market_write_off"),
]
