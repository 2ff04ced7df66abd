"""Resolving or voiding a market, in three steps: by one winner, joint winners or a split.

First a preview side by side for every outcome; then the chosen one with its evidence; then the word is typed. What was
seen is what is done: the preview's hash goes with the form, and a number that has moved is a refusal.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from django.core.exceptions import ValidationError
from django.core.validators import URLValidator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.http import urlencode
from rest_framework.exceptions import ValidationError as BodyError

from api.console import page, paging
from api.rest import fields as rest_fields
from markets import parimutuel
from markets.models import NAIROBI, Market
from payments import wiring
from payments.settlement import preview, preview_cache, proposals, resolutions
from payments.settlement.decision import VOID_REASONS, BadCloseTime, Decision, Evidence
from users.refusal import Refusal

VOID_WORDS = {
    "cancelled": "the event was cancelled",
    "postponed": "the event was put off",
    "ambiguous": "the question has no clear answer",
    "no_result": "there was no result",
    "error": "the market was set up wrongly",
}
# What a decision's address begins with: an outcome follows, or weights, or nothing.
WINNER, JOINT, SPLIT, VOID = "win", "joint", "split", "void"
SHARES = {
    JOINT: "Joint winners: the stakes on each come back first, the rest is divided by weight",
    SPLIT: "A split: all that is left after the fee is divided by weight, and no stake is protected",
}
BUTTONS = {WINNER: "Resolve and pay", JOINT: "Resolve and pay", SPLIT: "Resolve and pay", VOID: "Void and refund"}


class NotAnAddress(Refusal):
    """What was typed as the evidence's address is none."""


# --- step one --------------------------------------------------------------------------------------------------------


@page.page("resolve_market")
def choose(request: HttpRequest, market_id: int) -> HttpResponse:
    """Step one: what each decision would do, side by side."""
    market = undecided(market_id)
    at, policy = timezone.now(), wiring.policy()
    previews = latest_previews(market, preview.choices(market), at=at)
    context = {
        "title": f"Resolve market {market.pk}",
        "market": market,
        "previews": [(_name(kept.decision), _value(kept.decision), kept) for kept in previews],
        "unknown": [kept for kept in previews if kept.preview is None],
        "moved": [kept for kept in previews if not kept.current],
        "oldest": min((kept.at for kept in previews if kept.at is not None), default=None),
        "float": next((kept.preview for kept in previews if kept.preview is not None), None),
        "approval_above": policy.approval_above,
        "stake_of_mine": market.bets.filter(user=request.user.pk).exists(),
        "early": market.end_date > at,
    }
    return page.render(request, "console/resolve.html", context)


@page.page("resolve_market")
def share(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Step one for several winners: the weight of each, which leads on to step two."""
    market = undecided(market_id)
    running = market.running_outcomes
    kind = request.GET.get("kind", JOINT)
    typed = [request.GET.get(f"weight_{place}", "").strip()[:20] for place in range(len(running))]
    problem = ""
    if any(typed):
        weights = {outcome: weight for outcome, weight in zip(running, typed, strict=True) if weight}
        try:
            parsed = rest_fields.Weights().run_validation(weights)
            parimutuel.check_weights("JOINT", parsed, running)
        except BodyError:
            problem = "A weight is a percentage such as 50 or 33.3, of four decimals at most."
        except parimutuel.BadWeights as refusal:
            problem = str(refusal)
        else:
            if kind in SHARES and len(parsed) > 1:
                asked = urlencode({"decision": f"{kind}:{json.dumps(weights)}"})
                return HttpResponseRedirect(f"{reverse('admin:market_resolve', args=[market.pk])}?{asked}")
            problem = "Give a weight to two outcomes or more; a single winner is chosen in the list before."
    context = {
        "title": f"Several winners of market {market.pk}",
        "market": market,
        "rows": list(zip(running, typed, strict=True)),
        "shares": SHARES,
        "kind": kind,
        "problem": problem,
    }
    return page.render(request, "console/share.html", context)


# --- steps two and three ---------------------------------------------------------------------------------------------


@page.page("resolve_market", posts=True)
def resolve(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Steps two and three: the chosen decision in full, its evidence, and the word typed."""
    market = undecided(market_id)
    asked = request.POST if request.method == "POST" else request.GET
    kind, _, rest = asked.get("decision", "").partition(":")
    decision = _decision(kind, rest, market)
    if decision is None:
        return HttpResponseRedirect(reverse("admin:market_choose", args=[market.pk]))
    at, policy = timezone.now(), wiring.policy()
    ended, problem = _moment(asked.get("ended", ""))
    decision = replace(decision, effective_close_at=ended)
    # An end that lies ahead is refused below; the page shows the figures without it.
    previewed = decision if ended is None or ended <= at else replace(decision, effective_close_at=None)
    (kept,) = latest_previews(market, [previewed], at=at, patient=request.method == "POST")
    if kept.preview is None:
        back = reverse("admin:market_choose", args=[market.pk])
        return being_computed(request, f"Market {market.pk}: {_sentence(decision)}", back)
    seen = kept.preview
    pool = Decimal(seen.figures.division.pool + seen.figures.division.late_refund) / 100
    two = policy.needs_approval(pool)
    question = page.Question(
        title=f"Void market {market.pk}" if kind == VOID else f"Market {market.pk}: {_sentence(decision)}",
        will=will(seen, two=two, hold=policy.hold_for(pool)),
        button="Propose it" if two else BUTTONS[kind],
        back=reverse("admin:market_choose", args=[market.pk]),
        fields=_fields(kind, asked.get("ended", "")),
        typed=rest if kind == WINNER else kind,
        danger=True,
        template="console/decide.html",
        more={
            "market": market,
            "look": kept,
            "seen": seen,
            "decision": f"{kind}:{rest}",
            "hash": seen.figures.preview_hash,
            "moment_problem": problem,
        },
    )

    def act(answers: dict[str, str]) -> str:
        if problem:
            raise BadCloseTime(problem)
        if answers.get("evidence_url"):
            try:
                URLValidator(schemes=["http", "https"])(answers["evidence_url"])
            except ValidationError:
                raise NotAnAddress("The evidence's address must begin with http:// or https://.") from None
        done = resolutions.resolve(
            market_id=market.pk,
            decision=replace(
                decision,
                reason=answers.get("reason", ""),
                evidence=Evidence(url=answers.get("evidence_url", ""), note=answers.get("evidence_note", "")),
            ),
            by=page.actor(request),
            at=timezone.now(),
            policy=policy,
            preview_hash=request.POST.get("hash", ""),
        )
        return _said(done)

    return page.ask(request, question, act, done=reverse("admin:market", args=[market.pk]))


def _said(done: resolutions.Resolved | proposals.Proposed) -> str:
    if isinstance(done, proposals.Proposed):
        link = reverse("admin:proposal", args=[done.proposal_id])
        return f"It is proposed. Nothing is paid until a second person approves it; send them the address {link}"
    wiring.after_decision(done)
    return f"Market {done.market_id} is decided. Its settlement runs now; this page shows how far it is."


def _fields(kind: str, ended: str) -> list[page.Field]:
    fields = []
    if kind == VOID:
        choices = [("", "choose"), *((reason, VOID_WORDS[reason]) for reason in VOID_REASONS)]
        fields.append(page.Field("reason", "Void because", choices=choices))
    else:
        fields += [
            page.Field(
                "evidence_url", "Where the result stands", required=False, max_length=500,
                help="A public page. It stands on the certificate for everyone; we never open it.",
            ),
            page.Field("evidence_note", "What it says", kind="area", max_length=1_000, help="For everyone to read."),
        ]  # fmt: skip
    fields.append(
        page.Field(
            "ended", "When the event really ended", kind="datetime-local", required=False, value=ended, max_length=30,
            help="Nairobi. Bets placed later get their stakes back before the pool is divided.",
        )
    )  # fmt: skip
    return fields


def will(seen: preview.Preview, *, two: bool, hold: timedelta = timedelta(0)) -> list[str]:
    """What a decision does, in sentences."""
    members, divided = seen.figures.members, seen.figures.division
    sentences = [seen.equation]
    if len(seen.weights) > 1:
        parts = ", ".join(f"{outcome} {weight} %" for outcome, weight in seen.weights.items())
        kind = JOINT if seen.rule == "JOINT" else SPLIT
        sentences.insert(0, f"{SHARES[kind]}: {parts}. The part of an outcome that nobody backed goes to the others.")
    if divided.refund:
        sentences.append("Every stake goes back to its wallet at once. This is final: a void is never undone.")
    else:
        winners, payments = members["winners"], members["payments"]
        sentences.append(
            f"{winners:,} {'member wins' if winners == 1 else 'members win'} KES {members['amount']:,.2f}:"
            f" KES {members['by_mpesa']:,.2f} leaves over M-Pesa in {payments:,} payment{'' if payments == 1 else 's'},"
            f" KES {members['to_wallet']:,.2f} goes to wallets."
        )
        if hold:
            minutes = int(hold.total_seconds() // 60)
            sentences.append(f"Payouts are held for {minutes} minutes; until then the resolution can be withdrawn.")
        sentences.append("What M-Pesa has paid cannot be taken back.")
    if two:
        sentences.append("The pool is large: nothing is paid until a second person approves just these figures.")
    return sentences


# --- previews --------------------------------------------------------------------------------------------------------


def latest_previews(
    market: Market, decisions: Sequence[Decision], *, at: datetime, patient: bool = False
) -> list[preview_cache.KeptPreview]:
    """Return the known previews of the decisions, and ask a worker to compute those that are missing or old."""
    previews = preview_cache.previews(market, decisions, at=at, policy=wiring.policy(), patient=patient)
    for kept in previews:
        decision = kept.decision
        if not kept.current and preview_cache.first_request(market, decision):
            closes_at = decision.closes_at(market)
            ended = closes_at.isoformat() if closes_at else ""
            wiring.hint(wiring.COMPUTE_PREVIEW, market.pk, decision.rule, decision.weights_as_text(), ended)
    return previews


def being_computed(request: HttpRequest, title: str, back: str) -> HttpResponse:
    """The page that waits for a worker: it asks again by itself."""
    return page.render(request, "console/being_computed.html", {"title": title, "back": back})


# --- finding ---------------------------------------------------------------------------------------------------------


def market_of(market_id: int) -> Market:
    found = Market.objects.filter(pk=market_id).first() if market_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no market {market_id}.")
    return found


def undecided(market_id: int) -> Market:
    found = market_of(market_id)
    if found.status not in (Market.Status.OPEN, Market.Status.CLOSED):
        raise Http404(f"Market {market_id} is {found.status.lower()}: its outcome has been declared.")
    return found


def _decision(kind: str, rest: str, market: Market) -> Decision | None:
    """What an address asks for, or None where it means nothing for this market."""
    running = market.running_outcomes
    if kind == VOID:
        return Decision("VOID", {})
    if kind == WINNER:
        return Decision("WINNER", {rest: Decimal(100)}) if rest in running else None
    if kind not in SHARES:
        return None
    try:
        weights = rest_fields.Weights().run_validation(json.loads(rest))
        parimutuel.check_weights("JOINT", weights, running)
    except (ValueError, RecursionError, BodyError):
        return None
    return Decision("JOINT" if kind == JOINT else "SPLIT", weights)


def _sentence(decision: Decision) -> str:
    names = " and ".join(decision.weights)
    if decision.rule == "VOID":
        return "void"
    return f"{names} wins" if decision.rule == "WINNER" else f"{names} {'win' if decision.rule == 'JOINT' else 'split'}"


def _moment(typed: str) -> tuple[datetime | None, str]:
    """A moment as a browser's field has it, in Nairobi."""
    if not typed.strip():
        return None, ""
    try:
        found = parse_datetime(typed.strip())
    except ValueError:
        found = None
    if found is None:
        return None, "That is no date and time. Type it as 2026-02-16T21:45."
    return (found if found.tzinfo else found.replace(tzinfo=NAIROBI)), ""


def _name(decision: Decision) -> str:
    return next(iter(decision.weights)) if decision.weights else "Void"


def _value(decision: Decision) -> str:
    return f"{WINNER}:{next(iter(decision.weights))}" if decision.weights else f"{VOID}:"


urls = [
    path("markets/<int:market_id>/resolve/", choose, name="market_choose"),
    path("markets/<int:market_id>/resolve/share/", share, name="market_share"),
    path("markets/<int:market_id>/resolve/decide/", resolve, name="market_resolve"),
]
