"""Pages of payouts: the search, one payout with its timeline, and the actions on one payout."""

from datetime import datetime, timedelta

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse

from api.console import page, paging
from api.console.pages import audit, proposals
from api.console.templatetags.console import kes, words
from markets.models import NAIROBI
from payments import wiring
from payments.models import Transaction, Verdict
from payments.payouts.operations import actions, bulk_retries, decisions, failures, reissue, search, timeline
from users import phone
from users.proposals import Proposed

# Seconds between two refreshes of a payout's page: while the payout is under way, and otherwise.
WORKING, QUIET = 3, 15
OLD_NUMBER = "Number until now"


@page.page("console.view")
def payouts(request: HttpRequest) -> HttpResponse:
    """List the payouts that match the search. Group failed payouts by the reason for the failure."""
    typed, state, code = (request.GET.get(name, "").replace("\x00", "")[:80] for name in ("q", "state", "code"))
    market_id = paging.number(request.GET.get("market", ""))
    result = search.search(typed, state=state, code=code, market_id=market_id)
    context = {
        "title": "Payouts",
        "paged": paging.paged(request, result.payouts),
        "typed": typed,
        "understood": result.understood,
        "state": state,
        "states": search.STATES,
        "code": code,
        "code_words": failures.words_of(code)[0] if code else "",
        "market_id": market_id,
        "reasons": failures.reasons() if state == "failed" and not code else [],
        "bulk_retries": bulk_retries.latest() if state == "failed" and not code else [],
        "may_act": page.may(request, "payout.retry"),
    }
    return page.render(request, "console/payouts.html", context)


@page.page("console.view")
def payout(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Show one payout and its timeline, with buttons for the actions that its state allows."""
    shown = timeline.of_payout(min(transaction_id, paging.LARGEST_ID), at=wiring.now(), policy=wiring.policy())
    if shown is None:
        raise Http404(f"There is no transaction {transaction_id}.")
    context = {
        "title": f"Payout {transaction_id}",
        "timeline": shown,
        "events": [(event, audit.ACTIONS.get(event.action, event.action)) for event in shown.events],
        "payout": shown.payout,
        "proposed": proposals.waiting_about(f"transaction:{transaction_id}"),
        "may_act": page.may(request, "payout.retry"),
        "may_decide": page.may(request, "payout.decide"),
        "is_mine": shown.verdict is not None and shown.verdict.proposed_by_id == request.user.pk,
    }
    working = shown.payout.status in (Transaction.Status.PENDING, Transaction.Status.PROCESSING)
    return page.render_live(request, "console/payout.html", context, every=WORKING if working else QUIET)


# --- one payout ------------------------------------------------------------------------------------------------------


def _question(
    payout: Transaction, title: str, effects: list[str], button: str, *, number: str = "To", **more: object
) -> page.Question:
    """Return the form of an action on a payout. `number` is the label of the number to which the payout goes now."""
    facts = [
        ("Payout", f"{payout.pk} · {payout.external_ref}"),
        ("Amount", kes(payout.amount)),
        (number, phone.masked(payout.receiver)),
        ("State now", f"{words(payout.status).capitalize()}. {payout.reason}".strip()),
    ]
    back = reverse("admin:payout", args=[payout.pk])
    return page.Question(title, effects, button, back, facts, **more)  # type: ignore[arg-type]


@page.page("payout.retry", posts=True)
def retry(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Send a failed payout again."""
    payout = _payout(transaction_id)
    question = _question(
        payout,
        f"Send payout {payout.pk} again",
        [
            "The payout returns to the queue. A new request goes to M-Pesa.",
            "If M-Pesa had accepted the failed request, we ask about that request first. No payout is paid twice.",
            "A payout that M-Pesa has received cannot be taken back.",
        ],
        "Send again",
    )

    def act(answers: dict[str, str]) -> str:
        retried = actions.retry(transaction_id=payout.pk, by=page.actor(request), at=wiring.now())
        wiring.after_retry(retried.pk)
        return f"Payout {retried.pk} is pending and will be sent again."

    return page.ask(request, question, act)


@page.page("payout.ask", posts=True)
def ask_now(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Send a status query about a payout to M-Pesa now."""
    payout = _payout(transaction_id)
    question = _question(
        payout,
        f"Ask M-Pesa about payout {payout.pk}",
        ["A status query goes to M-Pesa now instead of at its scheduled time. No money moves."],
        "Ask now",
    )

    def act(answers: dict[str, str]) -> str:
        actions.ask_now(transaction_id=payout.pk, by=page.actor(request), at=wiring.now())
        wiring.hint(wiring.ASK_ABOUT_DOUBTS)
        return "The query is sent now. Its answer appears on this page."

    return page.ask(request, question, act)


@page.page("payout.hold", posts=True)
def hold(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Hold a payout, so that it is not sent."""
    payout = _payout(transaction_id)
    question = _question(
        payout,
        f"Hold payout {payout.pk}",
        ["The payout is not sent until a person releases it. We keep the money and still owe it to the member."],
        "Hold it",
        fields=[page.Field("reason", "Reason", kind="area", help="Shown on the payout and in the audit trail.")],
    )

    def act(answers: dict[str, str]) -> str:
        actions.hold(transaction_id=payout.pk, reason=answers["reason"], by=page.actor(request), at=wiring.now())
        return f"Payout {payout.pk} is held. No money left."

    return page.ask(request, question, act)


@page.page("payout.release", posts=True)
def release(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Release a held or pending payout, so that it is due now."""
    payout = _payout(transaction_id)
    question = _question(
        payout,
        f"Release payout {payout.pk}",
        [
            "The payout is due at once and is sent over M-Pesa at the usual pace.",
            "A market's hold, the kill switch and M-Pesa's daily limit still apply.",
            *([differs] if (differs := actions.number_differs(payout)) else []),
        ],
        "Release it",
    )

    def act(answers: dict[str, str]) -> str:
        released = actions.release(transaction_id=payout.pk, by=page.actor(request), at=wiring.now())
        if released.status != Transaction.Status.PENDING:  # The member's number has changed.
            return f"Payout {payout.pk} is {words(released.status)}, and nothing is sent. {released.reason}"
        wiring.after_retry(payout.pk)
        return f"Payout {payout.pk} is due now."

    return page.ask(request, question, act)


@page.page("payout.to_wallet", posts=True)
def to_wallet(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Pay a failed or held payout to the member's wallet instead of over M-Pesa."""
    payout = _payout(transaction_id)
    second = proposals.second_approval(request, actions.TO_WALLET, payout.amount)
    question = _question(
        payout,
        f"Pay payout {payout.pk} to the wallet",
        [
            f"{kes(payout.amount)} goes to the member's wallet at once. Nothing is sent over M-Pesa.",
            "The member may bet with the money or withdraw it. This payout cannot be sent over M-Pesa any more.",
            *second,
        ],
        "Propose it" if second else "Pay to the wallet",
        text_to_type="wallet",
        fields=[page.Field("reason", "Reason", kind="area", required=False, help="Kept in the audit trail.")],
    )

    def act(answers: dict[str, str]) -> str:
        by, at = page.actor(request), wiring.now()
        done = actions.redirect_to_wallet(transaction_id=payout.pk, by=by, at=at, reason=answers["reason"])
        if isinstance(done, Proposed):
            return proposals.sent_to_another_person(done)
        return f"{kes(payout.amount)} is in the member's wallet."

    return page.ask(request, question, act)


@page.page("payout.reissue", posts=True)
def reissue_payout(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Propose to send a payout to the member's new number. Another person must confirm it."""
    payout = _payout(transaction_id)
    question = _question(
        payout,
        f"Re-issue payout {payout.pk} to the member's new number",
        [
            f"The next request goes to {phone.masked(payout.user.phone_number)}, the member's number now.",
            f"Nothing goes to {phone.masked(payout.receiver)} any more. It may belong to another person by now.",
            "Second approval needed: another person must confirm this from their own login. Until then no money moves.",
        ],
        "Propose the new number",
        number=OLD_NUMBER,
        fields=[page.Field("grounds", "Grounds", kind="area", help="How you checked that the number is the member's.")],
    )

    def act(answers: dict[str, str]) -> str:
        by, at = page.actor(request), wiring.now()
        reissue.propose(transaction_id=payout.pk, grounds=answers["grounds"], by=by, at=at)
        return "The new number is proposed. Another person must confirm it on this page. Until then no money moves."

    return page.ask(request, question, act)


# --- decisions on held payouts ---------------------------------------------------------------------------------------


@page.page("payout.decide", posts=True)
def decide(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Decide if a held payout in doubt was paid. If its amount needs two people, propose the decision."""
    payout = _payout(transaction_id)
    needs_second_person = decisions.needs_two(
        payout, wiring.policy(), paid=True, by=page.actor(request), at=wiring.now()
    )
    question = _question(
        payout,
        f"Decide payout {payout.pk}: paid or not paid",
        [
            "Paid: the payout is completed, and the books show that the money left the M-Pesa account.",
            "Not paid: the payout is failed, and we owe the money to the member again. It may be sent again.",
            "A wrong decision pays a member twice or not at all. Check M-Pesa's statement; do not guess.",
            "Second approval needed: another person must confirm your decision from their own login."
            if needs_second_person
            else "Paid takes effect at once. Not paid needs a second approval, because the member is then paid again.",
            "M-Pesa is asked about the receipt. If M-Pesa contradicts the decision, the decision is taken back.",
        ],
        "Propose the decision" if needs_second_person else "Decide",
        fields=[
            page.Field(
                "decision",
                "M-Pesa's statement shows that the payout was",
                choices=(("", "choose"), ("paid", "paid"), ("not_paid", "not paid")),
            ),
            page.Field("receipt", "M-Pesa's receipt, if paid", required=False, max_length=20),
            page.Field(
                "statement_until",
                "If not paid: the statement that you checked ends at",
                kind="datetime-local",
                help="Nairobi time. Leave it empty if M-Pesa has answered a status query since.",
                required=False,
            ),
            page.Field("grounds", "Grounds", kind="area", help="The statement and the line that you checked."),
        ],
        danger=True,
        text_to_type="decide",
    )

    def act(answers: dict[str, str]) -> str:
        receipt = _receipt(answers)
        proposed = decisions.decide_or_propose(
            transaction_id=payout.pk,
            finding=decisions.Finding(receipt, answers["grounds"], _statement_until(answers, wiring.now())),
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        if proposed is not None:
            return "Your decision is recorded. Another person must confirm it on this page. Until then no money moves."
        return f"Payout {payout.pk} is decided: {'paid' if receipt else 'not paid'}."

    return page.ask(request, question, act)


def _receipt(answers: dict[str, str]) -> str:
    """Return the receipt that the person typed, or "" if the decision is "not paid".

    Raises: decisions.NotToBeDecided, if the receipt does not fit the decision.
    """
    if answers["decision"] == "not_paid":
        if answers["receipt"]:
            raise decisions.NotToBeDecided(
                "A payout that was not paid has no receipt. Leave the receipt empty. Nothing was done."
            )
        return ""
    if not answers["receipt"].isalnum():
        raise decisions.NotToBeDecided("Type the receipt in M-Pesa's statement: letters and digits. Nothing was done.")
    return answers["receipt"].upper()


def _statement_until(answers: dict[str, str], at: datetime) -> datetime | None:
    """Return the end of the checked statement, or None if the person gave none.

    Raises: decisions.NotToBeDecided, if it is no time or lies in the future.
    """
    text = answers.get("statement_until", "")
    if not text:
        return None
    try:
        until = datetime.fromisoformat(text).replace(tzinfo=NAIROBI)
    except ValueError:
        until = at + timedelta(days=1)
    if until > at:
        raise decisions.NotToBeDecided("Give the end of the statement as a time in the past. Nothing was done.")
    return until


@page.page("payout.confirm", posts=True)
def confirm_decision(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Confirm another person's proposed decision on a payout. The confirmation carries it out."""
    payout = _payout(transaction_id)
    proposed = _proposed(payout)
    if proposed is None:
        return HttpResponseRedirect(reverse("admin:payout", args=[payout.pk]))
    is_reissue = proposed.kind == Verdict.Kind.REISSUE
    outcome = f"paid, receipt {proposed.receipt}" if proposed.receipt else "not paid"
    if is_reissue:
        outcome = f"send to the new number {phone.masked(proposed.phone_number)}"
    question = _question(
        payout,
        f"Confirm the decision on payout {payout.pk}",
        [
            f"{proposed.proposed_by} proposes: {outcome}. Grounds: {proposed.grounds}",
            "Check yourself that the number is the member's. Your confirmation sends the money to it."
            if is_reissue
            else "Check M-Pesa's statement yourself. Your confirmation carries out the decision and books it.",
        ],
        f"Confirm: {outcome}",
        number=OLD_NUMBER if is_reissue else "To",
        danger=True,
        text_to_type="decide",
    )

    def act(answers: dict[str, str]) -> str:
        by, at = page.actor(request), wiring.now()
        if is_reissue:
            reissue.confirm(verdict_id=proposed.pk, by=by, at=at)
            wiring.after_retry(payout.pk)
        else:
            decisions.confirm(verdict_id=proposed.pk, by=by, at=at, policy=wiring.policy())
        return f"Two people decided payout {payout.pk}: {outcome}."

    return page.ask(request, question, act)


@page.page("payout.reject", posts=True)
def reject_decision(request: HttpRequest, transaction_id: int) -> HttpResponse:
    """Reject a proposed decision on a payout. The person who proposed it withdraws it here."""
    payout = _payout(transaction_id)
    proposed = _proposed(payout)
    if proposed is None:
        return HttpResponseRedirect(reverse("admin:payout", args=[payout.pk]))
    verb = "Withdraw" if proposed.proposed_by_id == request.user.pk else "Reject"
    question = _question(
        payout,
        f"{verb} the proposed decision on payout {payout.pk}",
        ["The proposed decision is dropped. The payout stays as it is. No money moves."],
        f"{verb} it",
        fields=[page.Field("reason", "Reason", kind="area")],
    )

    def act(answers: dict[str, str]) -> str:
        decisions.refuse(verdict_id=proposed.pk, reason=answers["reason"], by=page.actor(request), at=wiring.now())
        return "The proposed decision is dropped. The payout stays as it is."

    return page.ask(request, question, act)


def _proposed(payout: Transaction) -> Verdict | None:
    """Return the proposed decision that waits for a second person, or None if there is none."""
    return payout.verdicts.filter(closed_at__isnull=True).select_related("proposed_by").first()


def _payout(transaction_id: int) -> Transaction:
    payout = Transaction.objects.filter(pk=transaction_id).first() if transaction_id <= paging.LARGEST_ID else None
    if payout is None:
        raise Http404(f"There is no transaction {transaction_id}.")
    return payout


_ACTIONS: dict[str, page.View] = {
    "retry": retry,
    "ask": ask_now,
    "hold": hold,
    "release": release,
    "wallet": to_wallet,
    "reissue": reissue_payout,
    "decide": decide,
    "confirm": confirm_decision,
    "refuse": reject_decision,
}
urls = [
    path("payouts/", payouts, name="payouts"),
    path("payouts/<int:transaction_id>/", payout, name="payout"),
    *(
        path(f"payouts/<int:transaction_id>/{name}/", view, name=f"payout_{name}")
        for name, view in _ACTIONS.items()
    ),
]  # fmt: skip
