"""PostgreSQL's set-up: environment, half-made clusters, pid files, roles."""

import json
import os
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from testing.embedded_checkouts import Checkout, sql

pytestmark = pytest.mark.servers


def test_callers_environment_does_not_reach_the_servers(checkout: Checkout) -> None:
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


def test_half_made_database_is_made_again(checkout: Checkout) -> None:
    # given the directory that a killed initdb leaves
    checkout.use()
    checkout.leave()
    checkout.database.rename(checkout.database.with_suffix(".part"))

    # when
    urls = checkout.use()

    # then
    assert sql(urls, "select current_user, current_database()") == [("kasoko_app", "kasoko")]


def test_cluster_of_an_older_version_gets_the_applications_role(checkout: Checkout) -> None:
    # given: a cluster with one role, and its passwords
    checkout.use()
    checkout.leave()
    (checkout.database / "kasoko_application_role").unlink()
    passwords = json.loads((checkout.state / "secrets.json").read_text())
    del passwords["application"]
    (checkout.state / "secrets.json").write_text(json.dumps(passwords))

    # when
    urls = checkout.use()

    # then
    assert sql({"DATABASE_URL": urls["DATABASE_OWNER_URL"]}, "select current_user") == [("kasoko",)]
    assert sql(urls, "select current_user") == [("kasoko_app",)]


def test_stale_pid_file_of_a_live_process_does_not_prevent_start(checkout: Checkout) -> None:
    # given a pid file that a crash left, whose number now belongs to another process
    urls = checkout.use()
    checkout.leave()
    directory = checkout.database
    (directory / "postmaster.pid").write_text(f"{os.getpid()}\n{directory}\n1\n1\n\n127.0.0.1\n\nready\n")

    # when
    again = checkout.use()

    # then
    assert again == urls
    assert sql(again, "select 1") == [(1,)]


def test_project_is_no_superuser_and_both_servers_require_passwords(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # then
    role = "select rolsuper, rolcreatedb, rolcreaterole from pg_roles where rolname = current_user"
    assert sql(urls, role) == [(False, False, False)]
    assert sql({"DATABASE_URL": urls["DATABASE_OWNER_URL"]}, role) == [(False, True, False)]
    password = json.loads((checkout.state / "secrets.json").read_text())["application"]
    for wrong in (
        urls["DATABASE_URL"].replace(password, "guess"),
        urls["DATABASE_URL"].replace("//kasoko_app", "//kasoko_root"),
    ):
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(wrong)
    once = Retry(NoBackoff(), 0)
    with (
        redis.Redis(port=urlsplit(urls["CACHE_URL"]).port, retry=once) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
