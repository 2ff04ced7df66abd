"""Calls for markets: list, read with pools and terms, bet, take a stake back."""

import uuid
from datetime import datetime
from decimal import Decimal
from typing import Any

from rest_framework import status
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api.rest.fields import LARGEST_ID, Body, Shillings, StrictText, caller, checked
from markets import pools as markets_pools
from markets import queries, terms
from markets.models import Bet, Market
from payments import wiring
from payments.settlement.status import provisional
from payments.wallet import bets as wallet_bets
from payments.wallet import take_backs

PAGE = 100


def market_body(
    market: Market, pools: dict[str, tuple[Decimal, int]], provisional: set[int], *, at: datetime
) -> dict[str, Any]:
    """Return the JSON of a market as members see it: each outcome with its stakes and number of bets.

    `provisional` has the ids of the markets whose result may still be withdrawn.
    """
    pool, outcomes = Decimal("0.00"), []
    for outcome in market.outcomes.all():
        staked, bets = pools.get(outcome.name, (Decimal("0.00"), 0))
        scratched = outcome.scratched_at is not None
        outcomes.append({"name": outcome.name, "staked": f"{staked:.2f}", "bets": bets, "scratched": scratched})
        if not scratched:
            pool += staked
    return {
        "id": market.pk,
        "question": market.question,
        "description": market.description,
        "source": market.source,
        "category": market.category,
        "status": market.status,
        "end_date": market.end_date,
        "platform_fee_pct": f"{market.platform_fee_pct:.2f}",
        "terms_version": market.terms_version,
        "betting_suspended": market.betting_suspended_at is not None or terms.notice_runs(market, at=at),
        "pool": f"{pool:.2f}",
        "outcomes": outcomes,
        "resolved_outcome": market.resolved_outcome,
        "resolved_at": market.resolved_at,
        "settled_at": market.settled_at,
        "provisional": market.pk in provisional,
    }


def bet_body(bet: Bet, provisional: set[int]) -> dict[str, Any]:
    """Return the JSON of a bet as its member sees it."""
    return {
        "id": bet.public_id,
        "market_id": bet.market_id,
        "outcome": bet.outcome,
        "amount": f"{bet.amount:.2f}",
        "result": bet.result,
        "payout": f"{bet.payout:.2f}",
        "placed_at": bet.placed_at,
        "terms_version": bet.terms_version,
        "taken_back_at": bet.taken_back_at,
        "provisional": bet.market_id in provisional,
    }


class MarketList(APIView):
    """`GET /api/markets/?status=OPEN&before=<id>`: markets, newest first, 100 per page."""

    permission_classes = (AllowAny,)

    def get(self, request: Request) -> Response:
        wanted = request.query_params.get("status")
        if wanted is not None and wanted not in Market.Status.values:
            raise ValidationError({"status": [f"Must be one of {', '.join(Market.Status.values)}."]})
        before = request.query_params.get("before", str(LARGEST_ID))
        if not (before.isascii() and before.isdigit() and len(before) < 20 and int(before) <= LARGEST_ID):
            raise ValidationError({"before": ["Must be the id of a market."]})
        markets = list(queries.listed(wanted).filter(pk__lt=int(before))[:PAGE])
        ids, at = [market.pk for market in markets], wiring.now()
        pools, unsure = markets_pools.pools(ids), provisional(ids, at)
        return Response(
            {"markets": [market_body(market, pools.get(market.pk, {}), unsure, at=at) for market in markets]}
        )


class MarketDetail(APIView):
    """`GET /api/markets/<id>/`: one market with its pools, and the running notice of a change of its terms."""

    permission_classes = (AllowAny,)

    def get(self, request: Request, market_id: int) -> Response:
        market, at = _market(market_id), wiring.now()
        pools = markets_pools.pools([market.pk]).get(market.pk, {})
        body = market_body(market, pools, provisional([market.pk], at), at=at)
        return Response({**body, "notice": _notice_body(terms.running_notice(market, at=at))})


def _notice_body(notice: terms.Version | None) -> dict[str, Any] | None:
    if notice is None:
        return None
    changes = [{"field": each.field, "before": each.before, "after": each.after} for each in notice.differences]
    return {
        "terms_version": notice.terms.version,
        "take_back_until": notice.terms.notice_until,
        "reason": notice.terms.reason,
        "changes": changes,
    }


class BetBody(Body):
    """Body of a bet; the amount is in shillings."""

    outcome = StrictText(max_length=120)
    amount = Shillings(low=Decimal("0.01"), high=Decimal("100000000"))


class MarketBets(APIView):
    """`GET /api/markets/<id>/bets/`: the caller's bets. `POST` {outcome, amount}: place a bet from the wallet.

    A repeated POST with the same `Idempotency-Key` header returns the bet that the first one placed.
    """

    permission_classes = (IsAuthenticated,)

    def get(self, request: Request, market_id: int) -> Response:
        market = _market(market_id)
        bets = queries.bets_of(user_id=caller(request).pk, market_id=market.pk)[:PAGE]
        unsure = provisional([market.pk], wiring.now())
        return Response({"bets": [bet_body(bet, unsure) for bet in bets]})

    def post(self, request: Request, market_id: int) -> Response:
        key = request.headers.get("Idempotency-Key", "")
        if len(key) > 80 or not key.isprintable():
            raise ValidationError({"Idempotency-Key": ["Must be at most 80 printable characters."]})
        placed = wallet_bets.place(
            user_id=caller(request).pk,
            market_id=_market(market_id).pk,
            client_ref=key or None,
            at=wiring.now(),
            policy=wiring.policy(),
            **checked(BetBody(data=request.data)),
        )
        return Response(
            {"bet": bet_body(placed.bet, set()), "balance": f"{placed.balance:.2f}"},
            status=status.HTTP_201_CREATED if placed.new else status.HTTP_200_OK,
        )


class BetTakeBack(APIView):
    """`POST /api/markets/<id>/bets/<bet>/take-back/`: take a stake back during the notice of a change of terms."""

    permission_classes = (IsAuthenticated,)

    def post(self, request: Request, market_id: int, bet_id: uuid.UUID) -> Response:
        checked(Body(data=request.data))
        taken = take_backs.take_back(
            user_id=caller(request).pk, market_id=_market(market_id).pk, bet_id=bet_id, at=wiring.now()
        )
        return Response({"bet": bet_body(taken.bet, set()), "balance": f"{taken.balance:.2f}"})


def _market(market_id: int) -> Market:
    market = queries.listed().filter(pk=market_id).first() if market_id <= LARGEST_ID else None
    if market is None:
        raise NotFound(f"There is no market {market_id}.")
    return market
