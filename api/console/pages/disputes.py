"""Disputes: the queue by deadline, one with its history and what the books say, and the operator's answer to it."""

import uuid
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import timezone

from api.console import page
from payments import disputes as service
from payments import wiring
from payments.models import Dispute
from payments.settlement.certificates import explanations

TABS = {"OPEN": "To answer", "ANSWERED": "Answered", "UPHELD": "Upheld", "REJECTED": "Rejected"}
REMEDIES = {
    Dispute.Remedy.RE_RESOLVE: "the market is resolved anew: undo its settlement next",
    Dispute.Remedy.PAY_TO_WALLET: "the payout goes to the wallet, now",
    Dispute.Remedy.RESEND: "the payout is sent again, now",
    Dispute.Remedy.NONE: "nothing more than this answer",
}
SHOWN = 100


@page.page("answer_dispute")
def disputes(request: HttpRequest) -> HttpResponse:
    at, state = timezone.now(), request.GET.get("state", "OPEN")
    state = state if state in TABS else "OPEN"
    rows = [(one, service.is_overdue(one, at=at)) for one in service.queue(state)[:SHOWN]]
    context = {"title": "Disputes", "rows": rows, "tabs": TABS, "state": state, "shown": SHOWN}
    return page.render(request, "console/disputes.html", context)


@page.page("answer_dispute")
def dispute(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponse:
    found, at = _found(dispute_id), timezone.now()
    context: dict[str, Any] = {
        "title": "Dispute",
        "dispute": found,
        "overdue": service.is_overdue(found, at=at),
        "own": found.user_id == request.user.pk,
        "market": found.bet.market if found.bet else found.settlement.market if found.settlement else None,
        "events": found.events.select_related("by").order_by("pk"),
    }
    if found.bet is not None:
        context["explanation"] = explanations.explain(found.bet, at=at, proven=False)
    return page.render(request, "console/dispute.html", context)


@page.page("answer_dispute", posts=True)
def answer(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    found = _found(dispute_id)
    question = _question(
        found, "Answer the dispute", ["The member is told, and may reply. No money moves."], "Answer", money=False
    )

    def act(answers: dict[str, str]) -> str:
        service.answer(dispute_id=found.public_id, text=answers["text"], by=page.actor(request), at=timezone.now())
        return "The member is answered."

    return page.ask(request, question, act)


@page.page("answer_dispute", posts=True)
def reject(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    found = _found(dispute_id)
    will = ["The dispute is closed; the member is told why. No money moves."]
    question = _question(found, "Reject the dispute", will, "Reject it", money=False)

    def act(answers: dict[str, str]) -> str:
        service.reject(dispute_id=found.public_id, text=answers["text"], by=page.actor(request), at=timezone.now())
        return "The dispute is rejected, and the member is told."

    return page.ask(request, question, act)


@page.page("answer_dispute", posts=True)
def uphold(request: HttpRequest, dispute_id: uuid.UUID) -> HttpResponseBase:
    found = _found(dispute_id)
    remedy = page.Field("remedy", "What follows", choices=[("", "choose"), *REMEDIES.items()])
    will = [
        "The dispute is closed in the member's favour, and the member is told.",
        "Paying to the wallet and sending again are done at once, to payouts of theirs that failed or are held.",
    ]
    question = _question(found, "Uphold the dispute", will, "Uphold it", first=remedy, money=True)

    def act(answers: dict[str, str]) -> str:
        upheld = service.uphold(
            dispute_id=found.public_id,
            remedy=answers["remedy"],
            text=answers["text"],
            by=page.actor(request),
            at=timezone.now(),
        )
        if upheld.to_send:
            wiring.after_retry(*upheld.to_send)
        return f"The dispute is upheld: {REMEDIES[Dispute.Remedy(answers['remedy'])]}."

    return page.ask(request, question, act)


def _question(
    found: Dispute, title: str, will: list[str], button: str, *, money: bool, first: page.Field | None = None
) -> page.Question:
    text = page.Field("text", "What you tell the member", kind="area", max_length=2_000)
    opened = found.events.order_by("pk")[0]
    return page.Question(
        title=title,
        will=will,
        button=button,
        back=reverse("admin:dispute", args=[found.public_id]),
        facts=[("The member says", opened.text)],
        fields=[first, text] if first is not None else [text],
        money=money,
    )


def _found(dispute_id: uuid.UUID) -> Dispute:
    found = service.queue().select_related("settlement__market").filter(public_id=dispute_id).first()
    if found is None:
        raise Http404(f"There is no dispute {dispute_id}.")
    return found


urls = [
    path("disputes/", disputes, name="disputes"),
    path("disputes/<uuid:dispute_id>/", dispute, name="dispute"),
    path("disputes/<uuid:dispute_id>/answer/", answer, name="dispute_answer"),
    path("disputes/<uuid:dispute_id>/reject/", reject, name="dispute_reject"),
    path("disputes/<uuid:dispute_id>/uphold/", uphold, name="dispute_uphold"),
]
