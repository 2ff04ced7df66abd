"""Beat's scheduler, which keeps the times of the last runs in memory only."""

from typing import Any

from celery.beat import Scheduler


class MemoryScheduler(Scheduler):
    """Scheduler without a file: all entries are due when beat starts.

    Celery's own scheduler ends beat if its file is damaged, for example by a full disk. Nothing in that file is needed.
    Each task of the schedule is a sweep, which may run at any time.
    """

    def setup_schedule(self) -> None:
        """Read the schedule from the settings, and make each entry due."""
        super().setup_schedule()
        schedule: dict[str, Any] = self.schedule
        for entry in schedule.values():
            entry.last_run_at -= entry.schedule.run_every
