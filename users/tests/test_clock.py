"""The database's clock: measured once a minute, independent of the host's clock."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.contrib.auth import authenticate
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from payments import wiring
from testing.builders import PIN, operator
from users import clock
from users.clock import DatabaseClock

ROOT = Path(__file__).resolve().parents[2]
AT = datetime(2026, 2, 16, 10, 30, tzinfo=UTC)


class Host:
    """A host with a clock of its own, and a database that a test moves."""

    def __init__(self) -> None:
        self.elapsed = 1_000.0
        self.database = AT
        self.measurements = 0
        self.round_trip = 0.0
        self.broken = False

    def measure(self) -> datetime:
        self.measurements += 1
        if self.broken:
            raise OperationalError("server closed the connection")
        self.elapsed += self.round_trip
        return self.database

    def pass_time(self, seconds: float) -> None:
        self.elapsed += seconds
        self.database += timedelta(seconds=seconds)

    def clock(self) -> DatabaseClock:
        return DatabaseClock(
            measure=self.measure,
            elapsed=lambda: self.elapsed,
            host_time=lambda: AT + timedelta(minutes=10),  # This host is ten minutes ahead.
        )


def test_time_is_the_databases_and_not_the_hosts() -> None:
    host = Host()
    assert host.clock().now() == AT


def test_database_is_asked_once_a_minute() -> None:
    # given
    host = Host()
    clock = host.clock()

    # when
    times = []
    for _ in range(6):
        times.append(clock.now())
        host.pass_time(20)

    # then
    assert times == [AT + timedelta(seconds=20 * number) for number in range(6)]
    assert host.measurements == 2


def test_new_measurement_corrects_the_time() -> None:
    # given
    host = Host()
    clock = host.clock()
    clock.now()

    # when: the database moved to a host whose clock is three seconds ahead
    host.pass_time(61)
    host.database += timedelta(seconds=3)

    # then
    assert clock.now() == AT + timedelta(seconds=64)


def test_time_goes_on_while_the_database_is_away() -> None:
    # given
    host = Host()
    clock = host.clock()
    clock.now()
    host.broken = True

    # when
    host.pass_time(90)
    times = [clock.now() for _ in range(5)]

    # then: one failed measurement, not five
    assert times == [AT + timedelta(seconds=90)] * 5
    assert host.measurements == 2


def test_host_clock_serves_until_the_database_answers_once() -> None:
    # given
    host = Host()
    clock = host.clock()
    host.broken = True
    before = clock.now()

    # when
    host.broken = False
    host.pass_time(6)

    # then
    assert before == AT + timedelta(minutes=10)
    assert clock.now() == AT + timedelta(seconds=6)


def test_slow_answer_does_not_replace_a_good_measurement() -> None:
    # given
    host = Host()
    clock = host.clock()
    clock.now()
    host.pass_time(61)

    # when: the answer took four seconds, and is from the beginning of them
    host.round_trip = 4.0
    now = clock.now()

    # then
    assert now == AT + timedelta(seconds=65)


@pytest.mark.django_db
def test_wired_clock_is_the_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    # given: this host's clock is ten minutes ahead
    ahead = timezone.now() + timedelta(minutes=10)
    monkeypatch.setattr(timezone, "now", lambda: ahead)

    # when
    now = wiring.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (of_database,) = cursor.fetchone()

    # then
    assert abs(of_database - now) < timedelta(minutes=1)
    assert wiring.dispatcher().clock() - now < timedelta(minutes=1)
    assert clock.database_time() >= of_database


@pytest.mark.django_db
def test_lock_of_a_login_ends_by_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # given: five wrong PINs lock the number; then this host's clock goes an hour ahead
    staff = operator()
    body = {"phone_number": staff.phone_number, "pin": "0000"}
    for _ in range(5):
        Client().post("/api/users/login/", body, "application/json")
    ahead = timezone.now() + timedelta(hours=1)
    monkeypatch.setattr(timezone, "now", lambda: ahead)

    # then
    assert Client().post("/api/users/login/", body | {"pin": PIN}, "application/json").status_code == 429
    assert authenticate(phone_number=staff.phone_number, password=PIN) is None


def test_every_edge_reads_the_databases_clock() -> None:
    # given
    edges = [*ROOT.glob("api/rest/*.py"), *ROOT.glob("api/console/**/*.py"), *ROOT.glob("payments/*.py")]
    edges += [*ROOT.glob("*/management/commands/*.py"), ROOT / "users/backends.py"]
    names = {str(path.relative_to(ROOT)): path for path in edges}

    # when
    own = {name for name, path in names.items() if re.search(r"timezone\.now\b|time\.time\b", path.read_text())}

    # then
    assert own == set(), "Use wiring.now(), so that a wrong clock of a host changes no decision."
