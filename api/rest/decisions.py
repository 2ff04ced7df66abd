"""Calls for decisions of staff: preview, approve, reject, withdraw, scratch, undo."""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from rest_framework import serializers
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import LARGEST_ID, Body, StrictInteger, StrictText, Weights, actor, checked
from api.rest.proposals import approval_status, approve, proposed, reject
from markets import queries
from markets.models import Market
from payments import wiring
from payments.settlement import preview, resolutions, undo
from payments.settlement.decision import Decision
from users.proposals import Proposed

REASON = 300


class ApproveBody(Body):
    proposal_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    preview_hash = StrictText(max_length=64)


class RejectBody(Body):
    proposal_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    reason = StrictText(max_length=REASON)


class WithReasonBody(Body):
    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    reason = StrictText(max_length=REASON)


class ScratchBody(WithReasonBody):
    outcome = StrictText(max_length=120)


class PreviewQuery(Body):
    """Query of a preview: `outcome`, or `weights` (A:50,B:50) with `rule`, or `void`.

    Without any of these, each running outcome and a void are previewed.
    """

    outcome = serializers.CharField(max_length=120, required=False)
    weights = serializers.CharField(max_length=10_000, required=False)
    rule = serializers.ChoiceField(choices=("JOINT", "SPLIT"), required=False)
    void = serializers.ChoiceField(choices=("true",), required=False)
    effective_close_at = serializers.DateTimeField(required=False)

    def validate(self, query: dict[str, Any]) -> dict[str, Any]:
        if sum(name in query for name in ("outcome", "weights", "void")) > 1:
            raise ValidationError({"outcome": ["Give only one of outcome, weights and void."]})
        if ("weights" in query) != ("rule" in query):
            raise ValidationError({"rule": ["Give weights together with rule JOINT or SPLIT."]})
        return query


@api_view(["GET"])
@permission_classes([act("market.preview")])
def settlement_preview(request: Request, market_id: int) -> Response:
    """`GET …/admin/settlement-preview/<id>/?outcome=…`: preview the dividends, payouts and charges of a decision."""
    query = checked(PreviewQuery(data=request.query_params.dict()))
    market = queries.listed().filter(pk=market_id).first() if market_id <= LARGEST_ID else None
    if market is None:
        raise NotFound(f"There is no market {market_id}.")
    if market.status not in (Market.Status.OPEN, Market.Status.CLOSED):
        raise resolutions.MarketAlreadyResolved(
            f"Market {market_id} is {market.status}: the outcome is already declared."
        )
    if "effective_close_at" in query:
        market.effective_close_at = query["effective_close_at"]
    at, policy = wiring.now(), wiring.policy()
    previews = [preview.preview(market, decision, at=at, policy=policy) for decision in _decisions(market, query)]
    return Response(
        {
            "market_id": market.pk,
            "status": market.status,
            "effective_close_at": market.effective_close_at,
            "previews": [_preview_body(shown, at) for shown in previews],
        }
    )


def _decisions(market: Market, query: dict[str, Any]) -> list[Decision]:
    if "outcome" in query:
        return [Decision("WINNER", {query["outcome"]: Decimal(100)})]
    if "void" in query:
        return [Decision("VOID", {})]
    if "weights" in query:
        parts = [re.fullmatch(r"\s*(.+):\s*([^:]*?)\s*", part) for part in query["weights"].split(",")]
        if not all(parts):
            raise ValidationError({"weights": ["Must be outcomes with percentages, such as A:50,B:50."]})
        weights = Weights().run_validation({part[1]: part[2] for part in parts if part})
        return [Decision(query["rule"], weights)]
    return preview.choices(market)


def _preview_body(shown: preview.Preview, at: datetime) -> dict[str, Any]:
    divided, members = shown.figures.division, shown.figures.members
    return {
        "rule": shown.rule,
        "weights": {outcome: str(weight) for outcome, weight in shown.weights.items()},
        "pool": _cents(divided.pool),
        "winning_pool": _cents(divided.winning_pool),
        "platform_fee": _cents(divided.fee),
        "net_pool": _cents(divided.net),
        "bets": divided.bet_count,
        "winners": members["winners"],
        "dividends": [_money(row) for row in shown.outcomes],
        "payouts": {
            "total": f"{members['amount']:.2f}",
            "by_mpesa": f"{members['by_mpesa']:.2f}",
            "payments": members["payments"],
            "to_wallet": f"{members['to_wallet']:.2f}",
            "set_off": f"{members['kept']:.2f}",
        },
        "largest": [_money(row) for row in shown.largest],
        "refunds": {
            "whole_pool": divided.refund,
            "late_bets": divided.late_count,
            "late_stakes": _cents(divided.late_refund),
        },
        "charges": f"{shown.charges:.2f}",
        "float": {
            "needed": f"{shown.float_needed:.2f}",
            "available": None if shown.float_available is None else f"{shown.float_available:.2f}",
            "read_at": shown.float_at,
            "age_seconds": None if shown.float_at is None else int((at - shown.float_at).total_seconds()),
            "enough": None if shown.float_available is None else shown.float_available >= shown.float_needed,
        },
        "members_not_paid_as_they_are": [
            {
                "reason": note.reason,
                "what": note.what,
                "count": note.count,
                "amount": f"{note.amount:.2f}",
                "members": [_money(row) for row in note.members],
            }
            for note in shown.notes
        ],
        "equation": shown.equation,
        "preview_hash": shown.figures.preview_hash,
    }


@api_view(["POST"])
@permission_classes([act("proposal.approve")])
def approve_proposal(request: Request) -> Response:
    """`POST …/admin/approve/` {proposal_id, preview_hash}: approve another person's proposal and carry it out."""
    body = checked(ApproveBody(data=request.data))
    done = approve(request, **body)
    if isinstance(done, undo.Undoing):
        return Response({"status": "undoing", "market_id": done.market_id})
    if isinstance(done, resolutions.Resolved):
        words = {"VOID": "void", "SCRATCH": "scratched"}
        return Response(
            {
                "status": words.get(done.rule, "resolved"),
                "market_id": done.market_id,
                "outcome": done.outcome,
                "settlement_task_id": done.public_id,
            }
        )
    return Response({"status": approval_status(done), "proposal_id": body["proposal_id"]})


@api_view(["POST"])
@permission_classes([act("proposal.reject")])
def reject_proposal(request: Request) -> Response:
    """`POST …/admin/reject/` {proposal_id, reason}: reject another person's proposal, or cancel your own."""
    rejected = reject(request, **checked(RejectBody(data=request.data)))
    answer = {"status": "rejected", "proposal_id": rejected.pk}
    kind, _, number = rejected.subject.rpartition(":")
    return Response(answer | ({"market_id": int(number)} if kind == "market" else {"subject": rejected.subject}))


@api_view(["POST"])
@permission_classes([act("market.withdraw")])
def withdraw_resolution(request: Request) -> Response:
    """`POST …/admin/withdraw/` {market_id, reason}: withdraw a resolution before any payout may leave."""
    body = checked(WithReasonBody(data=request.data))
    withdrawn = resolutions.withdraw(**body, by=actor(request), at=wiring.now())
    wiring.after_decision(withdrawn)
    return Response({"status": "withdrawn", "market_id": withdrawn.market_id, "undoing": withdrawn.undoing})


@api_view(["POST"])
@permission_classes([act("market.scratch")])
def scratch_outcome(request: Request) -> Response:
    """`POST …/admin/scratch/` {market_id, outcome, reason}: take an outcome out of a market and return its stakes."""
    body = checked(ScratchBody(data=request.data))
    scratched = resolutions.scratch(**body, by=actor(request), at=wiring.now(), policy=wiring.policy())
    if isinstance(scratched, Proposed):
        return proposed(scratched)
    wiring.after_decision(scratched)
    return Response(
        {
            "status": "scratched",
            "market_id": scratched.market_id,
            "outcome": body["outcome"],
            "settlement_task_id": scratched.public_id,
        }
    )


@api_view(["POST"])
@permission_classes([act("market.undo")])
def undo_settlement(request: Request) -> Response:
    """`POST …/admin/undo/` {market_id, reason}: undo a settlement. Members then owe the sums that M-Pesa paid."""
    body = checked(WithReasonBody(data=request.data))
    started = undo.undo(**body, by=actor(request), at=wiring.now(), policy=wiring.policy())
    return proposed(started) if isinstance(started, Proposed) else _undoing(started)


def _undoing(undoing: undo.Undoing) -> Response:
    wiring.after_decision(undoing)
    return Response({"status": "undoing", "market_id": undoing.market_id})


def _cents(cents: int) -> str:
    return f"{Decimal(cents) / 100:.2f}"


def _money(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if key == "per_shilling" else f"{value:.2f}" if isinstance(value, Decimal) else value
        for key, value in row.items()
    }
