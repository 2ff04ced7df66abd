"""Calls for disputes: members open and reply, staff answer and decide."""

import uuid
from datetime import datetime
from typing import Any, cast

from rest_framework import serializers, status
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api.rest.authority import act
from api.rest.certificates import explanation_body, payment_body
from api.rest.fields import LARGEST_ID, Body, StrictText, actor, caller, checked
from api.rest.proposals import proposed
from markets.models import Bet
from payments import disputes, wiring
from payments.models import Dispute, DisputeEvent
from payments.settlement.certificates import explanations
from users import phone
from users.proposals import Proposed

PAGE = 50


class MemberText(Body):
    """Body with a member's text."""

    text = StrictText(min_length=10, max_length=2000)


class OperatorText(Body):
    """Body with an operator's text."""

    text = StrictText(min_length=3, max_length=2000)


class UpholdBody(OperatorText):
    """Body of a decision in the member's favour, with the remedy."""

    remedy = serializers.ChoiceField(choices=Dispute.Remedy.values)


class BetDisputes(APIView):
    """`POST /api/markets/<id>/bets/<bet>/disputes/` {text}: dispute the result of the caller's bet."""

    permission_classes = (IsAuthenticated,)

    def post(self, request: Request, market_id: int, bet_id: uuid.UUID) -> Response:
        if market_id > LARGEST_ID:
            raise NotFound(f"There is no market {market_id}.")
        at = wiring.now()
        opened = disputes.open_about_bet(
            user_id=caller(request).pk,
            market_id=market_id,
            bet_id=bet_id,
            by=actor(request),
            at=at,
            policy=wiring.policy(),
            **checked(MemberText(data=request.data)),
        )
        return Response({"dispute": dispute_body(opened, at)}, status=status.HTTP_201_CREATED)


class TransactionDisputes(APIView):
    """`POST /api/payments/transactions/<id>/disputes/` {text}: dispute the caller's payout, or report it missing."""

    permission_classes = (IsAuthenticated,)

    def post(self, request: Request, transaction_id: uuid.UUID) -> Response:
        at = wiring.now()
        opened = disputes.open_about_transaction(
            user_id=caller(request).pk,
            transaction_id=transaction_id,
            by=actor(request),
            at=at,
            policy=wiring.policy(),
            **checked(MemberText(data=request.data)),
        )
        return Response({"dispute": dispute_body(opened, at)}, status=status.HTTP_201_CREATED)


class MyDisputes(APIView):
    """`GET /api/users/me/disputes/`: the caller's disputes with their history, newest first."""

    permission_classes = (IsAuthenticated,)

    def get(self, request: Request) -> Response:
        at = wiring.now()
        newest = disputes.of_member(caller(request).pk)[:PAGE]
        return Response({"disputes": [dispute_body(dispute, at) for dispute in newest]})


class DisputeReply(APIView):
    """`POST /api/users/me/disputes/<id>/reply/` {text}: reject the answer of staff and reopen the dispute."""

    permission_classes = (IsAuthenticated,)

    def post(self, request: Request, dispute_id: uuid.UUID) -> Response:
        at = wiring.now()
        replied = disputes.reply(
            user_id=caller(request).pk,
            dispute_id=dispute_id,
            by=actor(request),
            at=at,
            policy=wiring.policy(),
            **checked(MemberText(data=request.data)),
        )
        return Response({"dispute": dispute_body(replied, at)})


class DisputeQueue(APIView):
    """`GET /api/payments/admin/disputes/?state=OPEN`: the 50 disputes whose answers are due first.

    Each dispute has the explanation of its bet or payout.
    """

    permission_classes = (act("disputes.view"),)

    def get(self, request: Request) -> Response:
        state, at = request.query_params.get("state"), wiring.now()
        if state is not None and state not in Dispute.State.values:
            raise ValidationError({"state": [f"Must be one of {', '.join(Dispute.State.values)}."]})
        queue = disputes.queue(state)
        return Response({"count": queue.count(), "disputes": [_for_staff(dispute, at) for dispute in queue[:PAGE]]})


class DisputeAnswer(APIView):
    """`POST /api/payments/admin/disputes/<id>/answer/` {text}: answer the member without a decision."""

    permission_classes = (act("dispute.answer"),)

    def post(self, request: Request, dispute_id: uuid.UUID) -> Response:
        body, at = checked(OperatorText(data=request.data)), wiring.now()
        answered = disputes.answer(dispute_id=dispute_id, by=actor(request), at=at, **body)
        return Response({"dispute": dispute_body(answered, at)})


class DisputeReject(APIView):
    """`POST /api/payments/admin/disputes/<id>/reject/` {text}: decide against the member. The text is the reason."""

    permission_classes = (act("dispute.reject"),)

    def post(self, request: Request, dispute_id: uuid.UUID) -> Response:
        body, at = checked(OperatorText(data=request.data)), wiring.now()
        rejected = disputes.reject(dispute_id=dispute_id, by=actor(request), at=at, **body)
        return Response({"dispute": dispute_body(rejected, at)})


class DisputeUphold(APIView):
    """`POST /api/payments/admin/disputes/<id>/uphold/` {remedy, text}: decide in the member's favour.

    The remedy is re_resolve, pay_to_wallet, resend or none. Answers 202 with a proposal if pay_to_wallet needs a second
    person.
    """

    permission_classes = (act("dispute.uphold"),)

    def post(self, request: Request, dispute_id: uuid.UUID) -> Response:
        body, at = checked(UpholdBody(data=request.data)), wiring.now()
        upheld = disputes.uphold(dispute_id=dispute_id, by=actor(request), at=at, **body)
        if isinstance(upheld, Proposed):
            return proposed(upheld)
        if upheld.to_send:
            wiring.after_retry(*upheld.to_send)
        return Response({"dispute": dispute_body(upheld.dispute, at)})


def dispute_body(dispute: Dispute, at: datetime) -> dict[str, Any]:
    """Return the JSON of a dispute as its member sees it."""
    return {
        "id": dispute.public_id,
        "bet_id": dispute.bet.public_id if dispute.bet else None,
        "transaction_id": dispute.transaction.public_id if dispute.transaction else None,
        "state": dispute.state,
        "opened_at": dispute.opened_at,
        "due_at": dispute.due_at,
        "overdue": disputes.is_overdue(dispute, at=at),
        "closed_at": dispute.closed_at,
        "remedy": dispute.remedy or None,
        "remedy_state": dispute.remedy_state or None,
        "remedied_at": dispute.remedied_at,
        "history": [
            {"kind": event.kind, "by": _role(event, dispute), "text": event.text, "at": event.at}
            for event in sorted(dispute.events.all(), key=lambda event: event.pk)
        ],
    }


def _for_staff(dispute: Dispute, at: datetime) -> dict[str, Any]:
    member = {
        "id": dispute.user.public_id,
        "full_name": dispute.user.full_name,
        "phone_number": phone.masked(dispute.user.phone_number),
    }
    if dispute.transaction is not None:
        paid = explanations.payment(dispute.transaction, at=at, settlement=dispute.transaction.settlement)
        explained = payment_body(paid) | {"reason": dispute.transaction.reason}
    else:
        explained = explanation_body(explanations.explain(cast(Bet, dispute.bet), at=at, with_proof=False))
    return dispute_body(dispute, at) | {"member": member, "explanation": explained}


def _role(event: DisputeEvent, dispute: Dispute) -> str:
    if event.by_id is None:
        return "system"
    return "member" if event.by_id == dispute.user_id else "operator"
