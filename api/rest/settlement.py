"""The operator's settlement calls: resolve, void, watch, retry. Staff only; each calls one service."""

from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.core.validators import URLValidator
from django.utils import timezone
from rest_framework import serializers
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import NotFound
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.fields import LARGEST_ID, Body, StrictInteger, StrictText, Weights, actor, checked
from payments import wiring
from payments.payouts.operations import actions, in_doubt
from payments.settlement import proposals, resolutions, status


class ResolveBody(Body):
    """`outcome` for one winner; `weights` with `rule` JOINT or SPLIT for several."""

    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    outcome = StrictText(max_length=120, required=False)
    weights = Weights(required=False)
    rule = serializers.ChoiceField(choices=("JOINT", "SPLIT"), required=False)
    evidence_url = StrictText(
        max_length=500, required=False, validators=[URLValidator(schemes=["http", "https"])], default=""
    )
    evidence_note = StrictText(max_length=1000, required=False, default="")
    effective_close_at = serializers.DateTimeField(required=False, default=None)
    preview_hash = StrictText(max_length=64, required=False, default=None)

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        if ("outcome" in body) == ("weights" in body):
            raise serializers.ValidationError({"outcome": ["Give either outcome, or weights and rule."]})
        if ("weights" in body) != ("rule" in body):
            raise serializers.ValidationError({"rule": ["Weights need a rule, JOINT or SPLIT; an outcome needs none."]})
        return body


class VoidBody(Body):
    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    reason = serializers.ChoiceField(choices=resolutions.VOID_REASONS)
    preview_hash = StrictText(max_length=64, required=False, default=None)


class RetryBody(Body):
    transaction_id = StrictInteger(min_value=1, max_value=LARGEST_ID)


class RetryFailedBody(Body):
    hours = StrictInteger(min_value=1, max_value=720, default=24)


@api_view(["POST"])
@permission_classes([IsAdminUser])
def resolve_market(request: Request) -> Response:
    """`POST /api/markets/admin/resolve/` {market_id, outcome}: declare the outcome; the rest follows by itself.

    Several winners: {market_id, weights, rule}. With evidence_url, evidence_note, effective_close_at, preview_hash, as
    wanted. 202 where it takes a second person.
    """
    body = checked(ResolveBody(data=request.data))
    outcome = body.get("outcome")
    resolved = resolutions.resolve(
        market_id=body["market_id"],
        rule=body.get("rule", "WINNER"),
        weights={outcome: Decimal(100)} if outcome is not None else body["weights"],
        by=actor(request),
        at=timezone.now(),
        policy=wiring.policy(),
        grounds=resolutions.Grounds(url=body["evidence_url"], note=body["evidence_note"]),
        effective_close_at=body["effective_close_at"],
        preview_hash=body["preview_hash"],
    )
    if isinstance(resolved, proposals.Proposed):
        return proposed(resolved)
    wiring.after_decision(resolved)
    return Response(
        {
            "status": "resolved",
            "market_id": resolved.market_id,
            "outcome": outcome,
            "settlement_task_id": resolved.public_id,
        }
    )


@api_view(["POST"])
@permission_classes([IsAdminUser])
def void_market(request: Request) -> Response:
    """`POST /api/markets/admin/void/` {market_id, reason}: cancel the market; every stake goes back to its wallet."""
    body = checked(VoidBody(data=request.data))
    resolved = resolutions.resolve(
        market_id=body["market_id"],
        rule="VOID",
        weights={},
        by=actor(request),
        at=timezone.now(),
        policy=wiring.policy(),
        reason=body["reason"],
        preview_hash=body["preview_hash"],
    )
    if isinstance(resolved, proposals.Proposed):
        return proposed(resolved)
    wiring.after_decision(resolved)
    return Response(
        {
            "status": "void",
            "market_id": resolved.market_id,
            "reason": body["reason"],
            "settlement_task_id": resolved.public_id,
        }
    )


def proposed(proposal: proposals.Proposed) -> Response:
    """202: nothing is decided yet, a second member of staff approves it by the same hash."""
    return Response(
        {
            "status": "proposed",
            "proposal_id": proposal.proposal_id,
            "market_id": proposal.market_id,
            "kind": proposal.kind,
            "preview_hash": proposal.preview_hash,
        },
        status=202,
    )


@api_view(["GET"])
@permission_classes([IsAdminUser])
def settlement_status(request: Request, market_id: int) -> Response:
    """`GET …/admin/settlement-status/<market_id>/`: how much went where, in six states that do not overlap."""
    found = status.settlement_status(market_id) if market_id <= LARGEST_ID else None
    if found is None:
        raise NotFound(f"There is no market {market_id}.")
    amounts = {name: amount for name, (amount, _) in found.by_state.items()}
    return Response(
        {
            "market_id": found.market_id,
            "status": found.status,
            "outcome": found.outcome,
            "resolved_at": found.resolved_at,
            "settled_at": found.settled_at,
            "release_at": found.release_at,
            "pool": f"{found.pool:.2f}",
            "platform_fee": f"{found.platform_fee:.2f}",
            "total_payouts": f"{found.total_payouts:.2f}",
            "completed_payouts": f"{amounts['completed']:.2f}",
            "failed_payouts": f"{amounts['failed']:.2f}",
            "pending_payouts": f"{amounts['pending'] + amounts['processing']:.2f}",
            "in_doubt_payouts": f"{amounts['in_doubt']:.2f}",
            "held_payouts": f"{amounts['held']:.2f}",
            "payout_count": {name: count for name, (_, count) in found.by_state.items()},
            "progress": asdict(found.progress),
            "limbo": [
                {
                    "transaction_id": one.transaction_id,
                    "amount": f"{one.amount:.2f}",
                    "since": one.since,
                    "last_asked_at": one.last_asked_at,
                    "next_question_at": one.next_question_at,
                }
                for one in in_doubt.in_doubt(market_id)[:100]
            ],
        }
    )


@api_view(["POST"])
@permission_classes([IsAdminUser])
def retry_payout(request: Request) -> Response:
    """`POST …/admin/retry-payout/` {transaction_id}: send a failed payout again."""
    body = checked(RetryBody(data=request.data))
    payout = actions.retry(transaction_id=body["transaction_id"], by=actor(request), at=timezone.now())
    wiring.after_retry(payout.pk)
    return Response({"status": "retried", "transaction_id": payout.pk, "new_status": payout.status})


@api_view(["POST"])
@permission_classes([IsAdminUser])
def retry_failed_payouts_batch(request: Request) -> Response:
    """`POST …/admin/retry-failed-payouts/` {hours}: send every payout again that failed within so many hours."""
    body = checked(RetryFailedBody(data=request.data))
    at = timezone.now()
    retried, skipped = actions.retry_failed(since=at - timedelta(hours=body["hours"]), by=actor(request), at=at)
    if retried:
        wiring.after_retry()
    return Response({"status": "retried", "count": len(retried), "transaction_ids": retried, "skipped": skipped})
