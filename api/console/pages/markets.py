"""Pages of markets: the list by state, and one market with its pools, odds, bets and settlement."""

from datetime import datetime
from typing import Any

import redis
from django.core.cache import cache
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page, paging
from markets import terms, terms_proposals
from markets.models import NAIROBI, Market
from payments import wiring
from payments.ledger import receivables
from payments.models import Settlement
from payments.settlement import market_overview, payout_progress, status
from users import proposals

TABS = {
    "due": "To resolve",
    "proposed": "To approve",
    "open": "Open",
    "closed": "Closed",
    "resolved": "Being settled",
    "settled": "Settled",
    "void": "Void",
    "all": "All",
}
COLOURS = ("#158257", "#2563eb", "#d97706", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#be185d")
DAY, MINUTE = 86_400, 60
# Seconds between two refreshes of a market's page: while its payouts are under way, and otherwise.
WORKING, QUIET = 2, 15


@page.page("console.view")
def markets(request: HttpRequest) -> HttpResponse:
    """List the markets in one state that match the search."""
    at = wiring.now()
    tab = request.GET.get("show", "all")
    typed = request.GET.get("q", "").replace("\x00", "").strip()[:80]
    rows = Market.objects.all()
    if tab == "due":
        rows = market_overview.to_resolve(at=at)
    elif tab == "proposed":
        rows = rows.filter(pk__in=proposals.open_subjects("market"))
    elif tab in TABS and tab != "all":
        rows = rows.filter(status=tab.upper())
    if typed:
        number = paging.number(typed)
        rows = rows.filter(pk=number) if number is not None else rows.filter(question__icontains=typed)
    paged = paging.paged(request, rows, size=25)
    context = {
        "title": "Markets",
        "paged": paged,
        "rows": market_overview.listed(paged.rows, at=at),
        "tabs": TABS,
        "tab": tab,
        "typed": typed,
        "may_add": page.may(request, "market.create"),
    }
    return page.render(request, "console/markets.html", context)


@page.page("console.view")
def market(request: HttpRequest, market_id: int) -> HttpResponse:
    """Show one market, with buttons for the actions that its state allows."""
    market = _market(market_id)
    at = wiring.now()
    progress = payout_progress.progress(market, at=at, policy=wiring.policy())
    settlement = progress.settlement if progress is not None else None
    state = settlement.state if settlement is not None else None
    held = settlement is not None and settlement.release_at is not None and settlement.release_at > at
    settled = (
        settlement is not None
        and settlement.state == Settlement.State.SETTLED
        and settlement.rule != Settlement.Rule.VOID
    )
    failed = settlement is not None and settlement.state == Settlement.State.DIVIDING and settlement.failure != ""
    failed_scratch = status.failed_scratch(market.pk)
    proposal = proposals.open_about(f"market:{market.pk}").select_related("proposed_by").first()
    blocks = proposal is not None and proposal.proposed_by_id is not None  # The machine's proposals block nothing.
    pools = market_overview.pools(market)
    takes_bets = market.status == Market.Status.OPEN and market.end_date > at
    decidable = market.status in (Market.Status.OPEN, Market.Status.CLOSED) and not blocks
    settlements = market_overview.settlements(market)
    context = {
        "title": f"Market {market.pk}",
        "proposal": proposal,
        "release_at": settlement.release_at if settlement is not None and held and settled else None,
        "failure": settlement.failure if settlement is not None else "",
        "failed_scratch": failed_scratch,
        "can_withdraw_scratch": failed_scratch is not None and settlement is None,
        "can_resolve": decidable,
        "can_withdraw": state == Settlement.State.PENDING or failed or (settled and held),
        "can_undo": settled and not held and not blocks,
        "can_scratch": takes_bets and sum(pool.scratched_at is None for pool in pools) > 2,
        "may_resolve": page.may(request, "market.resolve"),
        "market": market,
        "takes_bets": takes_bets,
        "ended": market.end_date <= at,
        "to_resolve": decidable and not takes_bets,
        "undoing": state == Settlement.State.UNDOING,
        "pools": pools,
        "chart": _chart(market, pools),
        "bets": market_overview.latest_bets(market),
        "progress": progress,
        "settlements": settlements,
        "taken_back": _taken_back(settlements, decided=state not in (None, Settlement.State.UNDOING)),
        "versions": terms.versions(market) if market.terms_version > 1 else [],
        "notice_until": market.take_back_until if terms.notice_runs(market, at=at) else None,
        "life": _life(request, market, settlement, takes_bets=takes_bets, at=at),
        "owed": receivables.still_owed(market.pk),
        "may_ledger": page.may(request, "ledger.view"),
        "may_members": page.may(request, "members.view"),
    }
    working = progress is not None and not progress.finished
    return page.render_live(request, "console/market.html", context, every=WORKING if working else QUIET)


def _life(
    request: HttpRequest, market: Market, settlement: Settlement | None, *, takes_bets: bool, at: datetime
) -> list[tuple[str, str]]:
    """Return the buttons for the life of a market, as (text, address): those that its state and the role allow."""
    suspended = market.betting_suspended_at is not None
    may_suspend = not suspended or terms_proposals.suspends_betting(market)
    sends = settlement is not None and settlement.state != Settlement.State.UNDOING
    stopped = settlement is not None and settlement.sending_suspended_at is not None
    free = takes_bets and not terms.notice_runs(market, at=at)
    buttons = [
        (free, "market.change", "Change the terms…", "market_change"),
        (free and may_suspend, "market.suspend_betting", "Suspend betting…", "market_suspend_betting"),
        (free and suspended, "market.resume_betting", "Resume betting…", "market_resume_betting"),
        (free, "market.close", "Close now…", "market_close"),
        (sends and not stopped, "market.suspend_sending", "Suspend sending…", "market_suspend_sending"),
        (sends and stopped, "market.resume_sending", "Resume sending…", "market_resume_sending"),
    ]
    return [
        (text, reverse(f"admin:{name}", args=[market.pk]))
        for possible, act_name, text, name in buttons
        if possible and page.may(request, act_name)
    ]


def _taken_back(
    settlements: list[market_overview.PastSettlement], *, decided: bool
) -> market_overview.PastSettlement | None:
    """Return the latest settlement if it was undone or withdrawn and no later decision replaces it."""
    decisions = [past for past in settlements if past.settlement.rule != Settlement.Rule.SCRATCH]
    return decisions[0] if decisions and decisions[0].is_taken_back and not decided else None


def _chart(market: Market, pools: list[market_overview.Pool]) -> dict[str, Any] | None:
    """Return the odds over time as data for a chart, or None if there is only one moment.

    The data is cached for a minute while bets may still arrive, and for a day in any other state. A rejected proposal
    can open a closed market again.
    """
    scratched = sum(pool.scratched_at is not None for pool in pools)
    key = f"console:odds:{market.pk}:{market.status}:{scratched}"
    chart = _cached(key)
    if chart is None:
        curve = market_overview.curve(market)
        chart = {
            "labels": [moment.astimezone(NAIROBI).strftime("%d %b %H:%M") for moment in curve.moments],
            "datasets": [
                {
                    "label": name,
                    "data": shares,
                    "borderColor": COLOURS[place % len(COLOURS)],
                    "displayYAxis": True,
                    "suffixYAxis": "%",
                    "maxTicksXLimit": 6,
                }
                for place, (name, shares) in enumerate(curve.shares.items())
            ],
        }
        _keep(key, chart, MINUTE if market.status in (Market.Status.OPEN, Market.Status.CLOSED) else DAY)
    return chart if len(chart["labels"]) > 1 else None


def _cached(key: str) -> Any:
    """Return the value that `_keep` stored under this key, or None if somebody moved another value there."""
    try:
        stored = cache.get(key)
    except redis.RedisError:
        return None
    return stored[1] if isinstance(stored, list) and len(stored) == 2 and stored[0] == key else None


def _keep(key: str, value: Any, seconds: int) -> None:
    try:
        cache.set(key, [key, value], seconds)
    except redis.RedisError:
        return


def _market(market_id: int) -> Market:
    market = Market.objects.filter(pk=market_id).first() if market_id <= paging.LARGEST_ID else None
    if market is None:
        raise Http404(f"There is no market {market_id}.")
    return market


urls = [
    path("markets/", markets, name="markets"),
    path("markets/<int:market_id>/", market, name="market"),
]
