"""Results of settlements for Celery's result backend, where `AsyncResult(settlement_task_id)` reads them.

The database knows which results are stored. A result that could not be stored, or whose worker died, stays in the list
of `unstored`, and a sweep stores it later.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q

from payments.models import Settlement

State = Settlement.State
Stored = Settlement.StoredResult
# Celery's own default for the life of a result. Later nobody reads it.
KEPT_FOR = timedelta(days=1)


@dataclass(frozen=True)
class TaskResult:
    """The result of one settlement. `task_id` is the `settlement_task_id` of the resolve.

    `failure` is the reason of a failure, or empty.
    """

    settlement_id: int
    task_id: uuid.UUID
    market_id: int
    number: int
    failure: str

    @property
    def state(self) -> str:
        """SUCCESS or FAILURE, as Celery and the column call it."""
        return str(Stored.FAILURE if self.failure else Stored.SUCCESS)


def unstored(*, at: datetime, limit: int) -> list[TaskResult]:
    """Return results that are known and not stored yet: settled markets, and divisions that found wrong books."""
    settled = Q(settled_at__gte=at - KEPT_FOR) & ~Q(stored_result=Stored.SUCCESS)
    failed = Q(state__in=[State.PENDING, State.DIVIDING], stored_result="") & ~Q(failure="")
    settlements = Settlement.objects.filter(settled | failed).order_by("pk")[:limit]
    return [
        TaskResult(
            settlement.pk,
            settlement.public_id,
            settlement.market_id,
            settlement.number,
            "" if settlement.settled_at else settlement.failure,
        )
        for settlement in settlements
    ]


def mark_stored(result: TaskResult) -> None:
    """Record that a result is stored. Idempotent. Locks: the Settlement."""
    Settlement.objects.filter(pk=result.settlement_id).update(stored_result=result.state)
