"""Forged messages for a real worker: it refuses them, goes on, and pays each winner once."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from testing import forgeries
from testing.running import Running, running, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

SETTLE = "payments.settlement_tasks.settle_market"
SEND = "payments.settlement_tasks.send_b2c_payout"
LOOK = "payments.overview_tasks.look"
MARKETS = """
from markets.models import Bet, Market
from users.models import CustomUser
for number in (1, 2):
    market = Market.objects.create(question=f"Will it rain on day {number}?", end_date="2026-02-17")
    for outcome, amount in (("Yes", 100), ("No", 200)):
        phone = f"07123456{number}{amount // 100}"
        user = CustomUser.objects.create_user(phone_number=phone, full_name="Member", pin="1234")
        Bet.objects.create(user=user, market=market, outcome=outcome, amount=amount)
"""
PAID = "SELECT count(*) FROM payments_transaction WHERE status = 'COMPLETED' AND destination = 'mpesa'"


def message(task: Any, arguments: Any = (), *, body: bytes | None = None, **parts: Any) -> dict[str, Any]:
    """Return a message as Celery writes it to Redis, with some parts replaced. The header `x` replaces headers.x."""
    content = json.dumps([arguments, {}, {}]).encode() if body is None else body
    tag = uuid4().hex
    headers = {"lang": "py", "task": task, "id": tag, "root_id": tag, "retries": 0, "argsrepr": "", "kwargsrepr": ""}
    properties = {
        "correlation_id": tag,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }
    changed = {"body": base64.b64encode(content).decode(), "headers": headers | parts.pop("headers", {})}
    types = {"content-type": "application/json", "content-encoding": "utf-8"}
    return {**changed, **types, "properties": properties | parts.pop("properties", {}), **parts}


def forged(path: Path) -> Iterator[Any]:
    """Yield forged messages: no JSON, pickles, foreign names, wrong and large arguments, odd headers."""
    yield from forgeries.TEXTS.values()
    pickled = forgeries.forged_pickle(path)
    yield pickled
    for kind in ("application/x-python-serialize", "application/x-yaml", "text/plain", "application/data", None):
        for encoding in ("binary", "utf-8", None, 7):
            yield message(SETTLE, body=pickled, **{"content-type": kind, "content-encoding": encoding})
    yield message(SETTLE, body=base64.b64encode(pickled), headers={"compression": "application/x-gzip"})
    yield from ([], {}, None, 7, "text", {"body": "e30="}, {"properties": {}}, {"properties": None, "headers": {}})
    for name in (None, 7, [], {}, "os.system", "celery.map", "celery.chord_unlock", "payments.none", "x" * 100_000):
        yield message(name, [1])
    yield message("celery.map", [{"task": SEND, "args": [], "kwargs": {}}, [[1]] * 50])
    for task in (SETTLE, SEND, LOOK):
        for arguments in (
            [],
            [1, 2, 3],
            ["x"],
            [None],
            [[]],
            [{}],
            [-1],
            [0],
            [10**30],
            [1.5],
            ["1; DROP TABLE x"],
            ["9" * 900_000],
            [[0] * 100_000],
            {"a": 1},
            None,
            7,
        ):
            yield message(task, arguments)
        for body in (b"", b"{", b"[" * 50_000, b"null", b"[]", b"[[1]]", b"[[1], 7, 7]", b"\xff", pickled):
            yield message(task, body=body)
    odd = ("x", 7, [], {}, [None], -(10**30))
    for header in ("id", "root_id", "eta", "expires", "retries", "timelimit", "group", "origin", "ignore_result"):
        for value in odd:
            yield message(SETTLE, [1], headers={header: value})
    yield message(SETTLE, [1], headers={"timelimit": [0.001, 0.001]})
    yield message(SETTLE, [1], headers={"eta": "9999-12-31T00:00:00"})
    for name in ("delivery_tag", "delivery_info", "correlation_id", "reply_to", "priority", "body_encoding"):
        for value in odd:
            yield message(SETTLE, [1], properties={name: value})
    yield message(SETTLE, [1], headers=dict.fromkeys(("callbacks", "errbacks", "chord", "chain"), "x"))
    # A right message for what is not due: the market is not resolved, and no payout has this id.
    yield message(SETTLE, [2])
    yield message(SEND, [1])


def test_worker_refuses_forged_messages_and_pays_each_winner_once(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    with running(tmp_path) as place:
        place.start_simulator()
        with redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]) as broker:
            broker.hset("celery", "x", "y")
            broker.set("unacked", "x")
            broker.rpush("unacked_index", "x")
            place.start_web_and_worker()
            place.log_in()
            place.manage("shell", typed=MARKETS)
            for sent in forged(marker):
                broker.rpush("celery", sent if isinstance(sent, bytes) else json.dumps(sent))
                for channel in ("/0.celery.pidbox", "/1.celery.pidbox"):
                    broker.publish(channel, sent if isinstance(sent, bytes) else json.dumps(sent))
            broker.hset("unacked", "forged", b"\xff")
            broker.zadd("unacked_index", {"forged": 1})
            _until_read(place, broker)

        assert place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"}).status_code == 200
        until(lambda: place.sql(PAID) == [(1,)], "the winner to be paid", lambda: place.log("worker")[-3_000:])

        assert place.sql("SELECT status FROM markets_market WHERE id = 2") == [("OPEN",)]
        assert place.log("worker").count(" ready.") == 1
        assert "Traceback" not in place.log("web")
        assert not marker.exists()
        assert place.book()["double_paid"] == []
        assert "The books close" in place.manage("reconcile")


def _until_read(place: Running, broker: redis.Redis) -> None:
    until(lambda: not broker.llen("celery"), "the queue to be read", lambda: place.log("worker")[-3_000:])
