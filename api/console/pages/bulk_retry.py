"""Page of bulk retries: the failed payouts that would be sent again, and the progress of earlier bulk retries."""

import hashlib
from datetime import timedelta

from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page, paging
from api.console.templatetags.console import counted, kes
from payments import wiring
from payments.payouts.operations import actions, bulk_retries, failures

# Seconds between two refreshes of the progress: while a bulk retry goes on, and otherwise.
WORKING, QUIET = 3, 15
HOURS = (("", "any time"), ("1", "the last hour"), ("24", "the last day"), ("168", "the last week"))


@page.page("payout.retry", posts=True)
def retry_many(request: HttpRequest) -> HttpResponse:
    """Show the failed payouts that a bulk retry would send. A POST is refused if the list has changed since."""
    asked = request.POST if request.method == "POST" else request.GET
    code = asked.get("code", "").replace("\x00", "")[:20]
    market_id = paging.number(asked.get("market", ""))
    hours = paging.number(asked.get("hours", ""))
    at = wiring.now()
    since = at - timedelta(hours=min(hours, 8_784)) if hours else None
    plan = failures.plan(failures.chosen(code=code, market_id=market_id, since=since), by=page.actor(request), at=at)
    seen = hashlib.sha256(repr([plan.transaction_ids, plan.beyond]).encode()).hexdigest()
    question = page.Question(
        title="Send failed payouts again",
        effects=_effects(plan, code),
        button=f"Send {counted(len(plan.transaction_ids) + plan.beyond, 'payout')} again",
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
            "bulk_retries": bulk_retries.latest(),
        },
        text_to_type="send again",
    )

    def act(answers: dict[str, str]) -> str:
        if not plan.transaction_ids:
            raise actions.PayoutNotRetryable("No payout on this list may be sent again. Nothing was done.")
        if request.POST.get("seen") != seen:
            raise actions.PayoutNotRetryable(
                "The list has changed since the preview. Nothing was done. Check the new list."
            )
        by = page.actor(request)
        outcome = bulk_retries.start(code=code, market_id=market_id, since=since, by=by, at=at)
        wiring.after_bulk_retry(retried=len(outcome.retried), remaining=outcome.remaining)
        skipped = "".join(f" Skipped {counted(number, 'payout')}: {why}." for why, number in outcome.skipped.items())
        rest = ""
        if outcome.remaining:
            rest = f" {_follow(outcome.remaining)}"
        return f"{counted(len(outcome.retried), 'payout')} will be sent again.{skipped}{rest}"

    return page.ask(request, question, act, done=reverse("admin:payouts_retries"))


@page.page("console.view")
def retries(request: HttpRequest) -> HttpResponse:
    """Show the latest bulk retries and their progress. The page with the form must not change under its reader."""
    latest = bulk_retries.latest()
    working = any(bulk.finished_at is None for bulk in latest)
    context = {"title": "Bulk retries", "bulk_retries": latest}
    return page.render_live(request, "console/retries.html", context, every=WORKING if working else QUIET)


def _effects(plan: failures.Plan, code: str) -> list[str]:
    """Return the effects of a bulk retry in sentences."""
    number = len(plan.transaction_ids)
    verb = "is" if number == 1 else "are"
    sentences = [f"{counted(number, 'payout')}, {kes(plan.amount)} in total, {verb} sent again over M-Pesa."]
    sentences += [f"Skipped {counted(skipped, 'payout')}: {why}." for why, skipped in plan.skipped.items()]
    if plan.beyond:
        sentences.append(f"{_follow(plan.beyond)} The next page shows the progress.")
    if code:
        meaning, advice, retry_helps = failures.words_of(code)
        sentences.append(f"Reason for failure: {meaning} Advice: {advice}")
        if not retry_helps:
            sentences.append("These payouts will most likely fail again, and M-Pesa may charge for each request.")
    return sentences


def _follow(number: int) -> str:
    return f"{counted(number, 'more payout')} {'follows' if number == 1 else 'follow'} in the background."


urls = [
    path("payouts/retry/", retry_many, name="payouts_retry"),
    path("payouts/retries/", retries, name="payouts_retries"),
]
