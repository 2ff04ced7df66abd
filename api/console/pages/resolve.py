"""Pages for resolving a market in three steps: one winner, joint winners, a split, or void.

Step one compares the previews of all decisions. Step two shows the chosen decision in full. Step three takes the
evidence and the typed confirmation. The form carries the preview's hash, so a decision is refused if any figure has
changed.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils.dateparse import parse_datetime
from django.utils.http import urlencode
from rest_framework.exceptions import ValidationError as BodyError

from api.console import page, paging
from api.console.templatetags.console import counted, kes
from api.rest import fields as rest_fields
from markets import parimutuel
from markets.models import NAIROBI, Market
from payments import wiring
from payments.settlement import preview, preview_cache, resolutions
from payments.settlement.decision import VOID_REASONS, BadCloseTime, Decision, Evidence
from payments.settlement.proposals import RESOLVE, act_of
from users import outgoing, second_person
from users.proposals import Proposed

# Prefixes of the parameter `decision` in the page's address, such as win:Yes.
# After WINNER comes an outcome, after JOINT and SPLIT come weights as JSON, after VOID comes nothing.
WINNER, JOINT, SPLIT, VOID = "win", "joint", "split", "void"
SHARES = {
    JOINT: "Joint winners: the stakes on each winner are returned first, and the rest is divided by weight",
    SPLIT: "Split: the whole pool after the fee is divided by weight, and no stake is returned first",
}
BUTTONS = {WINNER: "Resolve and pay", JOINT: "Resolve and pay", SPLIT: "Resolve and pay", VOID: "Void and refund"}


# --- step one --------------------------------------------------------------------------------------------------------


@page.page("market.resolve")
def choose(request: HttpRequest, market_id: int) -> HttpResponse:
    """Show step one: the effects of each decision side by side."""
    market = undecided(market_id)
    at, policy = wiring.now(), wiring.policy()
    previews = latest_previews(market, preview.choices(market), at=at)
    context = {
        "title": f"Resolve market {market.pk}",
        "market": market,
        "previews": [(_name(kept.decision), _value(kept.decision), kept) for kept in previews],
        "unknown": [kept for kept in previews if kept.preview is None],
        "moved": [kept for kept in previews if not kept.current],
        "oldest": min((kept.at for kept in previews if kept.at is not None), default=None),
        "float": next((kept.preview for kept in previews if kept.preview is not None), None),
        "approval_above": second_person.limit(RESOLVE, at=at, otherwise=policy.approval_above),
        "stake_of_mine": market.bets.filter(user=request.user.pk).exists(),
        "early": market.status == Market.Status.OPEN and market.end_date > at,
        "scratched": market.outcomes.exclude(scratched_at=None).order_by("pk"),
    }
    return page.render(request, "console/resolve.html", context)


@page.page("market.resolve")
def choose_weights(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Show step one for several winners. If the typed weights are valid, redirect to step two."""
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
            problem = "A weight is a percentage such as 50 or 33.3, with at most four decimals."
        except parimutuel.BadWeights as refusal:
            problem = str(refusal)
        else:
            if kind in SHARES and len(parsed) > 1:
                asked = urlencode({"decision": f"{kind}:{json.dumps(weights)}"})
                return HttpResponseRedirect(f"{reverse('admin:market_resolve', args=[market.pk])}?{asked}")
            problem = "Give weights to at least two outcomes. To choose a single winner, go back to the list."
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


@page.page("market.resolve", posts=True)
def resolve(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Show steps two and three. A POST decides the market, or proposes the decision if it needs a second person."""
    market = undecided(market_id)
    asked = request.POST if request.method == "POST" else request.GET
    kind, _, rest = asked.get("decision", "").partition(":")
    decision = _decision(kind, rest, market)
    if decision is None:
        return HttpResponseRedirect(reverse("admin:market_choose", args=[market.pk]))
    at, policy = wiring.now(), wiring.policy()
    ended, problem = _moment(asked.get("ended", ""))
    decision = replace(decision, effective_close_at=ended)
    # `act` refuses an end in the future. Until then the page shows the figures of a decision without that end.
    previewed = decision if ended is None or ended <= at else replace(decision, effective_close_at=None)
    (kept,) = latest_previews(market, [previewed], at=at, compute_all=request.method == "POST")
    if kept.preview is None:
        back = reverse("admin:market_choose", args=[market.pk])
        return being_computed(request, f"Market {market.pk}: {sentence(decision)}", back)
    shown = kept.preview
    pool = Decimal(shown.figures.division.pool + shown.figures.division.late_refund) / 100
    needs_second_person = second_person.would_be_needed(
        act_of(decision), amount=pool, by=page.actor(request), at=at, otherwise=policy.approval_above
    )
    question = page.Question(
        title=f"Void market {market.pk}" if kind == VOID else f"Market {market.pk}: {sentence(decision)}",
        effects=effects_in_words(shown, needs_second_person=needs_second_person, hold=policy.hold_for(pool)),
        button="Propose the decision" if needs_second_person else BUTTONS[kind],
        back=reverse("admin:market_choose", args=[market.pk]),
        fields=_fields(kind, asked.get("ended", "")),
        text_to_type=rest if kind == WINNER else kind,
        danger=True,
        template="console/decide.html",
        more={
            "market": market,
            "kept": kept,
            "preview": shown,
            "decision": f"{kind}:{rest}",
            "hash": shown.figures.preview_hash,
            "moment_problem": problem,
        },
    )

    def act(answers: dict[str, str]) -> str:
        if problem:
            raise BadCloseTime(f"{problem} Nothing was done.")
        if answers.get("evidence_url"):
            outgoing.check(answers["evidence_url"])
        done = resolutions.resolve(
            market_id=market.pk,
            decision=replace(
                decision,
                reason=answers.get("reason", ""),
                evidence=Evidence(url=answers.get("evidence_url", ""), note=answers.get("evidence_note", "")),
            ),
            by=page.actor(request),
            at=wiring.now(),
            policy=policy,
            preview_hash=request.POST.get("hash", ""),
        )
        return _report(done)

    return page.ask(request, question, act, done=reverse("admin:market", args=[market.pk]))


def _report(done: resolutions.Resolved | Proposed) -> str:
    """Return a decision's result in words. If the market is decided, wake the workers."""
    if isinstance(done, Proposed):
        link = reverse("admin:proposal", args=[done.proposal_id])
        return f"Proposed. Nothing is paid until another person approves it. Send them this address: {link}"
    wiring.after_decision(done)
    return f"Market {done.market_id} is decided. Its settlement has started; this page shows its progress."


def _fields(kind: str, ended: str) -> list[page.Field]:
    fields = []
    if kind == VOID:
        choices = [("", "choose"), *((reason, VOID_REASONS[reason]) for reason in VOID_REASONS)]
        fields.append(page.Field("reason", "Void because", choices=choices))
    else:
        fields += [
            page.Field(
                "evidence_url", "Link to the official result", required=False, max_length=500,
                help="A public page. The public certificate shows this link. We never open it.",
            ),
            page.Field(
                "evidence_note", "Official result in words", kind="area", max_length=1_000,
                help="The public certificate shows this text.",
            ),
        ]  # fmt: skip
    fields.append(
        page.Field(
            "ended", "Actual end of the event", kind="datetime-local", required=False, value=ended, max_length=30,
            help="Nairobi time. Bets placed after this time get their stakes back before the pool is divided.",
        )
    )  # fmt: skip
    return fields


def effects_in_words(shown: preview.Preview, *, needs_second_person: bool, hold: timedelta = timedelta(0)) -> list[str]:
    """Return the effects of a decision in sentences."""
    members, division = shown.figures.members, shown.figures.division
    sentences = [shown.equation]
    if len(shown.weights) > 1:
        parts = ", ".join(f"{outcome} {weight} %" for outcome, weight in shown.weights.items())
        kind = JOINT if shown.rule == "JOINT" else SPLIT
        sentences.insert(0, f"{SHARES[kind]}: {parts}. If an outcome has no bets, the other outcomes share its part.")
    if division.refund:
        sentences.append(
            "Every stake is refunded to the member's wallet at once. This is final: a void cannot be undone."
        )
    else:
        wins = "wins" if members["winners"] == 1 else "win"
        sentences.append(
            f"{counted(members['winners'], 'member')} {wins} {kes(members['amount'])}: {kes(members['by_mpesa'])}"
            f" is paid over M-Pesa in {counted(members['payments'], 'payment')}, and {kes(members['to_wallet'])}"
            " goes to wallets."
        )
        if hold:
            minutes = int(hold.total_seconds() // 60)
            held = counted(minutes, "minute")
            sentences.append(f"Payouts are held for {held}. During that time the resolution can be withdrawn.")
        sentences.append("Money that M-Pesa has paid cannot be taken back.")
    if needs_second_person:
        sentences.append("Second approval needed: nothing is paid until another person approves exactly these figures.")
    return sentences


# --- previews --------------------------------------------------------------------------------------------------------


def latest_previews(
    market: Market, decisions: Sequence[Decision], *, at: datetime, compute_all: bool = False
) -> list[preview_cache.KeptPreview]:
    """Return the previews of the decisions. Ask a worker for each preview that is missing or out of date.

    `compute_all`: compute such previews now, in this request, for any number of bets.
    """
    previews = preview_cache.previews(market, decisions, at=at, policy=wiring.policy(), compute_all=compute_all)
    for kept in previews:
        decision = kept.decision
        if not kept.current and preview_cache.claim_computation(market, decision):
            closes_at = decision.closes_at(market)
            ended = closes_at.isoformat() if closes_at else ""
            wiring.hint(wiring.COMPUTE_PREVIEW, market.pk, decision.rule, decision.weights_as_text(), ended)
    return previews


def being_computed(request: HttpRequest, title: str, back: str) -> HttpResponse:
    """Return the page that says that a worker computes the figures. The page refreshes itself."""
    return page.render(request, "console/being_computed.html", {"title": title, "back": back})


# --- queries ---------------------------------------------------------------------------------------------------------


def market_of(market_id: int) -> Market:
    """Return the market. Raises: Http404, if it does not exist."""
    market = Market.objects.filter(pk=market_id).first() if market_id <= paging.LARGEST_ID else None
    if market is None:
        raise Http404(f"There is no market {market_id}.")
    return market


def undecided(market_id: int) -> Market:
    """Return a market that is not decided yet. Raises: Http404, if the market does not exist or is decided."""
    market = market_of(market_id)
    if market.status not in (Market.Status.OPEN, Market.Status.CLOSED):
        raise Http404(f"Market {market_id} is {market.status.lower()}: its outcome is already declared.")
    return market


def _decision(kind: str, rest: str, market: Market) -> Decision | None:
    """Parse the two parts of the parameter `decision`. Return None if the decision does not fit this market."""
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


def sentence(decision: Decision) -> str:
    """Return a decision in words: “Yes wins”, “A and B split”, or “void”."""
    names = " and ".join(decision.weights)
    if decision.rule == "VOID":
        return "void"
    return f"{names} wins" if decision.rule == "WINNER" else f"{names} {'win' if decision.rule == 'JOINT' else 'split'}"


def _moment(typed: str) -> tuple[datetime | None, str]:
    """Parse the Nairobi date and time that a browser's field sent. Return it and "", or None and the problem."""
    if not typed.strip():
        return None, ""
    try:
        moment = parse_datetime(typed.strip())
    except ValueError:
        moment = None
    if moment is None:
        return None, "That is not a date and time. Type one such as 2026-02-16T21:45."
    return (moment if moment.tzinfo else moment.replace(tzinfo=NAIROBI)), ""


def _name(decision: Decision) -> str:
    return next(iter(decision.weights)) if decision.weights else "Void"


def _value(decision: Decision) -> str:
    return f"{WINNER}:{next(iter(decision.weights))}" if decision.weights else f"{VOID}:"


urls = [
    path("markets/<int:market_id>/resolve/", choose, name="market_choose"),
    path("markets/<int:market_id>/resolve/share/", choose_weights, name="market_share"),
    path("markets/<int:market_id>/resolve/decide/", resolve, name="market_resolve"),
]
