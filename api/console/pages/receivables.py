"""Pages of member debts: the list, set-off, write-off, and the cost of undone settlements.

A member owes us money after an undo or after a double payment.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page, paging
from api.console.pages import proposals
from api.console.templatetags.console import counted, kes
from payments import wiring
from payments.ledger import debt_decisions, journal, receivables
from payments.models import Recovery
from users import phone
from users.models import CustomUser, Proposal
from users.proposals import Proposed
from users.refusal import Refusal


class NotAPercentage(Refusal):
    """The typed percentage is not a whole number from 1 to 100."""


# A pair for each debt: its id, and the shillings still owed.
Owing: TypeAlias = list[tuple[int, Decimal]]
TABS = {"": "Still owed", "open": "To decide", "set_off": "Set off", "written_off": "Written off", "all": "All"}


@page.page("ledger.view")
def recoveries(request: HttpRequest) -> HttpResponse:
    """List the member debts of one market, or of all markets."""
    tab, market_id = request.GET.get("show", ""), paging.number(request.GET.get("market", ""))
    debts = _debts(market_id)
    if tab in ("", "open"):
        debts = debts.filter(amount__gt=F("recovered") + F("written_off"))
    if tab in ("open", "set_off", "written_off"):
        debts = debts.filter(decision=tab.upper())
    context = {
        "title": "Member debts",
        "paged": paging.paged(request, debts),
        "tabs": TABS,
        "tab": tab if tab in TABS else "",
        "market_id": market_id,
        "owed": receivables.still_owed(market_id),
        "may_decide": page.may(request, "recovery.set_off"),
        "proposed": Proposal.objects.filter(
            state=Proposal.State.OPEN, act__in=[debt_decisions.SET_OFF, debt_decisions.WRITE_OFF]
        )
        .select_related("proposed_by")
        .order_by("pk")[:20],
        "may_members": page.may(request, "members.view"),
    }
    return page.render(request, "console/member_debts.html", context)


@page.page("ledger.view")
def costs(request: HttpRequest) -> HttpResponse:
    """Show the cost of undone settlements by market, and by the operator who resolved the market."""
    by_market, by_operator = receivables.undo_costs()
    people = CustomUser.objects.in_bulk([cost.user_id for cost in by_operator if cost.user_id is not None])
    context = {
        "title": "Cost of undone settlements",
        "by_market": by_market,
        "by_operator": [(people.get(cost.user_id or 0), cost) for cost in by_operator],
    }
    return page.render(request, "console/undo_costs.html", context)


# --- decisions -------------------------------------------------------------------------------------------------------


@page.page("recovery.set_off", posts=True)
def set_off(request: HttpRequest, recovery_id: int) -> HttpResponseBase:
    """Set one debt off against later dividends."""
    return _set_off(request, recovery_id=recovery_id)


@page.page("recovery.write_off", posts=True)
def write_off(request: HttpRequest, recovery_id: int) -> HttpResponseBase:
    """Write one debt off."""
    return _write_off(request, recovery_id=recovery_id)


@page.page("recovery.set_off", posts=True)
def set_off_market(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Set all debts of a market off against later dividends."""
    return _set_off(request, market_id=market_id)


@page.page("recovery.write_off", posts=True)
def write_off_market(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Write all debts of a market off."""
    return _write_off(request, market_id=market_id)


@dataclass(frozen=True)
class _Wording:
    """The act and the texts of a decision's form. `text_to_type` is "" if the person need not type a word."""

    act_name: str
    title: str
    effects: list[str]
    field: page.Field
    text_to_type: str = ""


def _set_off(request: HttpRequest, **subject: int) -> HttpResponseBase:
    owing = _owing(**subject)
    wording = _Wording(
        act_name=debt_decisions.SET_OFF,
        title="Set off against later dividends",
        effects=[
            f"{_owes_in_words(owing)} {kes(_sum(owing))}.",
            "We keep at most this percentage of each later dividend, until the debt is paid.",
            "Nothing is taken from a wallet now. We keep nothing of a refund. The member sees each kept amount.",
        ],
        field=page.Field("pct", "Largest percentage of each later dividend (1 to 100)", max_length=3),
    )

    def act(answers: dict[str, str]) -> str:
        typed = paging.number(answers["pct"])
        if typed is None or typed > 100:
            raise NotAPercentage("The percentage must be a whole number from 1 to 100. Nothing was done.")
        decided = debt_decisions.decide_set_off(
            **subject, pct=typed, by=page.actor(request), at=wiring.now(), expected=request.POST.get("seen", "")
        )
        if isinstance(decided, Proposed):
            return proposals.sent_to_another_person(decided)
        return f"Up to {typed} % of each later dividend is kept, for {counted(len(decided), 'debt')}."

    return _decide(request, owing, subject, wording, act)


def _write_off(request: HttpRequest, **subject: int) -> HttpResponseBase:
    owing = _owing(**subject)
    wording = _Wording(
        act_name=debt_decisions.WRITE_OFF,
        title="Write off",
        effects=[
            f"{_owes_in_words(owing)} {kes(_sum(owing))}. We bear this loss: it becomes bad debt in our books.",
            "The member keeps the money and owes nothing more.",
            "A write-off is final. If it is proven later that M-Pesa did not make a payment, its amount is taken off"
            " our loss.",
        ],
        field=page.Field("reason", "Reason", kind="area", help="Shown on the debt and in the audit trail."),
        text_to_type="write off",
    )

    def act(answers: dict[str, str]) -> str:
        decided = debt_decisions.write_off(
            **subject, reason=answers["reason"], by=page.actor(request), at=wiring.now(),
            expected=request.POST.get("seen", ""),
        )  # fmt: skip
        if isinstance(decided, Proposed):
            return proposals.sent_to_another_person(decided)
        return f"We wrote off {counted(len(decided), 'debt')}, {kes(_sum(owing))} in total."

    return _decide(request, owing, subject, wording, act)


def _decide(
    request: HttpRequest, owing: Owing, subject: dict[str, int], wording: _Wording, act: page.CarryOut
) -> HttpResponse:
    facts: list[tuple[str, Any]] = []
    second = proposals.second_approval(request, wording.act_name, _sum(owing))
    market_id = subject.get("market_id")
    if "recovery_id" in subject:
        debt = _debts(None).get(pk=subject["recovery_id"])
        market_id = debt.settlement.market_id if debt.settlement else None
        facts.append(("Member", f"{debt.user.full_name or debt.user_id} · {phone.masked(debt.user.phone_number)}"))
    facts.append(("Market", market_id or "none: a double payment"))
    question = page.Question(
        title=wording.title,
        effects=[*wording.effects, *second],
        button="Propose it" if second else wording.title,
        back=reverse("admin:recoveries") + (f"?market={market_id}" if market_id else ""),
        facts=facts,
        fields=[wording.field],
        text_to_type=wording.text_to_type,
        danger=bool(wording.text_to_type),
        hidden={"seen": debt_decisions.fingerprint(owing)},
    )
    return page.ask(request, question, act)


def _owes_in_words(owing: Owing) -> str:
    return "The member owes" if len(owing) == 1 else f"{counted(len(owing), 'debt')} sum to"


def _sum(owing: Owing) -> Decimal:
    return sum((owed for _, owed in owing), journal.ZERO)


# --- queries ---------------------------------------------------------------------------------------------------------


def _debts(market_id: int | None) -> QuerySet[Recovery]:
    debts = Recovery.objects.select_related("user", "settlement", "decided_by")
    return debts if market_id is None else debts.filter(settlement__market=market_id)


def _owing(**subject: int) -> Owing:
    """Return the open debts of a market, or one open debt by its id. Some money is still owed on an open debt.

    Raises: Http404, if nothing is owed any more.
    """
    owing = receivables.owing(**{name: min(number, paging.LARGEST_ID) for name, number in subject.items()})
    if not owing:
        raise Http404("No debt is left here: it was recovered or written off.")
    return owing


urls = [
    path("recoveries/", recoveries, name="recoveries"),
    path("recoveries/costs/", costs, name="undo_costs"),
    path("recoveries/<int:recovery_id>/set-off/", set_off, name="recovery_set_off"),
    path("recoveries/<int:recovery_id>/write-off/", write_off, name="recovery_write_off"),
    path("markets/<int:market_id>/recoveries/set-off/", set_off_market, name="market_set_off"),
    path("markets/<int:market_id>/recoveries/write-off/", write_off_market, name="market_write_off"),
]
