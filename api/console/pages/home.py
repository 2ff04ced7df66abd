"""Home page: open work, payouts, figures of the last day and month, and the state of beat and workers."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.dateparse import parse_datetime

from api.console import page
from api.environment import REDIS_SCHEMES
from markets import reminders
from payments import wiring
from payments.monitoring import overview
from payments.payouts.sending import canary
from users import pin_limits
from users.backends import login_rules

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


@page.page("console.view")
def home(request: HttpRequest) -> HttpResponse:
    """Show the home page."""
    at = wiring.now()
    now, figures = overview.now(at=at), overview.figures()
    context = {
        "title": "Home",
        "now": now,
        "closing_soon": reminders.closing_soon(at=at, within=wiring.policy().close_reminder),
        "figures": figures,
        "quality": figures.value["quality_day"] if figures else None,
        "success": _success(figures.value["quality_day"]) if figures else None,
        "day": _chart(figures.value["day"], "%H:00") if figures else None,
        "month": _chart(figures.value["month"], "%d %b") if figures else None,
        "alive": _alive(now, at),
        "logins_refused_until": pin_limits.overall_refused_until(login_rules().limits, at=at),
        "paused_by_setting": settings.PAYOUTS_PAUSED,
        "releases": canary.stopped(at=at, policy=wiring.policy()),
        "stale_figures": figures is not None and at - figures.at > 5 * STALE,
    }
    return page.render_live(request, "console/home.html", context, every=10)


def _success(quality: dict[str, Any]) -> dict[str, Any] | None:
    if not quality["final"]:
        return None
    share = 100 * quality["paid"] / quality["final"]
    return {"share": f"{share:.1f} %", "good": share >= 100 * float(overview.SUCCESS_GOAL)}


def _chart(series: list[dict[str, Any]], form: str) -> dict[str, Any]:
    """Return the data of a chart. For people who cannot see a chart, return the same figures as rows of a table."""
    labels = [(parse_datetime(step["moment"]) or datetime.min).strftime(form) for step in series]
    sets = [
        {"label": "Paid", "data": [step["paid"] for step in series], "backgroundColor": "#23a26c"},
        {"label": "Failed", "data": [step["failed"] for step in series], "backgroundColor": "#dc2626"},
    ]
    rows = [
        (label, step["paid"], step["failed"], step["amount"])
        for label, step in zip(labels, series, strict=True)
        if step["paid"] or step["failed"]
    ]
    return {"data": {"labels": labels, "datasets": sets}, "rows": rows, "options": BARS, "empty": not rows}


@dataclass(frozen=True)
class Alive:
    """State of Celery beat and the workers.

    `words` name the fault and its remedy, or say that all is running. `waiting` counts the messages in the queue;
    None if Redis cannot be reached.
    """

    good: bool
    words: str
    waiting: int | None


def _alive(now: overview.Now, at: datetime) -> Alive:
    waiting = _waiting()
    if waiting is None:
        words = "Redis cannot be reached. Bets and resolutions still work. Payouts wait until Redis is back."
        return Alive(False, words, None)
    beat = next((heartbeat for heartbeat in now.heartbeats if heartbeat.name == "beat"), None)
    if beat is not None and at - beat.at <= STALE:
        return Alive(True, "Celery beat and the workers are running.", waiting)
    if beat is None and not waiting:
        words = "Celery beat has not run yet. Start beat and a worker. No payout is sent until then."
        return Alive(False, words, waiting)
    if waiting:
        return Alive(False, "Messages wait and no worker takes them. Start or restart the workers.", waiting)
    words = "Celery beat has stopped. Start or restart it. Messages that were already sent are still carried out."
    return Alive(False, words, waiting)


def _waiting() -> int | None:
    """Count the messages that wait in Redis. Return None if a Redis cannot be reached, 0 if the broker is another.

    Payouts also need the Redis of CACHE_URL, which may be another one than the broker.
    """
    url = settings.CELERY_BROKER_URL
    try:
        wiring.broker().ping()
        if not url.startswith(REDIS_SCHEMES):
            return 0
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1) as broker:
            return int(broker.llen("celery"))
    except redis.RedisError as error:
        log.warning("The console cannot reach Redis: %s", error)
        return None


urls: list[Any] = []
