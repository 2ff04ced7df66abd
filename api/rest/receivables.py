"""Staff endpoints for members' debts after an undo: list, set off, write off, costs."""

from typing import Any

from rest_framework import serializers
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import LARGEST_ID, Body, StrictInteger, StrictText, actor, checked
from api.rest.proposals import proposed
from payments import wiring
from payments.ledger import debt_decisions, receivables
from payments.models import Recovery
from users import phone
from users.proposals import Proposed

PAGE = 100


class DebtsBody(Body):
    """One debt, or all debts from a market."""

    recovery_id = StrictInteger(min_value=1, max_value=LARGEST_ID, required=False)
    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID, required=False)

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        if ("recovery_id" in body) == ("market_id" in body):
            raise serializers.ValidationError({"recovery_id": ["Give either recovery_id or market_id."]})
        return body


class SetOffBody(DebtsBody):
    pct = StrictInteger(min_value=1, max_value=100)


class WriteOffBody(DebtsBody):
    reason = StrictText(max_length=300)


@api_view(["GET"])
@permission_classes([act("ledger.view")])
def list_recoveries(request: Request) -> Response:
    """`GET /api/payments/admin/recoveries/?market_id=&before=<id>`: members' debts, newest first."""
    before = _id(request, "before") or LARGEST_ID
    debts = receivables.listed(before=before, limit=PAGE, market_id=_id(request, "market_id"))
    return Response({"recoveries": [recovery_body(debt) for debt in debts]})


@api_view(["POST"])
@permission_classes([act("recovery.set_off")])
def set_off(request: Request) -> Response:
    """`POST …/recoveries/set-off/` {recovery_id or market_id, pct}: keep up to pct % of each later dividend.

    Answers 202 with a proposal if it needs a second person.
    """
    body = checked(SetOffBody(data=request.data))
    decided = debt_decisions.decide_set_off(**body, by=actor(request), at=wiring.now())
    if isinstance(decided, Proposed):
        return proposed(decided)
    return Response({"status": "set_off", "recoveries": [recovery_body(debt) for debt in decided]})


@api_view(["POST"])
@permission_classes([act("recovery.write_off")])
def write_off(request: Request) -> Response:
    """`POST …/recoveries/write-off/` {recovery_id or market_id, reason}: cancel the debt.

    The operator bears the loss. Answers 202 with a proposal if it needs a second person.
    """
    body = checked(WriteOffBody(data=request.data))
    decided = debt_decisions.write_off(**body, by=actor(request), at=wiring.now())
    if isinstance(decided, Proposed):
        return proposed(decided)
    return Response({"status": "written_off", "recoveries": [recovery_body(debt) for debt in decided]})


@api_view(["GET"])
@permission_classes([act("ledger.view")])
def undo_costs(request: Request) -> Response:
    """`GET …/admin/undo-costs/`: costs of undone settlements, by market and by the person who resolved."""
    by_market, by_operator = receivables.undo_costs()
    return Response(
        {"by_market": [_cost(cost) for cost in by_market], "by_operator": [_cost(cost) for cost in by_operator]}
    )


def recovery_body(recovery: Recovery) -> dict[str, Any]:
    """Return the JSON of a debt as staff see it, with the phone masked."""
    return {
        "id": recovery.pk,
        "market_id": recovery.settlement.market_id if recovery.settlement else None,
        "user_id": recovery.user_id,
        "phone": phone.masked(recovery.user.phone_number),
        "amount": f"{recovery.amount:.2f}",
        "recovered": f"{recovery.recovered:.2f}",
        "written_off": f"{recovery.written_off:.2f}",
        "outstanding": f"{recovery.outstanding:.2f}",
        "decision": recovery.decision,
        "pct": recovery.pct,
        "reason": recovery.reason,
        "decided_by": recovery.decided_by_id,
        "decided_at": recovery.decided_at,
    }


def _cost(cost: receivables.UndoCost) -> dict[str, Any]:
    subject = {"market_id": cost.market_id} if cost.market_id is not None else {"user_id": cost.user_id}
    return {
        **subject,
        "undone": cost.undone,
        "wrongly_paid": f"{cost.wrongly_paid:.2f}",
        "recovered": f"{cost.recovered:.2f}",
        "written_off": f"{cost.written_off:.2f}",
        "outstanding": f"{cost.outstanding:.2f}",
        "charges": f"{cost.charges:.2f}",
    }


def _id(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= LARGEST_ID):
        raise ValidationError({name: ["Must be an id."]})
    return int(text)
