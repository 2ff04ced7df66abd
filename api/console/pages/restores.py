"""Pages about restores of the database: payouts that may have left, and the decision of two people about them."""

from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page
from payments import wiring
from payments.models import RestoreDecision
from payments.payouts.restores import asking, decisions

STATES = {
    "LISTING": "The payouts that may have left are being listed. No payout leaves.",
    "ASKING": "We ask M-Pesa about each payout that may have left. All other payouts leave as usual.",
    "STOPPED": "We ask M-Pesa about each payout that may have left. No payout leaves until two people have decided.",
    "DECIDED": "Two people have decided. A payout leaves as soon as M-Pesa says that it does not know it.",
}


@page.page("console.view")
def restores(request: HttpRequest) -> HttpResponse:
    """Show the restores, the number of payouts that are asked about, and the decisions that wait."""
    context = {
        "title": "Restores",
        "restores": [(restore, count, STATES[restore.state]) for restore, count in asking.progress()],
        "waiting": decisions.waiting(),
        "closed": decisions.closed(limit=20),
        "may_decide": page.may(request, "payout.decide"),
    }
    return page.render_live(request, "console/restores.html", context, every=10)


@page.page("restore.decide", posts=True)
def decide(request: HttpRequest) -> HttpResponse:
    """Ask for the grounds, and store the first person's decision."""
    question = page.Question(
        title="Decide about payouts after a restore",
        effects=[
            "You state that M-Pesa's statement shows no payment for these payouts, from the restore's time on.",
            "A second person must confirm this. M-Pesa is then asked once more about each payout.",
            "A payout that M-Pesa does not know is sent. If you are wrong, a member may be paid twice.",
        ],
        fields=[
            page.Field("reference", "Payouts", help="Write all, or one payout's reference.", value="all"),
            page.Field("grounds", "Grounds", kind="area", help="The statement that you read. Kept in the audit trail."),
        ],
        text_to_type="not sent",
        button="Propose this decision",
        danger=True,
        back=reverse("admin:restores"),
    )

    def act(answers: dict[str, str]) -> str:
        decisions.propose(
            reference=answers["reference"], grounds=answers["grounds"], by=page.actor(request), at=wiring.now()
        )
        return "Your decision is stored. Nothing leaves until another person confirms it."

    return page.ask(request, question, act)


@page.page("restore.confirm", posts=True)
def confirm(request: HttpRequest) -> HttpResponse:
    """Ask the second person to confirm or to refuse a decision."""
    waiting = decisions.waiting()
    question = page.Question(
        title="Confirm a decision after a restore",
        effects=[
            "If you confirm, M-Pesa is asked once more. Payouts that M-Pesa does not know are then sent.",
            "Compare M-Pesa's statement with the payouts yourself before you confirm.",
            "If you refuse, nothing leaves, and the payouts go on waiting.",
        ],
        fields=[
            page.Field(
                "decision",
                "Decision",
                choices=[("", "choose"), *((str(decision.pk), _sentence(decision)) for decision in waiting)],
            ),
            page.Field("answer", "Your answer", choices=[("", "choose"), ("confirm", "Confirm"), ("refuse", "Refuse")]),
            page.Field("reason", "Reason, if you refuse", kind="area", required=False),
        ],
        text_to_type="second",
        button="Answer",
        danger=True,
        back=reverse("admin:restores"),
    )

    def act(answers: dict[str, str]) -> str:
        chosen, at = int(answers["decision"]), wiring.now()
        if answers["answer"] == "refuse":
            decisions.refuse(decision_id=chosen, by=page.actor(request), at=at, reason=answers["reason"])
            return "The decision is refused. The payouts go on waiting."
        decisions.confirm(decision_id=chosen, by=page.actor(request), at=at)
        wiring.after_retry()
        return "The decision is confirmed. M-Pesa is asked once more, and payouts that it does not know then leave."

    return page.ask(request, question, act)


def _sentence(decision: RestoreDecision) -> str:
    payouts = decision.transaction.external_ref if decision.transaction is not None else "all payouts"
    return f"Restore {decision.restore_id}, {payouts}: not sent. {decision.proposed_by}: {decision.grounds}"


urls = [
    path("restores/", restores, name="restores"),
    path("restores/decide/", decide, name="restore_decide"),
    path("restores/confirm/", confirm, name="restore_confirm"),
]
