"""Forged task results in Redis: no code runs, and a settlement's result is still stored."""

import json
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery.result import AsyncResult
from django.conf import settings

from api.celery import app
from payments import wiring
from payments.settlement.task_results import TaskResult
from testing import forgeries

# Celery once called what a failed result names as its exception.
CALLS = {"exc_type": "system", "exc_module": "os", "exc_message": ["touch {path}"]}


@pytest.mark.parametrize("forgery", [*forgeries.NAMES, "call"])
def test_forged_result_runs_no_code_and_gives_way_to_the_true_one(tmp_path: Path, forgery: str) -> None:
    task_id, marker = uuid4(), tmp_path / "run"
    key = f"celery-task-meta-{task_id}"
    with redis.Redis.from_url(settings.CELERY_RESULT_BACKEND) as server:
        if forgery == "call":
            called = CALLS | {"exc_message": [f"touch {marker}"]}
            server.set(key, json.dumps({"status": "FAILURE", "result": called, "task_id": str(task_id)}))
        else:
            forgeries.forge(server, key, forgery, marker)
        with suppress(Exception):
            str(AsyncResult(str(task_id), app=app).result)

        stored = [wiring.store_result(TaskResult(1, task_id, 1, 1, "")) for _ in range(2)]

        assert not marker.exists()
        assert stored[-1]
        assert AsyncResult(str(task_id), app=app).state == "SUCCESS"
