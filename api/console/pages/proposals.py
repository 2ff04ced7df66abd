"""Pages of proposals: all open ones, one proposal with its effects, approve, reject."""

from decimal import Decimal
from functools import partial

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page, paging
from api.console.pages import resolve, staff
from api.console.templatetags.console import approvers, kes
from markets import terms, terms_proposals
from markets.models import Market
from payments import disputes, wiring
from payments.models import DisputeEvent
from payments.payouts.operations import starting
from payments.settlement import preview_cache
from payments.settlement.proposals import RESOLVE, VOID, decision_of
from payments.settlement.resolutions import Resolved
from payments.settlement.undo import Undoing
from users import accounts, authority, proposals, second_person
from users.models import Proposal

State = Proposal.State


@page.page("proposal.view")
def open_proposals(request: HttpRequest) -> HttpResponseBase:
    """List the open proposals, and the latest that were decided."""
    rows = Proposal.objects.select_related("proposed_by", "decided_by", "first_approved_by").order_by("-pk")
    context = {
        "title": "Proposals",
        "waiting": [(row, words_of(row), may_approve(request, row)) for row in rows.filter(state=State.OPEN)],
        "paged": paging.paged(request, rows.exclude(state=State.OPEN), size=25),
    }
    return page.render(request, "console/proposals.html", context)


@page.page("proposal.view", posts=True)
def proposal(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Show a proposal beside the current figures. A POST approves the proposal with exactly these figures."""
    proposal = _proposal(proposal_id)
    market = Market.objects.filter(pk=proposal.subject_id).first() if proposal.act.startswith("market.") else None
    if proposal.state != State.OPEN or not may_approve(request, proposal):
        context = {
            "title": f"Proposal {proposal.pk}",
            "proposal": proposal,
            "market": market,
            "summary": _summary(proposal),
            "effects": words_of(proposal),
        }
        return page.render(request, "console/proposal.html", context)
    back = reverse("admin:market", args=[market.pk]) if market is not None else reverse("admin:proposals")
    kept = None
    if market is not None and proposal.act in (RESOLVE, VOID):
        kept = _preview_now(market, proposal, compute_all=request.method == "POST")
        if kept.preview is None:
            return resolve.being_computed(request, f"Approve proposal {proposal.pk}", back)
    shown = kept.preview if kept is not None else None
    question = page.Question(
        title=f"Approve proposal {proposal.pk}",
        effects=[
            _summary(proposal),
            *words_of(proposal),
            *(resolve.effects_in_words(shown, needs_second_person=False) if shown is not None else []),
        ],
        button="Approve and carry out",
        back=back,
        text_to_type="approve",
        danger=True,
        act_name="proposal.approve",
        template="console/approve.html",
        more={
            "proposal": proposal,
            "market": market,
            "kept": kept,
            "preview": shown,
            "is_proposer": request.user.pk in (proposal.proposed_by_id, proposal.first_approved_by_id),
            "figures_changed": shown is not None and shown.figures.preview_hash != proposal.hash,
        },
    )

    def act(answers: dict[str, str]) -> str:
        done = proposals.approve(
            proposal_id=proposal.pk,
            preview_hash=request.POST.get("hash", ""),
            holds=partial(authority.holds, request.user),
            by=page.actor(request),
            at=wiring.now(),
            acts=wiring.acts(),
        )
        wiring.after_approval(done)
        return _report(done)

    return page.ask(request, question, act)


@page.page("proposal.reject", posts=True)
def reject(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Reject a proposal. The proposer may always withdraw it. Anyone else must be allowed to approve it."""
    proposal = _proposal(proposal_id)
    is_proposer = proposal.proposed_by_id == request.user.pk
    if not may_approve(request, proposal) and not is_proposer:
        return page.refused(request, "proposal.approve")
    verb = "Withdraw" if is_proposer else "Reject"
    question = page.Question(
        title=f"{verb} proposal {proposal.pk}",
        effects=[
            _summary(proposal),
            *words_of(proposal),
            "The proposal is not carried out.",
            *_let_go_in_words(proposal),
        ],
        button=f"{verb} it",
        back=reverse("admin:proposal", args=[proposal.pk]),
        fields=[page.Field("reason", "Reason", kind="area")],
    )

    def act(answers: dict[str, str]) -> str:
        proposals.reject(
            proposal_id=proposal.pk,
            reason=answers["reason"],
            holds=partial(authority.holds, request.user),
            by=page.actor(request),
            at=wiring.now(),
            acts=wiring.acts(),
        )
        return f"The proposal is {'withdrawn' if is_proposer else 'rejected'}. No money was moved."

    is_market = proposal.act.startswith("market.")
    done = reverse("admin:market", args=[proposal.subject_id]) if is_market else reverse("admin:proposals")
    return page.ask(request, question, act, done=done)


def sent_to_another_person(made: proposals.Proposed) -> str:
    """Return the sentence for a person whose act waits for another person."""
    link = reverse("admin:proposal", args=[made.proposal_id])
    return f"Proposed. Nothing is done until another person approves it. Send them this address: {link}"


def second_approval(request: HttpRequest, act_name: str, amount: Decimal) -> list[str]:
    """Return a sentence if this act of this amount waits for another person, with the roles of those who may approve.

    Units: shillings.
    """
    if not second_person.would_be_needed(act_name, amount=amount, by=page.actor(request), at=wiring.now()):
        return []
    return [
        f"Second approval needed: {approvers(act_name)} must approve this from their own login. Until then nothing is"
        " done."
    ]


def waiting_about(subject: str) -> Proposal | None:
    """Return the open proposal about a subject, or None."""
    waiting: Proposal | None = proposals.open_about(subject).select_related("proposed_by").first()
    return waiting


def may_approve(request: HttpRequest, proposal: Proposal) -> bool:
    """Return True if the person's roles allow them to approve the proposal."""
    return authority.holds(request.user, authority.ACTS[proposal.act].approval)


def words_of(proposal: Proposal) -> list[str]:
    """Return the effects of a proposal in sentences."""
    procedure = wiring.acts().get(proposal.act)
    if procedure is None:
        return [f"{proposal.act} of {proposal.subject}"]
    effects = procedure.words(proposal)
    if proposal.act == disputes.UPHOLD:  # Roles that may approve it need not see the page of the dispute.
        opened = DisputeEvent.objects.filter(dispute__public_id=proposal.subject.partition(":")[2]).earliest("pk")
        effects = [*effects, f"The member says: {opened.text}"]
    return effects


def _summary(proposal: Proposal) -> str:
    """Return who proposes which act, with its amount."""
    who = proposal.proposed_by or "The system"
    amount = f" Amount: {kes(proposal.amount)}." if proposal.amount is not None else ""
    return f"{who} proposes to {authority.ACTS[proposal.act].words}.{amount}"


def _let_go_in_words(proposal: Proposal) -> list[str]:
    if proposal.act in (RESOLVE, VOID):
        return ["If the proposal closed the market, the market opens again, unless its end has passed."]
    if proposal.act == "market.undo":
        return ["The payouts that wait for this decision may be sent again. A market's hold still applies."]
    if proposal.act == terms_proposals.ACT:
        return ["The terms stay as they are. Betting goes on, unless a person had suspended it before."]
    return []


def _report(done: object) -> str:
    """Return the result of an approval in words."""
    if isinstance(done, proposals.ApprovedOnce):
        return "Approved. The system proposed this, so one more person must approve it."
    if isinstance(done, Undoing):
        return (
            f"Approved. The settlement of market {done.market_id} is being undone. No more of its payouts will be sent."
        )
    if isinstance(done, Resolved) and done.rule == "SCRATCH":
        return f"Approved. {done.outcome} is scratched. Its stakes are being refunded."
    if isinstance(done, starting.Started | starting.Resumed):
        return "Approved. Due payouts are sent again, unless another stop or an open breaker pauses them."
    if isinstance(done, disputes.Upheld):
        return "Approved. The dispute is upheld, and the money is in the member's wallet."
    if isinstance(done, terms.Changed):
        return f"Approved. Version {done.version} of the terms is in force, and members are being told."
    if isinstance(done, accounts.Changed):
        return f"Approved. {staff.report(done)}"
    if isinstance(done, Resolved):
        return f"Approved. Market {done.market_id} is decided, and its settlement has started."
    return "Approved and carried out."


def _preview_now(market: Market, proposal: Proposal, *, compute_all: bool) -> preview_cache.KeptPreview:
    decision = decision_of(proposal)
    market.effective_close_at = decision.effective_close_at
    (kept,) = resolve.latest_previews(market, [decision], at=wiring.now(), compute_all=compute_all)
    return kept


def _proposal(proposal_id: int) -> Proposal:
    rows = Proposal.objects.select_related("proposed_by", "decided_by", "first_approved_by")
    proposal = rows.filter(pk=proposal_id).first() if proposal_id <= paging.LARGEST_ID else None
    if proposal is None or proposal.act not in authority.ACTS:
        raise Http404(f"There is no proposal {proposal_id}.")
    return proposal


urls = [
    path("proposals/", open_proposals, name="proposals"),
    path("proposals/<int:proposal_id>/", proposal, name="proposal"),
    path("proposals/<int:proposal_id>/reject/", reject, name="proposal_reject"),
]
