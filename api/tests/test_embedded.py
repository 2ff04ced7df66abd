"""The servers of a checkout: shared, restarted, kept apart, and gone when nobody uses them.

Each test has a checkout of its own in a temporary directory that anyone may enter, and its users are real processes.
"""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api import embedded

pytestmark = pytest.mark.servers

# Announces the URLs, then holds the lease until its input ends. A fork may outlive it.
USER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import embedded
checkout, profile = Path(sys.argv[2]), sys.argv[3]
urls = embedded.ensure(checkout, postgres="postgres" in sys.argv, redis="redis" in sys.argv, profile=profile)
print(json.dumps(urls), flush=True)
if "fork" in sys.argv and os.fork():
    os._exit(0)
sys.stdin.read()
if "leave" in sys.argv:
    embedded.leave(checkout, profile)
    print("left", flush=True)
"""


class Checkout:
    """A directory with servers of its own, and the processes that use them."""

    def __init__(self, base_dir: Path, profile: embedded.Profile) -> None:
        base_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.base_dir = base_dir
        self.profile = profile
        self.state = embedded.state_dir(base_dir, profile)
        self.users: list[subprocess.Popen[str]] = []
        self.environment = os.environ | {"KASOKO_EMBEDDED_GRACE_SECONDS": "0.2"}

    def launch(self, *asked: str) -> subprocess.Popen[str]:
        api = str(Path(embedded.__file__).parent)
        asked = asked or ("postgres", "redis")
        command = [sys.executable, "-P", "-c", USER, api, str(self.base_dir), self.profile, *asked]
        pipe = subprocess.PIPE
        user = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self.environment)
        self.users.append(user)
        return user

    def use(self, *asked: str) -> dict[str, str]:
        """The URLs that a new user of the servers is told."""
        user = self.launch(*asked)
        line = user.stdout.readline()
        return json.loads(line) if line else pytest.fail(user.stderr.read())

    def leave(self) -> None:
        """All users end, and with them, after the grace, the servers."""
        self.end_users()
        until(lambda: not embedded._keeper_alive(self.state))

    def end_users(self) -> None:
        for user in self.users:
            user.communicate()
        self.users.clear()

    @property
    def keeper(self) -> int:
        return embedded._announced(self.state)["pid"]

    @property
    def place(self) -> Path:
        return embedded._place(self.state, embedded._account())

    @property
    def database(self) -> Path:
        (directory,) = self.place.glob("postgresql*")
        return directory


class MakeCheckout(Protocol):
    def __call__(self, name: str, profile: embedded.Profile = "durable") -> Checkout: ...


@pytest.fixture
def checkouts() -> Iterator[MakeCheckout]:
    made: list[Checkout] = []
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)

        def make(name: str, profile: embedded.Profile = "durable") -> Checkout:
            made.append(Checkout(Path(directory) / name, profile))
            return made[-1]

        yield make
        for checkout in made:
            checkout.end_users()
            embedded.erase(checkout.base_dir, checkout.profile)


@pytest.fixture
def checkout(checkouts: MakeCheckout) -> Checkout:
    return checkouts("checkout")


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "It did not happen within a minute."
        time.sleep(0.02)


def sql(urls: dict[str, str], statement: str) -> list[tuple]:
    connection = psycopg2.connect(urls["DATABASE_URL"])
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def broker(urls: dict[str, str]) -> redis.Redis:
    return redis.Redis.from_url(urls["CELERY_BROKER_URL"])


def answers(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=5).close()
    except OSError:
        return False
    return True


def test_two_processes_share_one_pair_and_the_last_one_out_stops_it(checkout: Checkout) -> None:
    # given two users of one checkout
    first = checkout.launch("postgres", "redis")
    urls = json.loads(first.stdout.readline())
    assert checkout.use() == urls

    # when one ends
    checkout.users.remove(first)
    first.communicate()

    # then the other still has its servers, until it ends too
    assert sql(urls, "select 1") == [(1,)]
    checkout.leave()
    assert not answers(urls["DATABASE_URL"])
    assert not answers(urls["CELERY_BROKER_URL"])


def test_only_what_is_asked_for_is_started(checkout: Checkout) -> None:
    # given a user of Redis only
    urls = checkout.use("redis")
    assert set(urls) == {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"}
    assert not (checkout.state / "postgres.log").exists()

    # when another user asks for PostgreSQL as well
    later = checkout.use()

    # then it joins the Redis that runs
    assert {name: later[name] for name in urls} == urls
    assert sql(later, "select 1") == [(1,)]


def test_a_fork_keeps_the_servers_after_its_parent(checkout: Checkout) -> None:
    # given a user that forked and ended
    user = checkout.launch("postgres", "fork")
    urls = json.loads(user.stdout.readline())
    user.wait()

    # when the keeper has looked at the lease for longer than its grace
    time.sleep(1)

    # then the fork still has its server, and once it ends nobody has
    assert sql(urls, "select 1") == [(1,)]
    checkout.leave()
    assert not answers(urls["DATABASE_URL"])


def test_data_are_kept_over_a_stop(checkout: Checkout) -> None:
    # given a row and a queued message
    urls = checkout.use()
    sql(urls, "create table kept as select 285.00 as dividend")
    with broker(urls) as client:
        client.lpush("celery", "hint")

    # when everything stops and starts again
    checkout.leave()
    again = checkout.use()

    # then both are there, at the same address
    assert again == urls
    assert str(sql(again, "select dividend from kept")) == "[(Decimal('285.00'),)]"
    with broker(again) as client:
        assert client.lrange("celery", 0, -1) == [b"hint"]


def test_a_killed_keeper_takes_its_servers_along_and_loses_nothing(checkout: Checkout) -> None:
    # given a committed row
    urls = checkout.use()
    sql(urls, "create table kept as select 1 as one")

    # when the keeper is killed and a new user comes at once
    os.kill(checkout.keeper, signal.SIGKILL)
    again = checkout.use()

    # then new servers have the old data
    assert sql(again, "select one from kept") == [(1,)]
    with broker(again) as client:
        assert client.ping()


def test_a_killed_postgres_is_started_again_on_its_port(checkout: Checkout) -> None:
    # given a running server
    urls = checkout.use()
    sql(urls, "create table kept as select 1 as one")
    first_start = sql(urls, "select pg_postmaster_start_time()")

    # when its first process is killed
    os.kill(int((checkout.place / "postgres.lock").read_text()), signal.SIGKILL)

    # then the same address answers again, with a new start time and the old data
    def restarted() -> bool:
        try:
            return sql(urls, "select pg_postmaster_start_time()") != first_start
        except psycopg2.OperationalError:
            return False

    until(restarted)
    assert sql(urls, "select one from kept") == [(1,)]


def test_two_checkouts_have_servers_of_their_own(checkouts: MakeCheckout) -> None:
    # given
    one, other = checkouts("one"), checkouts("other")

    # when
    urls, other_urls = one.use(), other.use()
    sql(urls, "create table mine as select 1")

    # then
    assert sql(other_urls, "select to_regclass('mine')") == [(None,)]
    with broker(urls) as client, broker(other_urls) as other_client:
        assert client.info("server")["process_id"] != other_client.info("server")["process_id"]


def test_what_the_caller_exports_does_not_reach_the_servers(checkout: Checkout) -> None:
    # given an environment that would break initdb and every client
    checkout.environment |= {
        "LC_ALL": "xx_YY.UTF-8",
        "LANG": "xx_YY.UTF-8",
        "PGHOST": "192.0.2.1",
        "PGPORT": "1",
        "PGDATA": "/nonexistent",
        "PGOPTIONS": "-c nonsense=1",
        "TZ": "Nowhere/Nothing",
    }

    # when
    urls = checkout.use()

    # then
    assert sql(urls, "show server_encoding") == [("UTF8",)]
    assert sql(urls, "select setting from pg_settings where name in ('TimeZone', 'log_timezone')") == [
        ("UTC",),
        ("UTC",),
    ]


def test_a_half_made_database_is_made_anew(checkout: Checkout) -> None:
    # given what an initdb leaves that was killed
    checkout.use()
    checkout.leave()
    checkout.database.rename(checkout.database.with_suffix(".part"))

    # when
    urls = checkout.use()

    # then
    assert sql(urls, "select current_user, current_database()") == [("kasoko", "kasoko")]


def test_a_stale_pid_file_that_names_a_living_process_does_not_stop_the_start(checkout: Checkout) -> None:
    # given a pid file left by a crash, whose number now belongs to somebody else
    urls = checkout.use()
    checkout.leave()
    directory = checkout.database
    (directory / "postmaster.pid").write_text(f"{os.getpid()}\n{directory}\n1\n1\n\n127.0.0.1\n\nready\n")

    # when
    again = checkout.use()

    # then
    assert again == urls
    assert sql(again, "select 1") == [(1,)]


def test_a_port_that_a_stranger_took_is_left_to_it(checkout: Checkout) -> None:
    # given both ports taken while the servers were down
    urls = checkout.use()
    checkout.leave()
    with socket.socket() as first, socket.socket() as second:
        for stranger, name in ((first, "DATABASE_URL"), (second, "CELERY_BROKER_URL")):
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", urlsplit(urls[name]).port))
            stranger.listen()

        # when
        again = checkout.use()

        # then the servers are elsewhere
        assert urlsplit(again["DATABASE_URL"]).port != urlsplit(urls["DATABASE_URL"]).port
        assert urlsplit(again["CELERY_BROKER_URL"]).port != urlsplit(urls["CELERY_BROKER_URL"]).port
        assert sql(again, "select 1") == [(1,)]


def test_the_project_is_not_the_superuser_and_both_servers_ask_for_a_password(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # then
    role = "select rolsuper, rolcreatedb, rolcreaterole from pg_roles where rolname = current_user"
    assert sql(urls, role) == [(False, True, False)]
    password = json.loads((checkout.state / "secrets.json").read_text())["app"]
    for wrong in (
        urls["DATABASE_URL"].replace(password, "guess"),
        urls["DATABASE_URL"].replace("//kasoko", "//kasoko_root"),
    ):
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(wrong)
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=urlsplit(urls["CACHE_URL"]).port, retry=once) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_missing_program_is_refused_with_both_cures_and_found_once_it_is_there(checkout: Checkout) -> None:
    # given a user of Redis, so that the keeper stays, and programs that are not where the variable says
    checkout.environment["KASOKO_PG_BIN"] = str(checkout.base_dir / "absent")
    checkout.use("redis")

    # when
    user = checkout.launch("postgres")
    _, complaint = user.communicate()

    # then
    assert user.returncode == 1
    assert "pip install -r requirements-embedded.txt" in complaint
    assert "DATABASE_URL" in complaint

    # and when they appear, the same keeper starts them
    (checkout.base_dir / "absent").symlink_to(embedded.find_program("postgres").parent)
    assert sql(checkout.use("postgres"), "select 1") == [(1,)]


def test_data_of_another_postgresql_version_are_not_passed_over(checkout: Checkout) -> None:
    # given a database that another version made
    checkout.use()
    checkout.leave()
    directory = checkout.database
    directory.rename(checkout.place / "postgresql9")

    # when
    user = checkout.launch("postgres")
    _, complaint = user.communicate()

    # then
    assert user.returncode == 1
    assert "postgresql9 was made by another version" in complaint
    assert not directory.exists()


def test_status_shows_where_the_servers_are_and_no_password(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # when
    shown = embedded.describe(checkout.base_dir, "durable")

    # then
    assert f"DATABASE_URL=postgresql://kasoko:***@127.0.0.1:{urlsplit(urls['DATABASE_URL']).port}/kasoko" in shown
    for password in json.loads((checkout.state / "secrets.json").read_text()).values():
        assert password not in shown


def test_stop_ends_the_servers_of_those_who_still_use_them(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # when
    stopped = embedded.stop(checkout.base_dir, "durable")

    # then
    assert stopped
    assert not answers(urls["DATABASE_URL"])
    assert not embedded.stop(checkout.base_dir, "durable")


def test_the_last_one_to_leave_stops_the_servers_at_once(checkout: Checkout) -> None:
    # given two users and a keeper that would wait an hour
    checkout.environment["KASOKO_EMBEDDED_GRACE_SECONDS"] = "3600"
    first, last = checkout.launch("postgres", "leave"), checkout.launch("postgres", "leave")
    urls = [json.loads(user.stdout.readline()) for user in (first, last)]

    # when one leaves, then the other has its server
    assert first.communicate()[0] == "left\n"
    assert sql(urls[1], "select 1") == [(1,)]

    # when the other leaves, then nothing runs
    assert last.communicate()[0] == "left\n"
    assert not answers(urls[1]["DATABASE_URL"])
    assert not embedded._keeper_alive(checkout.state)


@pytest.mark.parametrize("profile", ["durable", "fast"])
def test_data_and_passwords_are_in_the_checkout_and_closed_to_others(
    checkouts: MakeCheckout, profile: embedded.Profile
) -> None:
    # given
    checkout = checkouts("checkout", profile)
    checkout.use()
    account = embedded._account()

    # then only the servers' user opens the data, and only the checkout's owner the passwords
    def owner_and_mode(path: Path) -> tuple[int, str]:
        found = path.stat()
        return found.st_uid, oct(stat.S_IMODE(found.st_mode))

    for directory in (checkout.base_dir / ".kasoko", checkout.state):
        assert owner_and_mode(directory) == (os.geteuid(), "0o711" if account else "0o700")
    assert owner_and_mode(checkout.state / "secrets.json") == (os.geteuid(), "0o600")
    engines = [path for path in checkout.state.iterdir() if re.fullmatch("(postgresql|valkey|redis)[0-9]+", path.name)]
    assert len(engines) == 2
    for directory in engines:
        assert owner_and_mode(directory) == (account.pw_uid if account else os.geteuid(), "0o700")


def test_a_copy_of_a_checkout_begins_with_the_data_and_goes_its_own_way(
    checkout: Checkout, checkouts: MakeCheckout
) -> None:
    # given a copy made while the servers were down; a plain copy by root belongs to root
    sql(checkout.use("postgres"), "create table kept as select 1 as one")
    checkout.leave()
    shutil.copytree(checkout.base_dir, checkout.base_dir.with_name("copy"))
    copy = checkouts("copy")

    # when both run and the copy changes
    original_urls, copy_urls = checkout.use("postgres"), copy.use("postgres")
    sql(copy_urls, "update kept set one = 2")

    # then
    assert sql(original_urls, "select one from kept") == [(1,)]
    assert sql(copy_urls, "select one from kept") == [(2,)]


Enclose = Callable[[embedded.Profile], Checkout]


class TestRootInADirectoryThatOthersCannotEnter:
    pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")

    @pytest.fixture
    def enclosed(self, checkouts: MakeCheckout) -> Enclose:
        def make(profile: embedded.Profile) -> Checkout:
            checkout = checkouts("private/checkout", profile)
            checkout.base_dir.parent.chmod(0o700)
            return checkout

        return make

    def test_data_are_elsewhere_and_the_directory_stays_closed(self, enclosed: Enclose) -> None:
        # when
        checkout = enclosed("durable")
        sql(checkout.use(), "create table kept as select 1 as one")
        place = checkout.place
        checkout.leave()

        # then
        assert place.parent == embedded.ROOT_PLACE
        assert stat.S_IMODE(checkout.base_dir.parent.stat().st_mode) == 0o700
        assert not list(checkout.state.glob("postgresql*"))
        assert sql(checkout.use(), "select one from kept") == [(1,)]

    def test_the_tests_leave_nothing_there(self, enclosed: Enclose) -> None:
        # given
        checkout = enclosed("fast")
        sql(checkout.use(), "create table kept as select 1 as one")
        place = checkout.place
        assert place.is_dir()

        # when
        checkout.leave()

        # then, and the next run begins anew
        assert not place.exists()
        assert sql(checkout.use(), "select to_regclass('kept')") == [(None,)]

    def test_erasing_a_copy_spares_the_original(self, enclosed: Enclose) -> None:
        # given
        checkout = enclosed("durable")
        sql(checkout.use("postgres"), "create table kept as select 1 as one")
        checkout.leave()
        copy = checkout.base_dir.with_name("copy")
        shutil.copytree(checkout.base_dir, copy)

        # when
        embedded.erase(copy, "durable")

        # then
        assert sql(checkout.use("postgres"), "select one from kept") == [(1,)]

    def test_a_checkout_that_is_moved_there_brings_its_data(self, checkout: Checkout, enclosed: Enclose) -> None:
        # given data in a checkout that everyone may enter
        sql(checkout.use("postgres"), "create table kept as select 1 as one")
        checkout.leave()
        moved = enclosed("durable")

        # when
        (checkout.base_dir / ".kasoko").rename(moved.base_dir / ".kasoko")

        # then
        assert sql(moved.use("postgres"), "select one from kept") == [(1,)]
