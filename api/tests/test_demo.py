"""`make demo` and `make run` as a user runs them: as processes, with their own database and state directory."""

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
from testing.running import logins

pytestmark = pytest.mark.journey

Launch = Callable[..., "subprocess.Popen[str]"]
NAMES = ("simulator", "web", "worker", "beat")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the demo with its own database on the tests' server, and stop it at the end."""
    server, database = os.environ["DATABASE_URL"], f"kasoko_demo_{secrets.token_hex(4)}"
    maintenance = urlsplit(server)._replace(path="/postgres").geturl()
    launched: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        environment = os.environ | {
            **logins(urlsplit(server)._replace(path=f"/{database}").geturl()),
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
    """Return the pid of each running program, by name."""
    directory = tmp_path / "state" / "pids"
    return lambda: {path.name: int(path.read_text()) for path in directory.iterdir()}


def read_until(demo: "subprocess.Popen[str]", words: str) -> list[str]:
    """Read the demo's lines up to the first line that matches `words`. Fail with all lines if the demo ends first."""
    lines: list[str] = []
    assert demo.stdout is not None
    for line in demo.stdout:
        lines.append(line)
        if re.search(words, line):
            return lines
    pytest.fail(f"{words!r} never came:\n{''.join(lines)}")


def on_one_line(told: str) -> str:
    """Undo the wrapping of sentences."""
    return " ".join(told.split())


def row(name: str, *amounts: str) -> str:
    """Return a pattern for a row of a table: a name and amounts in shillings."""
    return name + "".join(f" +KES {re.escape(amount)}" for amount in amounts)


def group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def test_demo_proves_the_books_and_leaves_nothing_running(launch: Launch, pids: Callable[[], dict[str, int]]) -> None:
    # given
    demo = launch()
    story = read_until(demo, "0 failed")
    groups = pids()

    # when
    rest, _ = demo.communicate()

    # then
    told = "".join(story) + rest
    assert demo.returncode == 0, told
    assert set(groups) == set(NAMES)
    assert "FAILED: payout" in told
    assert "Baraka: COMPLETED" in told
    assert "LOST CALLBACK" in told
    assert "stake × KES 8,162.00 (the pool less the fee) ÷ KES 4,006.09 (the stakes on Yes)" in on_one_line(told)
    assert re.search(row("Achieng", "300.10", "611.4232", "611.42", "611.00", "0.42"), told)
    assert re.search(row("Zawadi", "4.40", "8.9646", "8.96", "0.00", "8.96"), told)
    assert re.search(row(r"\d+", "8,591.57", "8,162.00", "429.57", "0.00"), told)
    assert re.search(row(r"\d+", "245.75", "0.00", "0.00", "245.75"), told)
    assert re.search(row(r"\d+", "1,500.00", "1,425.00", "75.00", "0.00"), told)
    assert re.search(r"Paid out +KES 9,572\.00 +KES 9,572\.00", told)
    assert "REFUSED: You proposed this. Another member of staff must approve it." in on_one_line(told)
    assert "Kiprop has approved it with a code." in on_one_line(told)
    equation = "stakes KES 8,591.57 = dividends KES 8,162.00 + fee KES 429.57 + refunds KES 0.00"
    assert equation in on_one_line(told)
    assert re.search(r"Achieng, in one SMS: You won KES 510\.3\d on", told)
    assert told.count("It holds.") == 2
    assert pids() == {}
    assert all(group_is_gone(pid) for pid in groups.values())


@pytest.mark.long
def test_demo_runs_again_and_proves_both_runs_despite_a_killed_worker(
    launch: Launch, pids: Callable[[], dict[str, int]]
) -> None:
    # given
    first, _ = (demo := launch()).communicate()
    assert demo.returncode == 0, first

    # when
    again = launch()
    story = read_until(again, "of 12 payments completed, [1-9]")
    os.kill(pids()["worker"], signal.SIGKILL)
    rest, _ = again.communicate()

    # then: the second run has new members and pays every winner once, and the books of both runs agree with M-Pesa's
    told = "".join(story) + rest
    assert again.returncode == 0, told
    assert "worker died (SIGKILL) and is started again." in rest
    assert re.search(r"Payments +26 +26", told)
    assert re.search(r"Paid out +KES 19,144\.00 +KES 19,144\.00", told)


@pytest.mark.long
def test_make_run_stays_up_until_ctrl_c_and_its_commands_resolve_a_market(
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
    commands = told[told.index("TOKEN=$(curl") : told.index("Everything runs until Ctrl-C")]
    pasted = subprocess.run(["bash", "-e", "-c", commands], capture_output=True, text=True, timeout=60, check=False)
    os.killpg(demo.pid, signal.SIGINT)
    rest, _ = demo.communicate()

    # then
    assert status == 200
    assert pasted.returncode == 0, pasted.stderr
    assert '"status":"resolved"' in pasted.stdout
    assert re.search(r'"status":"(RESOLVED|SETTLED)","outcome":"Yes"', pasted.stdout)
    assert demo.returncode == 0, rest
    assert "FAILED: payout" in told
    assert pids() == {}
    assert all(group_is_gone(pid) for pid in groups.values())


def test_second_demo_is_refused_with_the_address_of_the_first(launch: Launch) -> None:
    # given
    told_first = "".join(read_until(launch(), "Members"))
    address = re.search(r"web +(http://127\.0\.0\.1:\d+)", told_first)

    # when
    second = launch()
    told, _ = second.communicate()

    # then
    assert second.returncode == 1
    assert address is not None
    assert f"running already: {address[1]}/admin/" in told


def test_demo_refuses_a_shell_set_up_for_production(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setenv("MPESA_PRODUCTION", "True")

    # when
    demo = launch()
    told, _ = demo.communicate()

    # then
    assert demo.returncode == 1
    assert "MPESA_PRODUCTION" in told
