"""Celery's results in Redis, where a result that nobody of us can have stored counts as missing.

Celery reads the present result before it stores one. So one forged value would keep a settlement's result from being
stored for ever.
"""

import logging
from typing import Any

from celery import states
from celery.backends import redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer

log = logging.getLogger("kasoko.alarm")


class Backend(redis.RedisBackend):
    """The result backend of `redis://` and `rediss://` URLs; api/celery.py registers it."""

    def _get_task_meta_for(self, task_id: Any) -> Any:
        try:
            return super()._get_task_meta_for(task_id)
        except (LostConnection, NoAnswer, OSError):
            raise
        except Exception as error:  # A value from outside may cause any error.
            log.warning("A task's result in Redis cannot be read and was dropped: %s", type(error).__name__)
            self.client.delete(self.get_key_for_task(task_id))
            return {"status": states.PENDING, "result": None}
