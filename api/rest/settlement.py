"""Settlement calls of staff: resolve, void, status, retry."""

from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

from rest_framework import serializers
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import LARGEST_ID, Body, StrictInteger, StrictText, Weights, actor, checked
from api.rest.proposals import proposed
from payments import wiring
from payments.payouts.operations import actions, bulk_retries, in_doubt
from payments.settlement import resolutions, status
from payments.settlement.decision import VOID_REASONS, Decision, Evidence
from users import outgoing
from users.proposals import Proposed


class ResolveBody(Body):
    """Body of a resolution: `outcome` for one winner; `weights` with `rule` JOINT or SPLIT for several."""

    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    outcome = StrictText(max_length=120, required=False)
    weights = Weights(required=False)
    rule = serializers.ChoiceField(choices=("JOINT", "SPLIT"), required=False)
    evidence_url = StrictText(max_length=500, required=False, default="")
    evidence_note = StrictText(max_length=1000, required=False, default="")
    effective_close_at = serializers.DateTimeField(required=False, default=None)
    preview_hash = StrictText(max_length=64, required=False, default=None)

    def validate_evidence_url(self, url: str) -> str:
        try:
            return url and outgoing.check(url)
        except outgoing.NotAnOutgoingAddress as refusal:
            raise serializers.ValidationError(str(refusal)) from refusal

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        if ("outcome" in body) == ("weights" in body):
            raise serializers.ValidationError({"outcome": ["Give either outcome, or weights with rule."]})
        if ("weights" in body) != ("rule" in body):
            raise serializers.ValidationError({"rule": ["Give rule JOINT or SPLIT with weights, none with outcome."]})
        return body


class VoidBody(Body):
    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    reason = serializers.ChoiceField(choices=list(VOID_REASONS.items()))
    preview_hash = StrictText(max_length=64, required=False, default=None)


class RetryBody(Body):
    transaction_id = StrictInteger(min_value=1, max_value=LARGEST_ID)


class RetryFailedBody(Body):
    hours = StrictInteger(min_value=1, max_value=720, default=24)


@api_view(["POST"])
@permission_classes([act("market.resolve")])
def resolve_market(request: Request) -> Response:
    """`POST /api/markets/admin/resolve/` {market_id, outcome}: declare the outcome. Workers then settle and pay.

    For several winners send {market_id, weights, rule}. Optional: evidence_url, evidence_note, effective_close_at,
    preview_hash. Answers 202 if a second person must approve.
    """
    body = checked(ResolveBody(data=request.data))
    outcome = body.get("outcome")
    resolved = resolutions.resolve(
        market_id=body["market_id"],
        decision=Decision(
            rule=body.get("rule", "WINNER"),
            weights={outcome: Decimal(100)} if outcome is not None else body["weights"],
            evidence=Evidence(url=body["evidence_url"], note=body["evidence_note"]),
            effective_close_at=body["effective_close_at"],
        ),
        by=actor(request),
        at=wiring.now(),
        policy=wiring.policy(),
        preview_hash=body["preview_hash"],
    )
    if isinstance(resolved, Proposed):
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
@permission_classes([act("market.void")])
def void_market(request: Request) -> Response:
    """`POST /api/markets/admin/void/` {market_id, reason}: void the market and return all stakes to the wallets."""
    body = checked(VoidBody(data=request.data))
    resolved = resolutions.resolve(
        market_id=body["market_id"],
        decision=Decision(rule="VOID", weights={}, reason=body["reason"]),
        by=actor(request),
        at=wiring.now(),
        policy=wiring.policy(),
        preview_hash=body["preview_hash"],
    )
    if isinstance(resolved, Proposed):
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


@api_view(["GET"])
@permission_classes([act("console.view")])
def settlement_status(request: Request, market_id: int) -> Response:
    """`GET …/admin/settlement-status/<market_id>/`: amounts and counts of the payouts by state."""
    current = status.settlement_status(market_id) if market_id <= LARGEST_ID else None
    if current is None:
        raise NotFound(f"There is no market {market_id}.")
    amounts = {name: amount for name, (amount, _) in current.by_state.items()}
    payouts_in_doubt = [
        {
            "transaction_id": payout.transaction_id,
            "amount": f"{payout.amount:.2f}",
            "since": payout.since,
            "last_asked_at": payout.last_asked_at,
            "next_question_at": payout.next_query_at,
        }
        for payout in in_doubt.in_doubt(market_id)[:100]
    ]
    return Response(
        {
            "market_id": current.market_id,
            "status": current.status,
            "outcome": current.outcome,
            "resolved_at": current.resolved_at,
            "settled_at": current.settled_at,
            "release_at": current.release_at,
            "pool": f"{current.pool:.2f}",
            "platform_fee": f"{current.platform_fee:.2f}",
            "total_payouts": f"{current.total_payouts:.2f}",
            "completed_payouts": f"{amounts['completed']:.2f}",
            "failed_payouts": f"{amounts['failed']:.2f}",
            "pending_payouts": f"{amounts['pending'] + amounts['processing']:.2f}",
            "in_doubt_payouts": f"{amounts['in_doubt']:.2f}",
            "held_payouts": f"{amounts['held']:.2f}",
            "payout_count": {name: count for name, (_, count) in current.by_state.items()},
            "progress": asdict(current.progress),
            "in_doubt": payouts_in_doubt,
            # The old name of the same list. It is kept for one version.
            "limbo": payouts_in_doubt,
        }
    )


@api_view(["POST"])
@permission_classes([act("payout.retry")])
def retry_payout(request: Request) -> Response:
    """`POST …/admin/retry-payout/` {transaction_id}: send a failed payout again."""
    body = checked(RetryBody(data=request.data))
    payout = actions.retry(transaction_id=body["transaction_id"], by=actor(request), at=wiring.now())
    wiring.after_retry(payout.pk)
    return Response({"status": "retried", "transaction_id": payout.pk, "new_status": payout.status})


@api_view(["POST"])
@permission_classes([act("payout.retry")])
def retry_failed_payouts_batch(request: Request) -> Response:
    """`POST …/admin/retry-failed-payouts/` {hours}: retry every payout that failed in the last `hours`.

    Up to 500 payouts are retried at once. The `remaining` ones follow in the background.
    """
    body = checked(RetryFailedBody(data=request.data))
    at = wiring.now()
    since = at - timedelta(hours=body["hours"])
    batch = bulk_retries.start(since=since, by=actor(request), at=at)
    wiring.after_bulk_retry(retried=len(batch.retried), remaining=batch.remaining)
    answer: dict[str, Any] = {
        "status": "retried",
        "count": len(batch.retried),
        "transaction_ids": batch.retried,
        "skipped": sum(batch.skipped.values()),
    }
    return Response(answer | ({"remaining": batch.remaining} if batch.remaining else {}))
