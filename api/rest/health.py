"""Is the process alive (`/healthz`), and can it work (`/readyz`)."""

import redis
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from payments.wiring import broker


def healthz(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 with PostgreSQL up; Redis down is told, but bets and resolves still work, and the sweeps catch up."""
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
