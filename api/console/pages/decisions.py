"""The second person's word on what was proposed for a market, and taking back: withdraw, undo, scratch an outcome."""

from collections.abc import Callable
from typing import cast

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import timezone

from api.console import page, paging
from api.console.pages import resolve
from markets.models import Market
from payments import wiring
from payments.models import Proposal
from payments.settlement import approvals, preview_cache, proposals, resolutions, undo

# --- the second person -----------------------------------------------------------------------------------------------


@page.page("view_console", posts=True)
def proposal(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """What the first person proposed, beside the figures of now; the second approves just that."""
    found = _proposal(proposal_id)
    market = found.market
    if found.state != Proposal.State.OPEN or not page.may(request, "approve_resolution"):
        context = {"title": f"Proposal {found.pk}", "proposal": found, "market": market}
        return page.render(request, "console/proposal.html", context)
    look = None
    if found.kind == Proposal.Kind.RESOLVE:
        look = _figures_now(found, patient=request.method == "POST")
        if look.preview is None:
            return resolve.being_computed(
                request, f"Approve proposal {found.pk}", reverse("admin:market", args=[market.pk])
            )
    now = look.preview if look is not None else None
    own = found.proposed_by_id == request.user.pk
    question = page.Question(
        title=f"Approve proposal {found.pk}",
        will=[
            _proposed_words(found),
            *(resolve.will(now, two=False) if now is not None else []),
            *([] if not own else ["You proposed it: another person must approve it."]),
        ],
        button="Approve and carry out",
        back=reverse("admin:market", args=[market.pk]),
        typed="approve",
        danger=True,
        template="console/approve.html",
        more={
            "proposal": found,
            "market": market,
            "look": look,
            "seen": now,
            "own": own,
            "moved": now is not None and now.figures.preview_hash != found.preview_hash,
        },
    )

    def act(answers: dict[str, str]) -> str:
        done = approvals.approve(
            proposal_id=found.pk,
            preview_hash=request.POST.get("hash", ""),
            by=page.actor(request),
            at=timezone.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, undo.Undoing):
            wiring.after_decision(done)
            return f"Approved. Market {done.market_id} is being undone; nothing of it is sent any more."
        wiring.after_decision(done)
        return f"Approved. Market {done.market_id} is decided, and its settlement runs now."

    return page.ask(request, question, act)


@page.page("view_console", posts=True)
def reject(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Against a proposal: by whoever may approve, or by the one who made it."""
    found = _proposal(proposal_id)
    if not page.may(request, "approve_resolution") and found.proposed_by_id != request.user.pk:
        context = {"title": "Not for your role", "needed": "Approve what another person proposed for a market"}
        return page.render(request, "console/refused.html", context, status=403)
    question = page.Question(
        title=f"Reject proposal {found.pk}",
        will=[_proposed_words(found), "It is not carried out. A market that it had closed is open again."],
        button="Reject it",
        back=reverse("admin:proposal", args=[found.pk]),
        fields=[page.Field("reason", "Why", kind="area")],
    )

    def act(answers: dict[str, str]) -> str:
        approvals.reject(proposal_id=found.pk, reason=answers["reason"], by=page.actor(request), at=timezone.now())
        return "The proposal is rejected. No money was moved."

    done = reverse("admin:market", args=[found.market_id])
    return page.ask(request, question, act, done=done)


def _proposed_words(found: Proposal) -> str:
    what = {
        Proposal.Kind.UNDO: f"undo the settlement of market {found.market_id}: {found.reason}",
    }.get(cast(Proposal.Kind, found.kind), "")
    if not what:
        what = f"void market {found.market_id} ({found.reason})" if found.rule == "VOID" else (
            f"resolve market {found.market_id}: {' and '.join(found.weights)} wins"
        )  # fmt: skip
    evidence = " ".join(filter(None, (found.evidence_note, found.evidence_url)))
    return f"{found.proposed_by} proposes to {what}." + (f" Evidence: {evidence}" if evidence else "")


def _figures_now(found: Proposal, *, patient: bool) -> preview_cache.KeptPreview:
    market = found.market
    market.effective_close_at = found.effective_close_at
    decision = proposals.decision_of(found)
    (kept,) = resolve.latest_previews(market, [decision], at=timezone.now(), patient=patient)
    return kept


# --- taking back -----------------------------------------------------------------------------------------------------


@page.page("resolve_market", posts=True)
def withdraw(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = resolve.market_of(market_id)
    will = [
        "The resolution is taken back before its payouts leave: the market is closed again, and may be resolved anew.",
        "What was credited to wallets comes back by reversing transfers. Once payouts have left, undo it instead.",
    ]

    def act(reason: str) -> str:
        done = resolutions.withdraw(market_id=market.pk, reason=reason, by=page.actor(request), at=timezone.now())
        wiring.after_decision(done)
        return f"The resolution of market {market.pk} is withdrawn. No payout of it leaves."

    return _take_back(request, market, f"Withdraw the resolution of market {market.pk}", will, "withdraw", act)


@page.page("resolve_market", posts=True)
def undo_settlement(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = resolve.market_of(market_id)
    will = [
        "From this moment on nothing more of the settlement is sent.",
        "Payouts that have not left are cancelled; what went to wallets comes back as far as the wallets hold it.",
        "What M-Pesa has carried stays with the members and becomes their debt to us: later you keep a part of their"
        " winnings, or bear the loss.",
        "The market is closed again, and may be resolved anew; then the rightful winners are paid at once.",
        "A large pool takes a second person's approval; sending stops meanwhile all the same.",
    ]

    def act(reason: str) -> str:
        done = undo.undo(
            market_id=market.pk,
            reason=reason,
            by=page.actor(request),
            at=timezone.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, proposals.Proposed):
            link = reverse("admin:proposal", args=[done.proposal_id])
            return f"Sending is stopped for this market. The undo waits for a second person at {link}"
        wiring.after_decision(done)
        return f"Market {market.pk} is being undone. Nothing more of it is sent."

    return _take_back(request, market, f"Undo the settlement of market {market.pk}", will, "undo", act)


def _take_back(
    request: HttpRequest, market: Market, title: str, will: list[str], typed: str, act: Callable[[str], str]
) -> HttpResponseBase:
    question = page.Question(
        title=title,
        will=will,
        button=title,
        back=reverse("admin:market", args=[market.pk]),
        facts=[("Market", market.question), ("State", market.status.lower())],
        fields=[page.Field("reason", "Why", kind="area", help="It stands in the audit trail.")],
        typed=typed,
        danger=True,
    )
    return page.ask(request, question, lambda answers: act(answers["reason"]))


@page.page("resolve_market", posts=True)
def scratch(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = resolve.market_of(market_id)
    running = market.running_outcomes
    question = page.Question(
        title=f"Scratch an outcome of market {market.pk}",
        will=[
            "The outcome takes no bets any more, and its stakes go back to their wallets at once.",
            "The market goes on with the others. It cannot be put back.",
        ],
        button="Scratch it",
        back=reverse("admin:market", args=[market.pk]),
        fields=[
            page.Field("outcome", "Outcome", choices=[("", "choose"), *((name, name) for name in running)]),
            page.Field("reason", "Why", kind="area"),
        ],
        typed="scratch",
        danger=True,
    )

    def act(answers: dict[str, str]) -> str:
        done = resolutions.scratch(
            market_id=market.pk,
            outcome=answers["outcome"],
            reason=answers["reason"],
            by=page.actor(request),
            at=timezone.now(),
            policy=wiring.policy(),
        )
        wiring.after_decision(done)
        return f"{answers['outcome']} is scratched; its stakes are going back."

    return page.ask(request, question, act)


# --- finding ---------------------------------------------------------------------------------------------------------


def _proposal(proposal_id: int) -> Proposal:
    proposals_ = Proposal.objects.select_related("market", "proposed_by", "decided_by")
    found = proposals_.filter(pk=proposal_id).first() if proposal_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no proposal {proposal_id}.")
    return found


urls = [
    path("markets/<int:market_id>/withdraw/", withdraw, name="market_withdraw"),
    path("markets/<int:market_id>/undo/", undo_settlement, name="market_undo"),
    path("markets/<int:market_id>/scratch/", scratch, name="market_scratch"),
    path("proposals/<int:proposal_id>/", proposal, name="proposal"),
    path("proposals/<int:proposal_id>/reject/", reject, name="proposal_reject"),
]
