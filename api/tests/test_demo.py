"""`make demo` and `make run` as a user runs them: as processes, with a database and a state of their own."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from api.demo import supervisor

pytestmark = pytest.mark.journey

Launch = Callable[..., "subprocess.Popen[str]"]
NAMES = ("simulator", "web", "worker", "beat")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the demo with a scratch database on the tests' server; what still runs at the end is stopped."""
    server, database = os.environ["DATABASE_URL"], f"kasoko_demo_{secrets.token_hex(4)}"
    maintenance = urlsplit(server)._replace(path="/postgres").geturl()
    launched: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "DATABASE_URL": urlsplit(server)._replace(path=f"/{database}").geturl(),
            "KASOKO_DEMO_DIR": str(tmp_path / "state"),
            "COLUMNS": "100",
        }
        command = [sys.executable, "-m", "api.demo", *arguments]
        demo = subprocess.Popen(
            command, cwd=supervisor.BASE_DIR, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        launched.append(demo)
        return demo

    with contextlib.closing(psycopg2.connect(maintenance)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {database}")
        yield start
        for demo in launched:
            demo.terminate()
            with demo:
                demo.wait()
        connection.cursor().execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], dict[str, int]]:
    """The pid of each running program, by name."""
    directory = tmp_path / "state" / "pids"
    return lambda: {path.name: int(path.read_text()) for path in directory.iterdir()}


def read_until(demo: "subprocess.Popen[str]", words: str) -> list[str]:
    """The demo's lines up to the first that has `words`; fails with all of them where it ends before."""
    lines: list[str] = []
    assert demo.stdout is not None
    for line in demo.stdout:
        lines.append(line)
        if re.search(words, line):
            return lines
    pytest.fail(f"{words!r} never came:\n{''.join(lines)}")


def group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_demo_proves_the_books_leaves_nothing_running_and_runs_again_though_its_worker_is_killed(
    launch: Launch, pids: Callable[[], dict[str, int]]
) -> None:
    # given
    demo = launch()
    story = read_until(demo, "0 failed")
    groups = pids()

    # when
    rest, _ = demo.communicate()
    left_running = pids()
    again = launch()
    story_again = read_until(again, "of 25 completed, [1-9]")
    os.kill(pids()["worker"], signal.SIGKILL)
    rest_again, _ = again.communicate()

    # then
    told = "".join(story) + rest
    assert demo.returncode == 0, told
    assert set(groups) == set(NAMES)
    assert "FAILED: payout" in told
    assert "Baraka: COMPLETED" in told
    assert "LOST CALLBACK" in told
    assert re.search(r"300\.10 × 8162\.00 ÷ 4006\.09 +611\.4232 +611\.42 +611\.00 +0\.42", told)
    assert re.search(r"Zawadi .* 8\.9646 +8\.96 +0\.00 +8\.96", told)
    assert re.search(r"8,591\.57 +8,162\.00 +429\.57 +0\.00", told)
    assert re.search(r"245\.75 +0\.00 +0\.00 +245\.75", told)
    assert re.search(r"Paid out +KES 8,147\.00 +KES 8,147\.00", told)
    assert "stakes 8591.57 = dividends 8162.00 + fee 429.57 + refunds 0.00" in told
    assert re.search(r"Achieng, in one SMS: You won KES 510\.3\d on", told)
    assert told.count("It holds.") == 2
    assert left_running == {}
    assert all(group_is_gone(pid) for pid in groups.values())
    # New members, every winner paid once, and the books of both runs agree with M-Pesa's.
    told_again = "".join(story_again) + rest_again
    assert again.returncode == 0, told_again
    assert "worker died (SIGKILL); it is started again." in rest_again
    assert re.search(r"Payments +24 +24", told_again)
    assert re.search(r"Paid out +KES 16,294\.00 +KES 16,294\.00", told_again)


def test_make_run_stays_up_until_ctrl_c_and_stops_everything(
    launch: Launch, pids: Callable[[], dict[str, int]]
) -> None:
    # given
    demo = launch("--stay")
    told = "".join(read_until(demo, "Everything runs until Ctrl-C"))
    console = re.search(r"Console +(http://127\.0\.0\.1:\d+/admin/)", told)
    groups = pids()

    # when
    assert console is not None
    with urllib.request.urlopen(console[1]) as answer:  # noqa: S310 - a loopback address
        status = answer.status
    os.killpg(demo.pid, signal.SIGINT)
    rest, _ = demo.communicate()

    # then
    assert status == 200
    assert demo.returncode == 0, rest
    assert "FAILED: payout" in told
    assert pids() == {}
    assert all(group_is_gone(pid) for pid in groups.values())


def test_two_demos_of_one_state_do_not_share_its_book(launch: Launch) -> None:
    # given
    read_until(launch(), "Members")

    # when
    second = launch()
    told, _ = second.communicate()

    # then
    assert second.returncode == 1
    assert "running already" in told


def test_the_demo_refuses_a_shell_that_is_set_up_for_production(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setenv("MPESA_PRODUCTION", "True")

    # when
    demo = launch()
    told, _ = demo.communicate()

    # then
    assert demo.returncode == 1
    assert "MPESA_PRODUCTION" in told
