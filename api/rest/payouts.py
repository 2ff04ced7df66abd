"""Staff calls for one payout: its state with the plan of its win, and the re-issue to the member's new number."""

from typing import Any

from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import LARGEST_ID, Body, StrictInteger, StrictText, actor, checked
from payments import wiring
from payments.models import Attempt, Verdict
from payments.payouts.operations import decisions, reissue, timeline, tranches
from users import phone

REASON = 300


class ReissueBody(Body):
    transaction_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    grounds = StrictText(max_length=REASON)


class ConfirmReissueBody(Body):
    decision_id = StrictInteger(min_value=1, max_value=LARGEST_ID)


class RejectReissueBody(ConfirmReissueBody):
    reason = StrictText(max_length=REASON)


@api_view(["GET"])
@permission_classes([act("console.view")])
def payout_status(request: Request, transaction_id: int) -> Response:
    """`GET /api/payments/admin/payouts/<id>/`: one payout, its requests, and the days on which a large win leaves."""
    shown = None
    if transaction_id <= LARGEST_ID:
        shown = timeline.of_payout(transaction_id, at=wiring.now(), policy=wiring.policy())
    if shown is None:
        raise NotFound(f"There is no transaction {transaction_id}.")
    payout = shown.payout
    return Response(
        {
            "transaction_id": payout.pk,
            "type": payout.type,
            "market_id": payout.settlement.market_id if payout.settlement else None,
            "user_id": payout.user_id,
            "amount": f"{payout.amount:.2f}",
            "owed": f"{shown.owed:.2f}",
            "status": payout.status,
            "goes_to": payout.goes_to,
            "phone": phone.masked(payout.receiver),
            "reissued": bool(payout.reissued_to),
            "external_ref": payout.external_ref,
            "tranche": payout.tranche,
            "receipt": payout.receipt or None,
            "due_at": payout.due_at,
            "explanation": shown.words,
            "advice": shown.advice,
            "actions": sorted(shown.actions),
            "waits_for": [{"cause": wait.words, "until": wait.until} for wait in shown.waits],
            "requests": [_request_body(attempt) for attempt in shown.attempts],
            "decision": None if shown.verdict is None else _decision_body(shown.verdict),
            "plan": None if shown.plan is None else _plan_body(shown.plan),
        }
    )


@api_view(["POST"])
@permission_classes([act("payout.reissue")])
def reissue_payout(request: Request) -> Response:
    """`POST …/admin/reissue-payout/` {transaction_id, grounds}: propose to send a payout to the member's new number.

    Answers 202: no money moves until another person has confirmed it.
    """
    body = checked(ReissueBody(data=request.data))
    verdict = reissue.propose(**body, by=actor(request), at=wiring.now())
    return Response({"status": "proposed"} | _decision_body(verdict), status=202)


@api_view(["POST"])
@permission_classes([act("payout.confirm")])
def confirm_reissue(request: Request) -> Response:
    """`POST …/admin/confirm-reissue/` {decision_id}: confirm another person's re-issue. The payout is then sent."""
    body = checked(ConfirmReissueBody(data=request.data))
    payout = reissue.confirm(verdict_id=body["decision_id"], by=actor(request), at=wiring.now())
    wiring.after_retry(payout.pk)
    return Response(
        {
            "status": "reissued",
            "transaction_id": payout.pk,
            "new_status": payout.status,
            "phone": phone.masked(payout.receiver),
        }
    )


@api_view(["POST"])
@permission_classes([act("payout.reject")])
def reject_reissue(request: Request) -> Response:
    """`POST …/admin/reject-reissue/` {decision_id, reason}: reject another person's re-issue, or take back your own."""
    body = checked(RejectReissueBody(data=request.data))
    rejected = decisions.refuse(
        verdict_id=body["decision_id"],
        kind=Verdict.Kind.REISSUE,
        reason=body["reason"],
        by=actor(request),
        at=wiring.now(),
    )
    return Response({"status": "rejected", "decision_id": rejected.pk, "transaction_id": rejected.transaction_id})


def _decision_body(verdict: Verdict) -> dict[str, Any]:
    """Return the JSON of a decision that waits for a second person."""
    return {
        "decision_id": verdict.pk,
        "transaction_id": verdict.transaction_id,
        "kind": verdict.kind,
        "phone": phone.masked(verdict.phone_number) if verdict.phone_number else None,
        "receipt": verdict.receipt or None,
        "grounds": verdict.grounds,
        "proposed_by": verdict.proposed_by_id,
        "proposed_at": verdict.proposed_at,
    }


def _request_body(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "originator_conversation_id": attempt.originator_conversation_id,
        "state": attempt.state,
        "phone": phone.masked(attempt.phone_number),
        "first_sent_at": attempt.first_sent_at,
        "closed_at": attempt.closed_at,
        "result_code": attempt.result_code or None,
        "receipt": attempt.receipt or None,
    }


def _plan_body(plan: tranches.Plan) -> dict[str, Any]:
    return {
        "tranches": plan.tranches,
        "amount": f"{plan.amount:.2f}",
        "waiting": plan.waiting,
        "days": [{"day": day.day, "count": day.count, "amount": f"{day.amount:.2f}"} for day in plan.days],
        "ends_on": plan.ends_on,
    }
