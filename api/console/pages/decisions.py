"""Pages for approving a proposal, withdrawing a resolution, undoing a settlement and scratching an outcome."""

from collections.abc import Callable, Sequence

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page, paging
from api.console.pages import resolve
from api.console.templatetags.console import counted, kes
from markets.models import Market
from payments import wiring
from payments.models import Proposal
from payments.settlement import approvals, preview_cache, proposals, resolutions, status, undo
from payments.settlement.decision import VOID_REASONS

# --- second approval -------------------------------------------------------------------------------------------------


@page.page("proposal.view", posts=True)
def proposal(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Show a proposal beside the current figures. A POST approves the proposal with exactly these figures."""
    proposal = _proposal(proposal_id)
    market = proposal.market
    if proposal.state != Proposal.State.OPEN or not page.may(request, "proposal.approve"):
        context = {
            "title": f"Proposal {proposal.pk}",
            "proposal": proposal,
            "market": market,
            "summary": _summary(proposal),
        }
        return page.render(request, "console/proposal.html", context)
    kept = None
    if proposal.kind == Proposal.Kind.RESOLVE:
        kept = _preview_now(proposal, compute_all=request.method == "POST")
        if kept.preview is None:
            back = reverse("admin:market", args=[market.pk])
            return resolve.being_computed(request, f"Approve proposal {proposal.pk}", back)
    shown = kept.preview if kept is not None else None
    is_proposer = proposal.proposed_by_id == request.user.pk
    question = page.Question(
        title=f"Approve proposal {proposal.pk}",
        effects=[
            _summary(proposal),
            *(resolve.effects_in_words(shown, needs_second_person=False) if shown is not None else []),
        ],
        button="Approve and carry out",
        back=reverse("admin:market", args=[market.pk]),
        text_to_type="approve",
        danger=True,
        act_name="proposal.approve",
        template="console/approve.html",
        more={
            "proposal": proposal,
            "market": market,
            "kept": kept,
            "preview": shown,
            "is_proposer": is_proposer,
            "figures_changed": shown is not None and shown.figures.preview_hash != proposal.preview_hash,
        },
    )

    def act(answers: dict[str, str]) -> str:
        done = approvals.approve(
            proposal_id=proposal.pk,
            preview_hash=request.POST.get("hash", ""),
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, undo.Undoing):
            wiring.after_decision(done)
            return (
                f"Approved. The settlement of market {done.market_id} is being undone."
                " No more of its payouts will be sent."
            )
        wiring.after_decision(done)
        return f"Approved. Market {done.market_id} is decided, and its settlement has started."

    return page.ask(request, question, act)


@page.page("proposal.reject", posts=True)
def reject(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Reject a proposal. The proposer may always withdraw it. Anyone else must be allowed to approve it."""
    proposal = _proposal(proposal_id)
    is_proposer = proposal.proposed_by_id == request.user.pk
    if not page.may(request, "proposal.approve") and not is_proposer:
        return page.refused(request, "proposal.approve")
    verb = "Withdraw" if is_proposer else "Reject"
    question = page.Question(
        title=f"{verb} proposal {proposal.pk}",
        effects=[
            _summary(proposal),
            "The proposal is not carried out.",
            "The payouts that wait for this decision may be sent again. A market's hold still applies."
            if proposal.kind == Proposal.Kind.UNDO
            else "If the proposal closed the market, the market opens again, unless its end has passed.",
        ],
        button=f"{verb} it",
        back=reverse("admin:proposal", args=[proposal.pk]),
        fields=[page.Field("reason", "Reason", kind="area")],
    )

    def act(answers: dict[str, str]) -> str:
        approvals.reject(
            proposal_id=proposal.pk,
            reason=answers["reason"],
            may_approve=page.may(request, "proposal.approve"),
            by=page.actor(request),
            at=wiring.now(),
        )
        return f"The proposal is {'withdrawn' if is_proposer else 'rejected'}. No money was moved."

    next_page = reverse("admin:market", args=[proposal.market_id])
    return page.ask(request, question, act, done=next_page)


def _summary(proposal: Proposal) -> str:
    """Return a proposal in words, with its proposer and the evidence."""
    if proposal.kind == Proposal.Kind.UNDO:
        decision = f"undo the settlement of market {proposal.market_id}. Reason: {proposal.reason}"
    elif proposal.rule == "VOID":
        reason = VOID_REASONS.get(proposal.reason, proposal.reason)
        decision = f"void market {proposal.market_id}, because {reason}."
    else:
        sentence = resolve.sentence(proposals.decision_of(proposal))
        decision = f"resolve market {proposal.market_id}: {sentence}."
    evidence = " ".join(filter(None, (proposal.evidence_note, proposal.evidence_url)))
    return f"{proposal.proposed_by} proposes to {decision}" + (f" Evidence: {evidence}" if evidence else "")


def _preview_now(proposal: Proposal, *, compute_all: bool) -> preview_cache.KeptPreview:
    market = proposal.market
    market.effective_close_at = proposal.effective_close_at
    (kept,) = resolve.latest_previews(
        market, [proposals.decision_of(proposal)], at=wiring.now(), compute_all=compute_all
    )
    return kept


# --- withdraw, undo, scratch -----------------------------------------------------------------------------------------


@page.page("market.withdraw", posts=True)
def withdraw(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Withdraw a resolution before its payouts are sent, or a scratch whose refunds found the books wrong."""
    market = resolve.market_of(market_id)
    scratch = status.failed_scratch(market.pk) if status.deciding_settlement(market.pk) is None else None
    title = f"Withdraw the resolution of market {market.pk}"
    effects = [
        "None of the resolution's payouts will be sent. The market is closed and can be resolved again.",
        "Money in wallets is taken back, up to their balance. The rest becomes the member's debt.",
        "If the hold has ended, undo the settlement instead.",
    ]
    if scratch is not None:
        title = f"Withdraw the scratch of {scratch.scratched}"
        effects = [
            f"{scratch.scratched} may win again. Its bets count again, and their stakes stay in the pool.",
            "Stakes that went back to wallets already are taken back, up to the balance. The rest becomes a debt.",
            "An open market takes bets on it again. A closed market cannot be scratched again: resolve or void it.",
        ]

    def act(reason: str) -> str:
        done = resolutions.withdraw(market_id=market.pk, reason=reason, by=page.actor(request), at=wiring.now())
        wiring.after_decision(done)
        if done.scratched:
            return f"The scratch of {done.scratched} is withdrawn. Its stakes are in the pool again."
        return f"The resolution of market {market.pk} is withdrawn. None of its payouts will be sent."

    return _take_back(request, market, title, effects, "withdraw", act)


@page.page("market.undo", posts=True)
def undo_settlement(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Undo a settlement, or propose the undo if the pool needs two people."""
    market = resolve.market_of(market_id)
    effects = [
        "From now on no payout of the settlement is sent.",
        "Payouts that are not sent yet are cancelled. Money is taken back from wallets, up to their balance. The rest"
        " becomes the member's debt.",
        "Money that M-Pesa has paid stays with the members and becomes their debt to us. Under Member debts you set"
        " each debt off or write it off.",
        "The market is closed. After you resolve it again, the right winners are paid at once.",
        "A large pool needs a second approval. Sending stops before that approval.",
    ]

    def act(reason: str) -> str:
        done = undo.undo(
            market_id=market.pk,
            reason=reason,
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, proposals.Proposed):
            link = reverse("admin:proposal", args=[done.proposal_id])
            return f"Sending is stopped for this market. Another person must approve the undo at this address: {link}"
        wiring.after_decision(done)
        return f"The settlement of market {market.pk} is being undone. No more of its payouts will be sent."

    settlement = status.settlement_status(market.pk)
    paid = settlement.by_state["completed"] if settlement is not None else (0, 0)
    sent = settlement.by_state["processing"][1] + settlement.by_state["in_doubt"][1] if settlement is not None else 0
    facts = [
        ("Paid so far", f"{counted(paid[1], 'payout')}, {kes(paid[0])}"),
        ("With M-Pesa now", counted(sent, "payout")),
    ]
    title = f"Undo the settlement of market {market.pk}"
    return _take_back(request, market, title, effects, "undo", act, facts=facts)


def _take_back(
    request: HttpRequest,
    market: Market,
    title: str,
    effects: list[str],
    text_to_type: str,
    act: Callable[[str], str],
    *,
    facts: Sequence[tuple[str, str]] = (),
) -> HttpResponseBase:
    question = page.Question(
        title=title,
        effects=effects,
        button=title,
        back=reverse("admin:market", args=[market.pk]),
        facts=[("Market", market.question), ("State", market.status.capitalize()), *facts],
        fields=[page.Field("reason", "Reason", kind="area", help="Shown in the audit trail.")],
        text_to_type=text_to_type,
        danger=True,
    )
    return page.ask(request, question, lambda answers: act(answers["reason"]))


@page.page("market.scratch", posts=True)
def scratch(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Scratch an outcome and refund its stakes."""
    market = resolve.market_of(market_id)
    running = market.running_outcomes
    question = page.Question(
        title=f"Scratch an outcome of market {market.pk}",
        effects=[
            "The outcome takes no more bets. Its stakes are refunded to the members' wallets at once.",
            "The market continues with the other outcomes. You cannot take this back.",
        ],
        button="Scratch it",
        back=reverse("admin:market", args=[market.pk]),
        fields=[
            page.Field("outcome", "Outcome", choices=[("", "choose"), *((name, name) for name in running)]),
            page.Field("reason", "Reason", kind="area"),
        ],
        text_to_type="scratch",
        danger=True,
    )

    def act(answers: dict[str, str]) -> str:
        done = resolutions.scratch(
            market_id=market.pk,
            outcome=answers["outcome"],
            reason=answers["reason"],
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        wiring.after_decision(done)
        return f"{answers['outcome']} is scratched. Its stakes are being refunded."

    return page.ask(request, question, act)


# --- queries ---------------------------------------------------------------------------------------------------------


def _proposal(proposal_id: int) -> Proposal:
    rows = Proposal.objects.select_related("market", "proposed_by", "decided_by")
    proposal = rows.filter(pk=proposal_id).first() if proposal_id <= paging.LARGEST_ID else None
    if proposal is None:
        raise Http404(f"There is no proposal {proposal_id}.")
    return proposal


urls = [
    path("markets/<int:market_id>/withdraw/", withdraw, name="market_withdraw"),
    path("markets/<int:market_id>/undo/", undo_settlement, name="market_undo"),
    path("markets/<int:market_id>/scratch/", scratch, name="market_scratch"),
    path("proposals/<int:proposal_id>/", proposal, name="proposal"),
    path("proposals/<int:proposal_id>/reject/", reject, name="proposal_reject"),
]
