"""Calls for the public certificate of a settlement and the explanation of a bet."""

import uuid
from collections.abc import Iterator
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from rest_framework.exceptions import NotFound
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api.rest.fields import LARGEST_ID, caller
from markets import queries
from payments import wiring
from payments.models import Certificate
from payments.settlement import pacing
from payments.settlement.certificates import explanations, issuing
from users import authority

MAKE_FOR_SECONDS = 2.0


class SettlementCertificate(APIView):
    """`GET /api/markets/<id>/settlement/`: certificate of the valid settlement. Anyone can verify the saved body."""

    permission_classes = (AllowAny,)

    def get(self, request: Request, market_id: int) -> HttpResponse:
        return HttpResponse(issuing.document(_issued(market_id)), content_type="application/json")


class SettlementBets(APIView):
    """`GET /api/markets/<id>/settlement/bets.jsonl`: every bet on one line, without names."""

    permission_classes = (AllowAny,)

    def get(self, request: Request, market_id: int) -> StreamingHttpResponse:
        issued = _issued(market_id)
        answer = StreamingHttpResponse(_encoded_lines(issued), content_type="application/x-ndjson")
        answer["Content-Disposition"] = 'attachment; filename="bets.jsonl"'
        return answer


class BetExplanation(APIView):
    """`GET /api/markets/<id>/bets/<bet>/explanation/`: explain the caller's bet.

    Staff who may see members read about any bet.
    """

    permission_classes = (IsAuthenticated,)

    def get(self, request: Request, market_id: int, bet_id: uuid.UUID) -> Response:
        user = caller(request)
        may_see_all = authority.may(user, "members.view")
        bet = queries.bet(public_id=bet_id, market_id=market_id, user_id=None if may_see_all else user.pk)
        if bet is None:
            raise NotFound(f"You have no bet {bet_id} in market {market_id}.")
        return Response(explanation_body(explanations.explain(bet, at=wiring.now())))


def explanation_body(explanation: explanations.Explanation) -> dict[str, Any]:
    """Return the JSON of an explanation. `figures` and `proof` are null before the market is settled."""
    bet, figures, proof = explanation.bet, explanation.figures, explanation.proof
    return {
        "bet": {
            "id": bet.public_id,
            "market_id": bet.market_id,
            "question": bet.market.question,
            "outcome": bet.outcome,
            "stake": f"{bet.amount:.2f}",
            "result": bet.result,
            "dividend": f"{bet.payout:.2f}",
            "placed_at": bet.placed_at,
        },
        "sentence": explanation.sentence,
        "words": explanation.words,
        "figures": None
        if figures is None
        else {
            "stake": f"{bet.amount:.2f}",
            "pool": f"{figures.pool:.2f}",
            "winning_pool": f"{figures.winning_pool:.2f}",
            "share_of_winning_pool_pct": f"{figures.share_of_winning_pool_pct:.4f}",
            "fee_pct": f"{figures.fee_pct:.2f}",
            "fee": f"{figures.fee:.2f}",
            "net": f"{figures.net:.2f}",
            "stakes_on_outcome": f"{figures.stakes_on_outcome:.2f}",
            "fund_of_outcome": f"{figures.fund_of_outcome:.2f}",
            "exact": f"{figures.exact:.6f}",
            "floored": f"{figures.floored:.2f}",
            "left_over_cent": f"{figures.left_over_cent:.2f}",
            "cents_rule": figures.cents_rule,
            "tax": f"{figures.tax:.2f}",
            "set_off": f"{figures.set_off:.2f}",
            "dividend": f"{figures.dividend:.2f}",
            "equation": figures.equation,
        },
        "all_my_bets_here_are_worth": f"{explanation.together:.2f}",
        "payments": [payment_body(payment) for payment in explanation.payments],
        "proof": None
        if proof is None
        else {
            "leaf": proof.leaf,
            "index": proof.index,
            "tree_size": proof.tree_size,
            "path": proof.path,
            "merkle_root": proof.merkle_root,
            "settlement_hash": proof.settlement_hash,
        },
    }


def payment_body(payment: explanations.Payment) -> dict[str, Any]:
    """Return the JSON of one payout as its member sees it."""
    payout = payment.transaction
    return {
        "id": payout.public_id,
        "type": payout.type,
        "destination": payout.destination,
        "amount": f"{payout.amount:.2f}",
        "status": payout.status,
        "provisional": payment.provisional,
        "receipt": payout.receipt or None,
        "due_at": payout.due_at,
        "completed_at": payout.completed_at,
        "words": payment.words,
    }


def _issued(market_id: int) -> Certificate:
    if market_id > LARGEST_ID:
        raise NotFound(f"There is no market {market_id}.")
    return issuing.current(market_id, at=wiring.now(), keep_going=pacing.for_seconds(MAKE_FOR_SECONDS))


def _encoded_lines(issued: Certificate) -> Iterator[bytes]:
    for line in issuing.lines(issued.settlement.market_id):
        yield f"{line}\n".encode()
