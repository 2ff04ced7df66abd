"""The shared rate limit, in a real Redis. The tests check only returned numbers, not elapsed time."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import pairwise

import pytest
import redis
from django.conf import settings

from payments.mpesa.rate_limit import Limiter

# The rate is so slow that the time between two calls does not matter, even on a slow machine.
PER_SECOND = Decimal("0.1")
INTERVAL = 10.2
SLACK = 5.0


@pytest.fixture
def connection() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.REDIS_URL) as connection:
        connection.delete("kasoko:pace:test", "kasoko:pace:other")
        yield connection
        connection.delete("kasoko:pace:test", "kasoko:pace:other")


def spaced(waits: list[float]) -> bool:
    """Return True if successive waits are one interval apart, less the time that passed between the calls."""
    return all(INTERVAL - SLACK < later - sooner <= INTERVAL for sooner, later in pairwise(waits))


def test_first_slot_is_now_and_the_next_follow_at_intervals(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)

    # when
    waits = [limiter.reserve(longest_wait_seconds=1_000)[0] for _ in range(6)]

    # then
    assert waits[0] == 0.0
    assert spaced(waits)


def test_interval_is_two_per_cent_longer_than_the_limit(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=Decimal("0.001"))
    limiter.reserve(longest_wait_seconds=0)

    # when
    (wait,) = limiter.reserve(longest_wait_seconds=10_000)

    # then
    assert 1_020.0 - SLACK < wait <= 1_020.0


def test_slot_beyond_the_longest_wait_is_not_reserved(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)
    limiter.reserve(longest_wait_seconds=0)

    # when
    refused = [limiter.reserve(longest_wait_seconds=1.0) for _ in range(20)]

    # then
    assert refused == [[]] * 20
    assert INTERVAL - SLACK < limiter.reserve(longest_wait_seconds=1_000)[0] <= INTERVAL


def test_slots_of_one_call_are_an_interval_apart(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)

    # when
    waits = limiter.reserve(4, longest_wait_seconds=1_000)

    # then
    assert waits == [0.0, 10.2, 20.4, 30.6]
    assert 4 * INTERVAL - SLACK < limiter.reserve(longest_wait_seconds=1_000)[0] <= 4 * INTERVAL


def test_only_slots_within_the_longest_wait_are_reserved(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)

    # when
    first, second = limiter.reserve(100, longest_wait_seconds=25), limiter.reserve(100, longest_wait_seconds=25 - SLACK)

    # then
    assert (first, second) == ([0.0, 10.2, 20.4], [])


def test_workers_share_one_rate(connection: redis.Redis) -> None:
    # given
    limiters = [Limiter(connection=connection, name="test", per_second=PER_SECOND) for _ in range(8)]

    # when
    with ThreadPoolExecutor(8) as threads:
        waits = sorted(threads.map(lambda limiter: limiter.reserve(longest_wait_seconds=1_000)[0], limiters))

    # then
    assert waits[0] == 0.0
    assert spaced(waits)


def test_each_name_has_its_own_rate(connection: redis.Redis) -> None:
    # given
    Limiter(connection=connection, name="test", per_second=PER_SECOND).reserve(longest_wait_seconds=0)

    # when
    waits = Limiter(connection=connection, name="other", per_second=PER_SECOND).reserve(longest_wait_seconds=0)

    # then
    assert waits == [0.0]


def test_lost_key_loses_only_the_reserved_slots(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)
    for _ in range(5):
        limiter.reserve(longest_wait_seconds=1_000)
    connection.delete("kasoko:pace:test")

    # when
    waits = [limiter.reserve(longest_wait_seconds=1_000)[0] for _ in range(2)]

    # then
    assert waits[0] == 0.0
    assert INTERVAL - SLACK < waits[1] <= INTERVAL


def shift_clock(connection: redis.Redis, seconds: int) -> None:
    """Store the limiter's times as if Redis's clock had been set back by `seconds` since then."""
    stored = connection.get("kasoko:pace:test")
    assert isinstance(stored, bytes)
    times = [str(int(time) + seconds * 1_000_000) for time in stored.decode().split()]
    connection.set("kasoko:pace:test", " ".join(times))


def test_clock_set_back_keeps_the_pace(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)
    limiter.reserve(2, longest_wait_seconds=1_000)
    shift_clock(connection, 3_600)

    # when
    waits = limiter.reserve(2, longest_wait_seconds=1_000)

    # then: the third and the fourth slot
    assert 2 * INTERVAL - SLACK < waits[0] <= 2 * INTERVAL
    assert waits[1] - waits[0] == pytest.approx(INTERVAL)


def test_clock_set_back_while_no_slot_is_free_delays_nobody(connection: redis.Redis) -> None:
    # given: every slot within the longest wait is reserved
    limiter = Limiter(connection=connection, name="test", per_second=Decimal("20"))
    limiter.reserve(1_000, longest_wait_seconds=0.1)
    shift_clock(connection, 3_600)

    # when, then
    deadline = time.monotonic() + 60
    while not limiter.reserve(longest_wait_seconds=0.1):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clock_set_forward_forgets_only_the_reserved_slots(connection: redis.Redis) -> None:
    # given
    limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)
    limiter.reserve(5, longest_wait_seconds=1_000)
    shift_clock(connection, -3_600)

    # when, then
    assert limiter.reserve(2, longest_wait_seconds=1_000) == [0.0, INTERVAL]


def test_unreachable_redis_raises_redis_error() -> None:
    # given
    with redis.Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=2, socket_timeout=2) as connection:
        limiter = Limiter(connection=connection, name="test", per_second=PER_SECOND)

        # then
        with pytest.raises(redis.RedisError):
            limiter.reserve(longest_wait_seconds=1.0)
