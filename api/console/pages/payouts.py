"""Payouts: finding them, one's whole life, and every action on one or many, each asked before it is done."""

import hashlib
from datetime import timedelta

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone

from api.console import page, paging
from payments import wiring
from payments.models import Transaction, Verdict
from payments.payouts.operations import actions, decisions, failures, search, timeline
from users import phone

HOURS = (("", "any time"), ("1", "the last hour"), ("24", "the last day"), ("168", "the last week"))


@page.page("view_console")
def payouts(request: HttpRequest) -> HttpResponse:
    typed, state, code = (request.GET.get(name, "").replace("\x00", "")[:80] for name in ("q", "state", "code"))
    market_id = paging.number(request.GET.get("market", ""))
    found = search.search(typed, state=state, code=code, market_id=market_id)
    paged = paging.paged(request, found.payouts)
    context = {
        "title": "Payouts",
        "paged": paged,
        "typed": typed,
        "understood": found.understood,
        "state": state,
        "states": search.STATES,
        "code": code,
        "code_words": failures.words_of(code)[0] if code else "",
        "market_id": market_id,
        "reasons": failures.reasons() if state == "failed" and not code else [],
        "may_act": page.may(request, "act_on_payouts"),
    }
    return page.render(request, "console/payouts.html", context)


@page.page("view_console")
def payout(request: HttpRequest, transaction_id: int) -> HttpResponse:
    life = timeline.life(transaction_id) if transaction_id <= paging.LARGEST_ID else None
    if life is None:
        raise Http404(f"There is no transaction {transaction_id}.")
    context = {
        "title": f"Payout {transaction_id}",
        "life": life,
        "payout": life.payout,
        "may_act": page.may(request, "act_on_payouts"),
        "may_decide": page.may(request, "decide_payout"),
        "needs_two": decisions.needs_two(life.payout, wiring.policy()),
        "is_mine": life.verdict is not None and life.verdict.proposed_by_id == request.user.pk,
    }
    return page.render(request, "console/payout.html", context)


# --- one payout ------------------------------------------------------------------------------------------------------


def _question(found: Transaction, title: str, will: list[str], button: str, **more: object) -> page.Question:
    facts = [
        ("Payout", f"{found.pk} · {found.external_ref}"),
        ("Amount", f"KES {found.amount:,.2f}"),
        ("To", phone.masked(found.phone_number)),
        ("State now", f"{found.status.lower()}. {found.reason}"),
    ]
    back = reverse("admin:payout", args=[found.pk])
    return page.Question(title, will, button, back, facts, **more)  # type: ignore[arg-type]


@page.page("act_on_payouts", posts=True)
def retry(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    question = _question(
        found,
        f"Send payout {found.pk} again",
        [
            "The payout goes back into the queue and leaves with a new request to M-Pesa.",
            "Where M-Pesa had taken the failed request, we ask about that one first: it is never paid twice.",
            "It cannot be taken back once M-Pesa has it.",
        ],
        "Send again",
    )

    def act(answers: dict[str, str]) -> str:
        made = actions.retry(transaction_id=found.pk, by=page.actor(request), at=timezone.now())
        wiring.after_retry(made.pk)
        return f"Payout {made.pk} is pending and will be sent again."

    return page.ask(request, question, act)


@page.page("act_on_payouts", posts=True)
def ask_now(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    question = _question(
        found,
        f"Ask M-Pesa about payout {found.pk}",
        ["A question goes to M-Pesa now, rather than at its next turn. No money moves by asking."],
        "Ask now",
        money=False,
    )

    def act(answers: dict[str, str]) -> str:
        actions.ask_now(transaction_id=found.pk, by=page.actor(request), at=timezone.now())
        wiring.hint(wiring.ASK_ABOUT_DOUBTS)
        return "The question goes out now. Its answer shows on this page."

    return page.ask(request, question, act)


@page.page("act_on_payouts", posts=True)
def hold(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    question = _question(
        found,
        f"Hold payout {found.pk}",
        ["The payout does not leave until a person releases it. The money stays with us, owed to the member."],
        "Hold it",
        fields=[page.Field("reason", "Why", kind="area", help="It stands on the payout and in the audit trail.")],
    )

    def act(answers: dict[str, str]) -> str:
        reason, by = answers["reason"], page.actor(request)
        actions.hold(transaction_id=found.pk, reason=reason, by=by, at=timezone.now())
        return f"Payout {found.pk} is held. No money left."

    return page.ask(request, question, act)


@page.page("act_on_payouts", posts=True)
def release(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    question = _question(
        found,
        f"Release payout {found.pk}",
        [
            "The payout is due at once and leaves over M-Pesa, at the usual pace.",
            "A market's hold, the kill switch and M-Pesa's limit of the day still apply.",
        ],
        "Release it",
    )

    def act(answers: dict[str, str]) -> str:
        actions.release(transaction_id=found.pk, by=page.actor(request), at=timezone.now())
        wiring.after_retry(found.pk)
        return f"Payout {found.pk} is due now."

    return page.ask(request, question, act)


@page.page("act_on_payouts", posts=True)
def to_wallet(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    question = _question(
        found,
        f"Pay payout {found.pk} to the wallet",
        [
            f"KES {found.amount:,.2f} goes to the member's wallet here, at once, and nothing over M-Pesa.",
            "The member may bet with it or withdraw it. It cannot be sent as this payout any more.",
        ],
        "Pay to the wallet",
        typed="wallet",
    )

    def act(answers: dict[str, str]) -> str:
        actions.redirect_to_wallet(transaction_id=found.pk, by=page.actor(request), at=timezone.now())
        return f"KES {found.amount:,.2f} is in the member's wallet."

    return page.ask(request, question, act)


# --- what became of it -----------------------------------------------------------------------------------------------


@page.page("decide_payout", posts=True)
def decide(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    two = decisions.needs_two(found, wiring.policy())
    question = _question(
        found,
        f"Say what became of payout {found.pk}",
        [
            "Paid: the payout is completed, and the books say that the money left the M-Pesa account.",
            "Not paid: the payout is failed, the money is owed to the member again, and it may be sent again.",
            "A wrong word here pays a member twice, or not at all: look at M-Pesa's statement, not at a guess.",
            "The amount is large: your word waits until a second person confirms it from their own login."
            if two
            else "It is decided by your word alone.",
        ],
        "Give my word" if two else "Decide",
        fields=[
            page.Field(
                "verdict",
                "M-Pesa's statement shows that it was",
                choices=(("", "choose"), ("paid", "paid"), ("not_paid", "not paid")),
            ),
            page.Field("receipt", "M-Pesa's receipt, if paid", required=False, max_length=20),
            page.Field("grounds", "What you looked at", kind="area", help="Which statement, which line."),
        ],
        danger=True,
        typed="decide",
    )

    def act(answers: dict[str, str]) -> str:
        receipt = answers["receipt"].upper() if answers["verdict"] == "paid" else ""
        if answers["verdict"] == "paid" and not receipt.isalnum():
            raise decisions.NotToBeDecided("A payment has a receipt, of letters and digits, in M-Pesa's statement.")
        if answers["verdict"] == "not_paid" and answers["receipt"]:
            raise decisions.NotToBeDecided("What was not paid has no receipt.")
        waiting = decisions.give(
            transaction_id=found.pk,
            receipt=receipt,
            grounds=answers["grounds"],
            by=page.actor(request),
            at=timezone.now(),
            policy=wiring.policy(),
        )
        if waiting is not None:
            return "Your word is kept. A second person must confirm it on this page; until then no money moves."
        return f"Payout {found.pk} is decided: {'paid' if receipt else 'not paid'}."

    return page.ask(request, question, act)


@page.page("decide_payout", posts=True)
def confirm_verdict(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    verdict = _waiting(found)
    if verdict is None:
        return HttpResponseRedirect(reverse("admin:payout", args=[found.pk]))
    said = f"paid, receipt {verdict.receipt}" if verdict.receipt else "not paid"
    question = _question(
        found,
        f"Confirm the word on payout {found.pk}",
        [
            f"{verdict.proposed_by} says that it was {said}, on these grounds: {verdict.grounds}",
            "Look for yourself in M-Pesa's statement. With your word it is decided and booked.",
        ],
        f"Confirm: it was {said}",
        danger=True,
        typed="decide",
    )

    def act(answers: dict[str, str]) -> str:
        decisions.confirm(verdict_id=verdict.pk, by=page.actor(request), at=timezone.now(), policy=wiring.policy())
        return f"Payout {found.pk} is decided by two people: {said}."

    return page.ask(request, question, act)


@page.page("decide_payout", posts=True)
def refuse_verdict(request: HttpRequest, transaction_id: int) -> HttpResponse:
    found = _found(transaction_id)
    verdict = _waiting(found)
    if verdict is None:
        return HttpResponseRedirect(reverse("admin:payout", args=[found.pk]))
    question = _question(
        found,
        f"Take the word on payout {found.pk} back",
        ["The word that waits is taken back. The payout stays held, its fate open; no money moves."],
        "Take it back",
        fields=[page.Field("reason", "Why", kind="area")],
        money=False,
    )

    def act(answers: dict[str, str]) -> str:
        decisions.refuse(verdict_id=verdict.pk, reason=answers["reason"], by=page.actor(request), at=timezone.now())
        return "The word is taken back. The payout is held as before."

    return page.ask(request, question, act)


def _waiting(found: Transaction) -> Verdict | None:
    return found.verdicts.filter(closed_at__isnull=True).select_related("proposed_by").first()


# --- many payouts ----------------------------------------------------------------------------------------------------


@page.page("act_on_payouts", posts=True)
def retry_many(request: HttpRequest) -> HttpResponse:
    """A look at what sending many failed payouts again would do; then, on the same list, the doing."""
    asked = request.POST if request.method == "POST" else request.GET
    code = asked.get("code", "").replace("\x00", "")[:20]
    market_id = paging.number(asked.get("market", ""))
    hours = paging.number(asked.get("hours", ""))
    at = timezone.now()
    since = at - timedelta(hours=min(hours, 8_784)) if hours else None
    plan = failures.plan(failures.chosen(code=code, market_id=market_id, since=since))
    seen = hashlib.sha256(repr(plan.transaction_ids).encode()).hexdigest()
    words, advice, helps = failures.words_of(code) if code else ("", "", True)
    question = page.Question(
        title="Send failed payouts again",
        will=_will(plan, words, advice, helps),
        button=f"Send {len(plan.transaction_ids)} again",
        back=reverse("admin:payouts") + "?state=failed",
        template="console/retry_many.html",
        more={
            "plan": plan,
            "seen": seen,
            "code": code,
            "market_id": market_id or "",
            "hours": str(hours or ""),
            "hours_choices": HOURS,
            "reasons": failures.reasons(),
        },
        typed="send again",
    )

    def act(answers: dict[str, str]) -> str:
        if not plan.transaction_ids:
            raise actions.PayoutNotRetryable("There is nothing to send again.")
        if request.POST.get("seen") != seen:
            raise actions.PayoutNotRetryable("The list has changed since you looked: look again.")
        done = failures.retry_each(transaction_ids=plan.transaction_ids, by=page.actor(request), at=timezone.now())
        if done.retried:
            wiring.after_retry()
        passed = "".join(f" Passed over: {number}, as {why}." for why, number in done.skipped.items())
        return f"{len(done.retried)} payouts will be sent again.{passed}"

    return page.ask(request, question, act)


def _will(plan: failures.Plan, words: str, advice: str, helps: bool) -> list[str]:
    sentences = [f"{len(plan.transaction_ids)} payouts, KES {plan.amount:,.2f} in all, leave again over M-Pesa."]
    sentences += [f"{number} are passed over: {why}." for why, number in plan.skipped.items()]
    if plan.beyond:
        sentences.append(f"{plan.beyond} more wait for the next press: {failures.AT_ONCE} go at once.")
    if words:
        sentences.append(f"They failed because: {words} Advice: {advice}")
    if not helps:
        sentences.append("Sending these again unchanged will most likely fail again, and M-Pesa may charge for it.")
    return sentences


def _found(transaction_id: int) -> Transaction:
    found = Transaction.objects.filter(pk=transaction_id).first() if transaction_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no transaction {transaction_id}.")
    return found


_ACTIONS: dict[str, page.View] = {
    "retry": retry,
    "ask": ask_now,
    "hold": hold,
    "release": release,
    "wallet": to_wallet,
    "decide": decide,
    "confirm": confirm_verdict,
    "refuse": refuse_verdict,
}
urls = [
    path("payouts/", payouts, name="payouts"),
    path("payouts/retry/", retry_many, name="payouts_retry"),
    path("payouts/<int:transaction_id>/", payout, name="payout"),
    *(
        path(f"payouts/<int:transaction_id>/{name}/", view, name=f"payout_{name}")
        for name, view in _ACTIONS.items()
    ),
]  # fmt: skip
