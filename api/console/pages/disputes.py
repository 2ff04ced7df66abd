"""Pages for disputes: the list by deadline, one dispute with its history, and the decisions on it."""

import uuid
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page
from api.console.pages import proposals
from markets.models import Market
from payments import dispute_holds, dispute_steps, wiring
from payments import disputes as service
from payments.models import Dispute, DisputeEvent
from payments.settlement.certificates import explanations
from users.proposals import Proposed

TABS = {"OPEN": "To answer", "ANSWERED": "Answered", "UPHELD": "Upheld", "REJECTED": "Rejected"}
REMEDIES = {
    Dispute.Remedy.RE_RESOLVE: "the market must be resolved again; undo its settlement next",
    Dispute.Remedy.PAY_TO_WALLET: "the payout goes to the wallet now",
    Dispute.Remedy.RESEND: "the payout is sent again now",
    Dispute.Remedy.NONE: "no remedy beyond this answer",
}
EVENTS = {
    DisputeEvent.Kind.OPENED: "opened the dispute",
    DisputeEvent.Kind.ANSWERED: "answered",
    DisputeEvent.Kind.REPLIED: "replied",
    DisputeEvent.Kind.UPHELD: "upheld the dispute",
    DisputeEvent.Kind.REJECTED: "rejected the dispute",
    DisputeEvent.Kind.REMEDIED: "carried out the remedy",
}
SHOWN = 100


@page.page("disputes.view")
def disputes(request: HttpRequest) -> HttpResponse:
    """List the disputes in one state, by deadline."""
    at, state = wiring.now(), request.GET.get("state", "OPEN")
    state = state if state in TABS else "OPEN"
    rows = [(dispute, service.is_overdue(dispute, at=at)) for dispute in service.queue(state)[:SHOWN]]
    context = {"title": "Disputes", "rows": rows, "tabs": TABS, "state": state, "shown": SHOWN}
    return page.render(request, "console/disputes.html", context)


@page.page("disputes.view")
def dispute(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponse:
    """Show one dispute with its events. For a disputed bet, explain its result from the books."""
    dispute, at = _dispute(dispute_id), wiring.now()
    context: dict[str, Any] = {
        "title": "Dispute",
        "dispute": dispute,
        "overdue": service.is_overdue(dispute, at=at),
        "kept_back": list(dispute_holds.kept_back(dispute).order_by("pk")),
        "proposed": proposals.waiting_about(dispute_steps.name(dispute)),
        "own": dispute.user_id == request.user.pk,
        "market": _market(dispute),
        "remedy": REMEDIES[Dispute.Remedy(dispute.remedy)] if dispute.remedy else "",
        "events": [
            (event, EVENTS[DisputeEvent.Kind(event.kind)])
            for event in dispute.events.select_related("by").order_by("pk")
        ],
    }
    if dispute.bet is not None:
        context["explanation"] = explanations.explain(dispute.bet, at=at, with_proof=False)
    return page.render(request, "console/dispute.html", context)


@page.page("dispute.answer", posts=True)
def answer(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    """Answer a dispute. The member may reply."""
    dispute = _dispute(dispute_id)
    question = _question(dispute, "Answer the dispute", ["The member is told and may reply. No money moves."], "Answer")

    def act(answers: dict[str, str]) -> str:
        service.answer(dispute_id=dispute.public_id, text=answers["text"], by=page.actor(request), at=wiring.now())
        return "Your answer is recorded, and the member is told."

    return page.ask(request, question, act)


@page.page("dispute.reject", posts=True)
def reject(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    """Reject a dispute, with a reason for the member."""
    dispute = _dispute(dispute_id)
    effects = ["The dispute is closed, and the member is told the reason. No money moves."]
    question = _question(dispute, "Reject the dispute", effects, "Reject it")

    def act(answers: dict[str, str]) -> str:
        service.reject(dispute_id=dispute.public_id, text=answers["text"], by=page.actor(request), at=wiring.now())
        return "The dispute is rejected, and the member is told."

    return page.ask(request, question, act)


@page.page("dispute.uphold", posts=True)
def uphold(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    """Uphold a dispute and choose the remedy."""
    dispute = _dispute(dispute_id)
    kept = dispute_holds.kept_back(dispute).exists()
    remedy = page.Field("remedy", "Remedy", choices=[("", "choose"), *REMEDIES.items()])
    effects = [
        "The dispute is closed in favour of the member, and the member is told.",
        "If the remedy is a payment to the wallet or a new request to M-Pesa, it is carried out at once.",
        "It applies to the member's failed or held payouts.",
        "A payment to the wallet above the threshold waits for a second approval. The dispute then waits too.",
        *(["A payout that this dispute keeps back stays held if the market must be resolved again."] if kept else []),
    ]
    question = _question(dispute, "Uphold the dispute", effects, "Uphold it", first=remedy)

    def act(answers: dict[str, str]) -> str:
        upheld = service.uphold(
            dispute_id=dispute.public_id,
            remedy=answers["remedy"],
            text=answers["text"],
            by=page.actor(request),
            at=wiring.now(),
        )
        if isinstance(upheld, Proposed):
            return proposals.sent_to_another_person(upheld)
        if upheld.to_send:
            wiring.after_retry(*upheld.to_send)
        return f"The dispute is upheld: {REMEDIES[Dispute.Remedy(answers['remedy'])]}."

    return page.ask(request, question, act)


def _question(
    dispute: Dispute, title: str, effects: list[str], button: str, *, first: page.Field | None = None
) -> page.Question:
    text = page.Field("text", "Your message to the member", kind="area", max_length=2_000)
    opened = dispute.events.order_by("pk")[0]
    return page.Question(
        title=title,
        effects=effects,
        button=button,
        back=reverse("admin:dispute", args=[dispute.public_id]),
        facts=[("The member says", opened.text)],
        fields=[first, text] if first is not None else [text],
    )


def _market(dispute: Dispute) -> Market | None:
    if dispute.bet is not None:
        return dispute.bet.market
    return dispute.settlement.market if dispute.settlement is not None else None


def _dispute(dispute_id: uuid.UUID) -> Dispute:
    dispute = service.queue().select_related("settlement__market").filter(public_id=dispute_id).first()
    if dispute is None:
        raise Http404(f"There is no dispute {dispute_id}.")
    return dispute


urls = [
    path("disputes/", disputes, name="disputes"),
    path("disputes/<uuid:dispute_id>/", dispute, name="dispute"),
    path("disputes/<uuid:dispute_id>/answer/", answer, name="dispute_answer"),
    path("disputes/<uuid:dispute_id>/reject/", reject, name="dispute_reject"),
    path("disputes/<uuid:dispute_id>/uphold/", uphold, name="dispute_uphold"),
]
