"""Beat: it needs no schedule file, and each entry is due when beat starts."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from api.beat_scheduler import MemoryScheduler
from api.celery import app
from testing.running import CELERY, ROOT, until

# The log has no lines about sweeps, but it has a line about this task.
SENT = "Sending due task ask for the float balance"
DAMAGED = {"zeroed": b"\0" * 12_288, "cut": b"\x13\x57\x9a\xce\0\0", "garbage": b"not a database" * 100, "empty": b""}


@pytest.fixture
def beats(tmp_path: Path) -> Iterator["Beats"]:
    beats = Beats(tmp_path)
    yield beats
    beats.stop()


class Beats:
    """Processes with a beat, each with its own schedule file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, schedule: Path, *command: str) -> None:
        """Start a process that gets `schedule` as its schedule file."""
        environment = {
            variable: value for variable, value in os.environ.items() if variable != "DJANGO_SETTINGS_MODULE"
        }
        with self.log_file(name).open("wb") as log:
            self.children[name] = subprocess.Popen(
                [*CELERY, *command, "-l", "info", "-s", str(schedule)],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def log_file(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text()

    def stop(self) -> None:
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(30)
            child.kill()
            child.wait(30)


def test_every_entry_is_due_when_beat_starts() -> None:
    # when
    scheduler = MemoryScheduler(app)

    # then
    due = [entry.is_due()[0] for entry in scheduler.schedule.values()]
    assert due == [True] * len(app.conf.beat_schedule)
    assert max(entry.schedule.run_every for entry in scheduler.schedule.values()) == timedelta(hours=1)
    scheduler.close()
    assert app.conf.beat_scheduler == "api.beat_scheduler:MemoryScheduler"


@pytest.mark.journey
@pytest.mark.long
def test_beat_runs_with_any_damage_to_its_schedule_file(beats: Beats) -> None:
    # given: damaged files, a directory in the file's place, and a path where no file can be created
    schedules = {}
    for name, content in DAMAGED.items():
        schedules[name] = beats.directory / f"schedule-{name}"
        schedules[name].write_bytes(content)
    schedules["directory"] = beats.directory
    schedules["impossible"] = Path("/dev/null/schedule")

    # when
    for name, schedule in schedules.items():
        beats.start(name, schedule, "beat")

    # then
    for name in schedules:
        until(lambda name=name: SENT in beats.log(name), f"beat ({name})", lambda name=name: beats.log(name))
        assert beats.children[name].poll() is None
    assert {name: schedules[name].read_bytes() for name in DAMAGED} == DAMAGED


@pytest.mark.journey
@pytest.mark.long
def test_beat_in_a_worker_runs_with_a_damaged_schedule_file(beats: Beats) -> None:
    # given
    schedule = beats.directory / "schedule"
    schedule.write_bytes(DAMAGED["zeroed"])

    # when
    beats.start("worker", schedule, "worker", "--concurrency=1", "-B", "--queues=nobody", "-n", f"beat{os.getpid()}@%h")

    # then
    until(lambda: SENT in beats.log("worker"), "beat in the worker", lambda: beats.log("worker"))
    assert schedule.read_bytes() == DAMAGED["zeroed"]
