"""The lease: start, sharing and stop of requested servers."""

import json
import time

import pytest

from api.embedded import state
from testing.embedded_checkouts import Checkout, answers, sql

pytestmark = pytest.mark.servers


def test_two_users_share_servers_and_the_last_one_stops_them(checkout: Checkout) -> None:
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


def test_only_requested_servers_are_started(checkout: Checkout) -> None:
    # given a user of Redis only
    urls = checkout.use("redis")
    assert set(urls) == {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"}
    assert not (checkout.state / "postgres.log").exists()

    # when another user asks for PostgreSQL as well
    later = checkout.use()

    # then it gets the running Redis
    assert {name: later[name] for name in urls} == urls
    assert sql(later, "select 1") == [(1,)]


def test_fork_keeps_servers_after_its_parent_ends(checkout: Checkout) -> None:
    # given a user that forked and ended
    user = checkout.launch("postgres", "fork")
    urls = json.loads(user.stdout.readline())
    user.wait()

    # when the keeper has checked the lease for longer than its grace period
    time.sleep(1)

    # then the fork still has its server, and when it ends the server stops
    assert sql(urls, "select 1") == [(1,)]
    checkout.leave()
    assert not answers(urls["DATABASE_URL"])


def test_last_user_to_leave_stops_servers_at_once(checkout: Checkout) -> None:
    # given two users and a keeper with a grace period of an hour
    checkout.environment["KASOKO_EMBEDDED_GRACE_SECONDS"] = "3600"
    first, last = checkout.launch("postgres", "leave"), checkout.launch("postgres", "leave")
    urls = [json.loads(user.stdout.readline()) for user in (first, last)]

    # when one leaves, then the other still has its server
    assert first.communicate()[0] == "left\n"
    assert sql(urls[1], "select 1") == [(1,)]

    # when the other leaves, then nothing runs
    assert last.communicate()[0] == "left\n"
    assert not answers(urls[1]["DATABASE_URL"])
    assert not state.keeper_is_alive(checkout.state)
