"""Health checks: `/healthz` for the process alone, `/readyz` for the process with its servers."""

import redis
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from payments.wiring import broker


def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if the process runs."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if PostgreSQL answers, else 503.

    The body also reports Redis. Without Redis members can still bet and staff can still resolve; the sweeps later do
    the work for which no message was sent.
    """
    checks = {"postgresql": _postgresql(), "redis": _redis()}
    return JsonResponse(checks, status=200 if checks["postgresql"] == "ok" else 503)


def _postgresql() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return "not reached"
    return "ok"


def _redis() -> str:
    try:
        broker().ping()
    except redis.RedisError:
        return "not reached"
    return "ok"
