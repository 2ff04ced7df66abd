"""Page of the kill switch, which stops all sending, and of the breakers, which pause it."""

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page
from api.console.pages import proposals
from api.console.templatetags.console import kes
from payments import wiring
from payments.models import Breaker, Settlement
from payments.payouts import breakers
from payments.payouts.operations import starting
from payments.payouts.sending import canary
from payments.settlement import market_sending
from users.proposals import Proposed

ADVICE = {
    "switch": "No payout is sent until a person starts sending again.",
    "no_float": "Top up the M-Pesa Utility account. Sending resumes by itself.",
    "credentials": "Renew the initiator's password at M-Pesa. Sending resumes by itself.",
    "throttle": "Nothing to do. Sending resumes by itself.",
    "network": "Check our own network. Sending resumes by itself once M-Pesa can be reached.",
    "doubt": "Sending tries one payout at a time and resumes by itself.",
    "failures": "Sending tries one payout at a time and resumes by itself.",
    "settings": "Correct the setting that the reason names, then restart the workers. Sending resumes by itself.",
    "product": "Ask Safaricom to check our account and its products. Sending resumes by itself.",
    "silence": "Sending tries one payout at a time and resumes by itself once M-Pesa answers.",
    "orphan": "Payouts wait. Find each such request in M-Pesa's statement, then end the stop.",
    "restore": "Payouts wait. Follow the runbook, “After a restore from a backup”. Two people then decide.",
}
# Stops that this page ends, by their name in the address. Two people end the stop after a restore.
STOPS = {Breaker.Cause.ORPHAN.value: Breaker.Cause.ORPHAN}


@page.page("console.view")
def sending(request: HttpRequest) -> HttpResponse:
    """Show the switch and the open breakers."""
    opened = list(Breaker.objects.filter(opened_at__isnull=False).select_related("opened_by").order_by("opened_at"))
    now = wiring.now()
    context = {
        "title": "Sending",
        "now": now,
        "stopped": settings.PAYOUTS_PAUSED or any(breaker.probe_at is None for breaker in opened),
        "breakers": [(breaker, ADVICE[breaker.cause]) for breaker in opened if breaker.cause != Breaker.Cause.SWITCH],
        "switch": next((breaker for breaker in opened if breaker.cause == Breaker.Cause.SWITCH), None),
        "may_switch": page.may(request, "sending.off"),
        "stops": list(STOPS),
        "proposed": {
            cause.value: waiting
            for cause in starting.ACTS
            if (waiting := proposals.waiting_about(f"breaker:{cause}")) is not None
        },
        "releases": canary.stopped(at=now, policy=wiring.policy()),
        "paused_by_setting": settings.PAYOUTS_PAUSED,
    }
    return page.render_live(request, "console/sending.html", context, every=5)


@page.page("sending.off", posts=True)
def switch_off(request: HttpRequest) -> HttpResponse:
    """Ask for a reason and stop all sending."""
    question = page.Question(
        title="Stop all sending",
        effects=[
            "From now on no payout of any market is sent, until a person starts sending again.",
            "Requests that M-Pesa already has cannot be taken back. Their results are still booked.",
            "Bets, resolutions, settlements and status queries continue. Payouts wait. No money is lost.",
        ],
        fields=[page.Field("reason", "Reason", kind="area", help="Shown on the home page and in the audit trail.")],
        text_to_type="stop",
        button="Stop all sending",
        danger=True,
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        breakers.switch_off(reason=answers["reason"], by=page.actor(request), at=wiring.now())
        return "Sending is off. No payout is sent until a person starts sending again."

    return page.ask(request, question, act)


@page.page("sending.on", posts=True)
def switch_on(request: HttpRequest) -> HttpResponse:
    """Ask for confirmation and start sending again."""
    waiting = starting.waiting_sum()
    second = proposals.second_approval(request, "sending.on", waiting)
    question = page.Question(
        title="Start sending again",
        effects=[
            "From now on due payouts are sent, at the usual pace.",
            "Open breakers stay open. A breaker closes by itself when its cause is over.",
            *second,
        ],
        facts=[("Payouts that wait", kes(waiting))],
        button="Propose it" if second else "Start sending",
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        return _start(request, Breaker.Cause.SWITCH, "Sending is on.")

    return page.ask(request, question, act)


@page.page("sending.lift", posts=True)
def lift(request: HttpRequest, cause: str) -> HttpResponse:
    """Ask for a reason and end a stop that only a person ends."""
    if cause not in STOPS:
        raise Http404("There is no such stop.")
    waiting = starting.waiting_sum()
    second = proposals.second_approval(request, "sending.lift", waiting)
    stopped = Breaker.objects.filter(cause=cause, opened_at__isnull=False).first()
    question = page.Question(
        title="End the stop",
        effects=[
            "From now on due payouts are sent again, unless another stop or an open breaker pauses them.",
            "End the stop only after you have compared the requests in question with M-Pesa's statement.",
            *second,
        ],
        facts=[
            ("Stopped because", stopped.reason if stopped else "This stop is not in force."),
            ("Payouts that wait", kes(waiting)),
        ],
        fields=[page.Field("reason", "Reason", kind="area", help="What you checked. It is kept in the audit trail.")],
        text_to_type="send",
        button="Propose it" if second else "End the stop",
        danger=True,
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        return _start(request, STOPS[cause], "The stop is ended. Due payouts are sent again.", answers["reason"])

    return page.ask(request, question, act)


def _start(request: HttpRequest, cause: Breaker.Cause, report: str, reason: str = "") -> str:
    """End a stop, or propose it. Return the sentence for the person."""
    return _reported(starting.start(cause, people=[page.actor(request)], reason=reason, at=wiring.now()), report)


def _reported(done: object, report: str) -> str:
    """Wake the workers after a start, and return the sentence for the person. A proposal waits for another person."""
    if isinstance(done, Proposed):
        return proposals.sent_to_another_person(done)
    wiring.after_approval(done)
    return report


@page.page("sending.release", posts=True)
def release(request: HttpRequest, settlement_id: int) -> HttpResponse:
    """Ask for a reason and release the payouts of a settlement whose first payouts ended badly or are in doubt."""
    settlement = Settlement.objects.select_related("market").filter(pk=settlement_id).first()
    if settlement is None:
        raise Http404("There is no such settlement.")
    question = page.Question(
        title="Let the release go on",
        effects=[
            "From now on all payouts of this settlement are sent, at the usual pace.",
            "Look at its first payouts before. If all of them failed for one cause, the others fail too.",
            *proposals.second_approval(request, market_sending.RELEASE, starting.waiting_sum(settlement)),
        ],
        facts=[
            ("Market", settlement.market),
            ("Stopped because", settlement.canary_stop_reason or "It is not stopped."),
        ],
        fields=[page.Field("reason", "Reason", kind="area", help="What you checked. It is kept in the audit trail.")],
        text_to_type="send",
        button="Let it go on",
        danger=True,
        back=reverse("admin:sending"),
    )

    def act(answers: dict[str, str]) -> str:
        by, reason = page.actor(request), answers["reason"]
        done = market_sending.let_go(settlement_id=settlement_id, by=by, reason=reason, at=wiring.now())
        return _reported(done, "The release goes on. Its payouts are sent now.")

    return page.ask(request, question, act)


urls = [
    path("sending/", sending, name="sending"),
    path("sending/stop/", switch_off, name="sending_off"),
    path("sending/start/", switch_on, name="sending_on"),
    path("sending/release/<int:settlement_id>/", release, name="sending_release"),
    path("sending/lift/<str:cause>/", lift, name="sending_lift"),
]
