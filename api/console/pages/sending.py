"""What pauses the sending, and the switch that stops all of it."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils import timezone

from api.console import page
from payments import wiring
from payments.models import Breaker
from payments.payouts import breakers

WORDS = {
    "switch": "A person switched all sending off.",
    "no_float": "The M-Pesa account is short of funds. Top up the Utility account; sending resumes by itself.",
    "credentials": "M-Pesa refuses our operator. Renew its password; sending resumes by itself.",
    "throttle": "M-Pesa asks us to slow down. Sending resumes by itself.",
    "network": "M-Pesa cannot be reached. Sending resumes by itself when it can.",
    "doubt": "Too many of the latest requests are in doubt. One payout at a time probes whether that is over.",
    "failures": "Too many of the latest requests failed. One payout at a time probes whether that is over.",
}


@page.page("view_console")
def sending(request: HttpRequest) -> HttpResponse:
    opened = list(Breaker.objects.filter(opened_at__isnull=False).select_related("opened_by").order_by("opened_at"))
    context = {
        "title": "Sending",
        "breakers": [(breaker, WORDS[breaker.cause]) for breaker in opened],
        "is_off": any(breaker.cause == Breaker.Cause.SWITCH for breaker in opened),
        "may_switch": page.may(request, "switch_sending"),
        "paused_by_setting": settings.PAYOUTS_PAUSED,
    }
    return page.render(request, "console/sending.html", context)


@page.page("switch_sending", posts=True)
def switch_off(request: HttpRequest) -> HttpResponse:
    question = page.Question(
        title="Stop all sending",
        will=[
            "No payout leaves from now on, of any market, until somebody switches sending on again.",
            "Requests that M-Pesa has already go on: they cannot be taken back. Their results are still booked.",
            "Bets, resolving, settling and questions to M-Pesa go on. Nothing is lost: payouts wait.",
        ],
        fields=[page.Field("reason", "Why", kind="area", help="It stands in the audit trail and on the home page.")],
        typed="stop",
        button="Stop all sending",
        danger=True,
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        breakers.switch_off(reason=answers["reason"], by=page.actor(request), at=timezone.now())
        return "Sending is off. No money leaves until it is switched on again."

    return page.ask(request, question, act)


@page.page("switch_sending", posts=True)
def switch_on(request: HttpRequest) -> HttpResponse:
    question = page.Question(
        title="Start sending again",
        will=[
            "Payouts that are due leave from now on, at the usual pace.",
            "Other breakers that are open stay open: they close by themselves when what opened them is over.",
        ],
        button="Start sending",
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        breakers.switch_on(by=page.actor(request), at=timezone.now())
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)
        return "Sending is on."

    return page.ask(request, question, act)


urls = [
    path("sending/", sending, name="sending"),
    path("sending/stop/", switch_off, name="sending_off"),
    path("sending/start/", switch_on, name="sending_on"),
]
