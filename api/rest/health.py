"""Health checks: `/healthz` for the process alone, `/readyz` for the process with its servers."""

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from api.environment import REDIS_SCHEMES
from payments import wiring
from payments.monitoring import overview


def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if the process runs."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if PostgreSQL answers, else 503.

    The body also reports Redis, beat and the workers. Without them members can still bet and staff can still resolve;
    the sweeps later do the work for which no message was sent.
    """
    checks = {"postgresql": _postgresql(), "redis": _redis(wiring.broker())}
    checks["broker"], waiting = _broker()
    checks |= {"beat": "unknown", "workers": "unknown"}
    if checks["postgresql"] == "ok":
        checks |= _beat_and_workers(waiting)
    return JsonResponse(checks, status=200 if checks["postgresql"] == "ok" else 503)


def _postgresql() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return "not reached"
    return "ok"


def _redis(client: redis.Redis) -> str:
    """Return the state of a Redis. A full Redis, a replica and one that cannot save answer a ping but refuse writes."""
    try:
        client.set("kasoko:readyz", 1, ex=60)
    except (redis.ConnectionError, redis.TimeoutError):
        return "not reached"
    except redis.RedisError:
        return "refuses writes"
    return "ok"


def _broker() -> tuple[str, int | None]:
    """Return the state of Celery's broker and its number of waiting messages, or None if the number is not known."""
    if not settings.CELERY_BROKER_URL.startswith(REDIS_SCHEMES):
        return "not checked", None
    client = wiring.message_broker()
    state = _redis(client)
    try:
        return state, int(client.llen("celery"))
    except redis.RedisError:
        return state, None


def _beat_and_workers(waiting: int | None) -> dict[str, str]:
    """Return the states of beat and the workers.

    Beat sends a task that a worker runs, which stores the time. If that time is old, one of the two is silent. If
    messages wait, the workers do not take them. If none waits, beat sends none.
    """
    last = overview.last_heartbeat()
    if last is not None and wiring.now() - last <= overview.SILENT_AFTER:
        return {"beat": "ok", "workers": "ok"}
    if waiting is None:
        return {"beat": "silent, or the workers are", "workers": "silent, or beat is"}
    return {"beat": "unknown", "workers": "silent"} if waiting else {"beat": "silent", "workers": "unknown"}
