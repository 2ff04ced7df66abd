"""Pages for the life of a market: create it, change its terms, suspend, resume, close."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils.dateparse import parse_datetime

from api.console import page, paging
from api.console.pages import proposals
from markets import lifecycle, terms, terms_proposals
from markets.models import DEFAULT_OUTCOMES, NAIROBI, Market, default_fee_pct
from payments import wiring
from payments.settlement import market_sending
from users.proposals import Proposed

REASON = page.Field("reason", "Reason", kind="area", help="It is kept in the audit trail.")


# --- create and change -----------------------------------------------------------------------------------------------


@page.page("market.create", posts=True)
def create(request: HttpRequest) -> HttpResponse:
    """Ask for the terms of a new market and create it."""
    made: list[int] = []
    question = page.Question(
        title="Create a market",
        effects=[
            "The market opens at once and takes bets until its close.",
            "Until the first bet one person may change the terms. After it a change takes two people, and members may"
            " take back their stakes.",
        ],
        fields=[*_fields(None), page.Field("category", "Category", required=False, max_length=80)],
        button="Create the market",
        back=reverse("admin:markets"),
    )

    def act(answers: dict[str, str]) -> str:
        category = answers.pop("category")
        market = lifecycle.create(draft=_draft(answers), category=category, by=page.actor(request), at=wiring.now())
        made.append(market.pk)
        return f"Market {market.pk} is open."

    return page.ask(request, question, act, done=lambda: reverse("admin:market", args=[made[0]]))


@page.page("market.change", posts=True)
def change(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for the changed terms of a market and the reason, and change them."""
    market = _market(market_id)
    in_force, has_bets = terms.of(market), terms.bets_exist(market)
    seen_version = request.POST.get("terms_version", str(market.terms_version))
    notice = wiring.policy().terms_notice
    effects = ["Nobody has bet yet, so the change holds at once."]
    if has_bets:
        hours = int(notice.total_seconds() // 3600)
        effects = [
            "Members have bet, so another person must approve the change. Betting is suspended from now on.",
            f"After the approval betting stays suspended for {hours} hours. Members are told of the differences, and"
            " may take back the stakes that they made before.",
            "The close must come after this time. Outcomes stay; an outcome can only be scratched.",
        ]
    question = page.Question(
        title=f"Change the terms of market {market.pk}",
        effects=effects,
        facts=[("Version in force", market.terms_version)],
        fields=[*_fields(in_force, has_bets=has_bets), REASON],
        button="Propose the change" if has_bets else "Change the terms",
        back=reverse("admin:market", args=[market.pk]),
        hidden={"terms_version": seen_version},
    )

    def act(answers: dict[str, str]) -> str:
        reason = answers.pop("reason")
        changed = terms_proposals.change(
            market_id=market.pk,
            draft=_draft(answers, in_force),
            seen_version=int(seen_version) if seen_version.isascii() and seen_version.isdigit() else 0,
            reason=reason,
            by=page.actor(request),
            at=wiring.now(),
            notice=notice,
        )
        if isinstance(changed, Proposed):
            return (
                f"Proposal {changed.proposal_id} waits for another person. Betting on market {market.pk} is suspended"
                " until it is approved or rejected."
            )
        if not changed.differences:
            return "These terms are in force already. Nothing was changed."
        return f"Version {changed.version} of the terms is in force."

    return page.ask(request, question, act)


def _fields(in_force: terms.Draft | None, *, has_bets: bool = False) -> list[page.Field]:
    """Return the fields of the terms, filled with those in force. Outcomes of a market with bets are left out."""
    close = in_force.end_date.astimezone(NAIROBI).strftime("%Y-%m-%dT%H:%M") if in_force else ""
    outcomes = page.Field(
        "outcomes",
        terms.LABELS["outcomes"],
        kind="area",
        rows=4,
        help="One in each line, in Latin letters. Members must be able to tell them apart.",
        value="\n".join(in_force.outcomes if in_force else DEFAULT_OUTCOMES),
        max_length=terms.MOST_OUTCOMES * (terms.LONGEST_OUTCOME + 2),
    )
    fields = [
        page.Field("question", terms.LABELS["question"], value=in_force.question if in_force else "", max_length=500),
        page.Field(
            "end_date",
            "Close (Nairobi time)",
            kind="datetime-local",
            help="The market takes bets until this moment. The clock closes it.",
            value=close,
            max_length=40,
        ),
        page.Field(
            "platform_fee_pct",
            "Platform fee in percent of the pool",
            value=f"{in_force.platform_fee_pct if in_force else default_fee_pct()}",
            max_length=6,
        ),
        page.Field(
            "source",
            terms.LABELS["source"],
            required=False,
            help="Where the answer is read, such as a league's page. Members see it.",
            value=in_force.source if in_force else "",
            max_length=terms.LONGEST["source"],
        ),
        page.Field(
            "description",
            terms.LABELS["description"],
            kind="area",
            rows=5,
            required=False,
            help="Rules for special cases, such as a postponed match.",
            value=in_force.description if in_force else "",
            max_length=terms.LONGEST["description"],
        ),
    ]
    return fields if has_bets else [fields[0], outcomes, *fields[1:]]


def _draft(answers: dict[str, str], in_force: terms.Draft | None = None) -> terms.Draft:
    """Return the terms that a person typed. Raises: terms.BadTerms."""
    typed = answers.get("outcomes")
    outcomes = in_force.outcomes if in_force else ()
    if typed is not None:
        outcomes = tuple(line for line in typed.replace("\r\n", "\n").split("\n") if line.strip())
    return terms.Draft(
        question=answers["question"],
        outcomes=outcomes,
        platform_fee_pct=_percentage(answers["platform_fee_pct"]),
        end_date=_close(answers["end_date"], in_force),
        description=answers["description"],
        source=answers["source"],
    )


def _percentage(typed: str) -> Decimal:
    try:
        percentage = Decimal(typed)
    except InvalidOperation:
        percentage = Decimal("NaN")
    if not percentage.is_finite() or not typed.isascii():
        raise terms.BadTerms({"platform_fee_pct": "type a percentage such as 5 or 4.50."})
    return percentage


def _close(typed: str, in_force: terms.Draft | None) -> datetime:
    """Return the moment that a browser's field sent, in Nairobi time. An unchanged minute keeps its seconds."""
    try:
        moment = parse_datetime(typed)
    except ValueError:
        moment = None
    if moment is None:
        raise terms.BadTerms({"end_date": "that is not a date and time. Type one such as 2026-02-16T21:45."})
    moment = moment if moment.tzinfo else moment.replace(tzinfo=NAIROBI)
    if in_force and moment == in_force.end_date.replace(second=0, microsecond=0):
        return in_force.end_date
    return moment


# --- suspend, resume and close ---------------------------------------------------------------------------------------


@page.page("market.suspend_betting", posts=True)
def suspend_betting(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for a reason and suspend betting."""
    effects = ["From now on the market takes no bets, until a person resumes betting.", "Bets that were placed stand."]
    return _ask(
        request,
        market_id,
        title="Suspend betting",
        effects=effects,
        service=lifecycle.suspend_betting,
        done="Betting is suspended. Placed bets stand.",
    )


@page.page("market.resume_betting", posts=True)
def resume_betting(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for a reason and resume betting."""
    effects = ["From now on the market takes bets again, until its close."]
    return _ask(
        request,
        market_id,
        title="Resume betting",
        effects=effects,
        service=lifecycle.resume_betting,
        done="The market takes bets again.",
    )


@page.page("market.close", posts=True)
def close(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for a reason and close the market now."""
    effects = [
        "From now on the market takes no bets. It never opens again.",
        "Then it waits for its outcome. Bets that were placed stand.",
    ]
    return _ask(
        request,
        market_id,
        title="Close the market now",
        effects=effects,
        service=lifecycle.close,
        done="The market is closed and waits for its outcome.",
        danger=True,
    )


@page.page("market.suspend_sending", posts=True)
def suspend_sending(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for a reason and suspend the sending of one market's payouts."""
    effects = [
        "From now on no payout of this market is sent, until a person resumes it. Other markets go on.",
        "Requests that M-Pesa already has cannot be taken back. Their results are still booked.",
    ]
    return _ask(
        request,
        market_id,
        title="Suspend sending",
        effects=effects,
        service=market_sending.suspend,
        done="No payout of this market is sent until a person resumes it.",
    )


@page.page("market.resume_sending", posts=True)
def resume_sending(request: HttpRequest, market_id: int) -> HttpResponse:
    """Ask for a reason and resume the sending of one market's payouts."""
    waiting = market_sending.waiting_sum(market_id)
    return _ask(
        request,
        market_id,
        title="Resume sending",
        effects=[
            "From now on the due payouts of this market are sent, at the usual pace.",
            *proposals.second_approval(request, market_sending.RESUME, waiting),
        ],
        service=market_sending.resume,
        done="The payouts of this market are sent again.",
    )


def _ask(
    request: HttpRequest,
    market_id: int,
    *,
    title: str,
    effects: list[str],
    service: Callable[..., object],
    done: str,
    danger: bool = False,
) -> HttpResponse:
    """Ask for a reason, and call a service with the market and the reason."""
    market = _market(market_id)
    question = page.Question(
        title=f"{title}: market {market.pk}",
        effects=effects,
        facts=[("Market", market.question)],
        fields=[REASON],
        button=title,
        danger=danger,
        back=reverse("admin:market", args=[market.pk]),
    )

    def act(answers: dict[str, str]) -> str:
        result = service(market_id=market.pk, reason=answers["reason"], by=page.actor(request), at=wiring.now())
        if isinstance(result, Proposed):
            return proposals.sent_to_another_person(result)
        wiring.after_approval(result)
        return done

    return page.ask(request, question, act)


def _market(market_id: int) -> Market:
    market = Market.objects.filter(pk=market_id).first() if market_id <= paging.LARGEST_ID else None
    if market is None:
        raise Http404(f"There is no market {market_id}.")
    return market


urls = [
    path("markets/create/", create, name="market_create"),
    path("markets/<int:market_id>/change/", change, name="market_change"),
    path("markets/<int:market_id>/suspend-betting/", suspend_betting, name="market_suspend_betting"),
    path("markets/<int:market_id>/resume-betting/", resume_betting, name="market_resume_betting"),
    path("markets/<int:market_id>/close/", close, name="market_close"),
    path("markets/<int:market_id>/suspend-sending/", suspend_sending, name="market_suspend_sending"),
    path("markets/<int:market_id>/resume-sending/", resume_sending, name="market_resume_sending"),
]
