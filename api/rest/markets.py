"""Calls for markets: list, read with pools, bet."""

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
from markets import queries
from markets.models import Bet, Market
from payments import wiring
from payments.settlement.status import provisional
from payments.wallet import bets as wallet_bets

PAGE = 100


def market_body(market: Market, pools: dict[str, tuple[Decimal, int]], provisional: set[int]) -> dict[str, Any]:
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
        "category": market.category,
        "status": market.status,
        "end_date": market.end_date,
        "platform_fee_pct": f"{market.platform_fee_pct:.2f}",
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
        ids = [market.pk for market in markets]
        pools, unsure = markets_pools.pools(ids), provisional(ids, wiring.now())
        return Response({"markets": [market_body(market, pools.get(market.pk, {}), unsure) for market in markets]})


class MarketDetail(APIView):
    """`GET /api/markets/<id>/`: one market with its pools."""

    permission_classes = (AllowAny,)

    def get(self, request: Request, market_id: int) -> Response:
        market = _market(market_id)
        unsure = provisional([market.pk], wiring.now())
        return Response(market_body(market, markets_pools.pools([market.pk]).get(market.pk, {}), unsure))


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


def _market(market_id: int) -> Market:
    market = queries.listed().filter(pk=market_id).first() if market_id <= LARGEST_ID else None
    if market is None:
        raise NotFound(f"There is no market {market_id}.")
    return market
