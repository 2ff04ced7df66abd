"""The home page: what needs me now, where the money is, how well it goes, and whether all parts are at work."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from api.console import page
from payments.monitoring import overview

log = logging.getLogger(__name__)
STALE = timedelta(seconds=60)
BARS = {
    "responsive": True,
    "maintainAspectRatio": False,
    "animation": False,
    "maxBarThickness": 26,
    "scales": {
        "x": {"stacked": True, "grid": {"display": False}, "ticks": {"maxTicksLimit": 8, "color": "#7b8694"}},
        "y": {"stacked": True, "beginAtZero": True, "ticks": {"precision": 0, "color": "#7b8694"}},
    },
    "plugins": {"legend": {"display": True, "align": "end", "labels": {"boxWidth": 10, "color": "#7b8694"}}},
}


@page.page("view_console")
def home(request: HttpRequest) -> HttpResponse:
    at = timezone.now()
    now, figures = overview.now(at=at), overview.figures()
    context = {
        "title": "Home",
        "now": now,
        "figures": figures,
        "quality": figures.value["quality_day"] if figures else None,
        "success": _success(figures.value["quality_day"]) if figures else None,
        "day": _chart(figures.value["day"], "%H:00") if figures else None,
        "month": _chart(figures.value["month"], "%d %b") if figures else None,
        "alive": _alive(now, at),
        "paused_by_setting": settings.PAYOUTS_PAUSED,
        "stale_figures": figures is not None and at - figures.at > 5 * STALE,
    }
    return page.render(request, "console/home.html", context)


def _success(quality: dict[str, Any]) -> dict[str, Any] | None:
    if not quality["final"]:
        return None
    share = 100 * quality["paid"] / quality["final"]
    return {"share": f"{share:.1f} %", "good": share >= 100 * float(overview.SUCCESS_GOAL)}


def _chart(series: list[dict[str, Any]], form: str) -> dict[str, Any]:
    """The theme's chart and the same as rows of a table, for whoever cannot see it."""
    labels = [(parse_datetime(one["moment"]) or datetime.min).strftime(form) for one in series]
    sets = [
        {"label": "Paid", "data": [one["paid"] for one in series], "backgroundColor": "#23a26c"},
        {"label": "Failed", "data": [one["failed"] for one in series], "backgroundColor": "#dc2626"},
    ]
    rows = [
        (label, one["paid"], one["failed"], one["amount"])
        for label, one in zip(labels, series, strict=True)
        if one["paid"] or one["failed"]
    ]
    return {"data": {"labels": labels, "datasets": sets}, "rows": rows, "options": BARS, "empty": not rows}


@dataclass(frozen=True)
class Alive:
    """Whether beat and workers are at work, in a sentence that says what is wrong and what to do."""

    good: bool
    words: str
    waiting: int | None


def _alive(now: overview.Now, at: datetime) -> Alive:
    waiting = _waiting()
    if waiting is None:
        return Alive(False, "Redis is not reached. Bets and resolves still work; payouts wait until it is back.", None)
    beat = next((one for one in now.heartbeats if one.name == "beat"), None)
    if beat is not None and at - beat.at <= STALE:
        return Alive(True, "Beat and the workers are at work.", waiting)
    if beat is None and not waiting:
        return Alive(False, "Beat has sent nothing yet: start it, and a worker. Nothing is paid until then.", waiting)
    if waiting:
        return Alive(False, "Messages wait and no worker takes them: start or restart the workers.", waiting)
    return Alive(False, "Beat sends nothing: start or restart it. What Redis was told already is being done.", waiting)


def _waiting() -> int | None:
    """How many messages wait on the broker, where it is a Redis; None where it is not reached."""
    url = settings.CELERY_BROKER_URL
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return 0
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1) as broker:
            return int(broker.llen("celery"))
    except redis.RedisError as error:
        log.warning("Redis not reached by the console: %s", error)
        return None


urls: list[Any] = []
