"""The shared access token: fetched once, renewed in time, deleted only while it is the current token."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis
import responses

from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.client import Gateway
from payments.mpesa.gateway_errors import NotSent
from testing.gateways import ACK, PAY_URL, PAYMENT, SEAL, TOKEN_URL, credentials


def leave(redis_client: redis.Redis, name: str, seconds: float) -> None:
    """Let the shared token live for so many seconds from now."""
    assert redis_client.pexpire(f"daraja:token:{name}", int(1_000 * seconds))


def fetches(*values: str, life_seconds: int = 3600) -> Callable[[], tuple[str, int]]:
    left = list(values)
    return lambda: (left.pop(0), life_seconds)


def never() -> tuple[str, int]:
    raise AssertionError("the shared token was not used")


def test_token_is_shared_until_a_minute_before_its_end(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    first, second = (SharedTokens(redis_client, name=name, seal=SEAL) for _ in range(2))

    assert first.get(fetches("a")) == "a"
    assert 3_500 < redis_client.ttl(f"daraja:token:{name}") <= 3_600
    leave(redis_client, name, 1_000)
    assert second.get(never) == "a"
    leave(redis_client, name, 60)
    assert second.get(fetches("b")) == "b"
    assert first.get(never) == "b"


def test_short_lived_token_is_renewed_after_three_quarters_of_its_life(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    tokens = SharedTokens(redis_client, name=name, seal=SEAL)

    assert tokens.get(fetches("a", life_seconds=200)) == "a"
    leave(redis_client, name, 100)
    assert tokens.get(never) == "a"
    leave(redis_client, name, 50)
    assert tokens.get(fetches("b")) == "b"


def test_old_token_is_used_while_no_new_one_can_be_fetched(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    tokens = SharedTokens(redis_client, name=name, seal=SEAL)

    def unreachable() -> tuple[str, int]:
        raise NotSent("network")

    tokens.get(fetches("a"))
    leave(redis_client, name, 30)
    assert tokens.get(unreachable) == "a"
    redis_client.delete(f"daraja:token:{name}")
    with pytest.raises(NotSent):
        tokens.get(unreachable)


def test_clocks_of_hosts_do_not_end_the_token(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"test-{uuid4().hex}"
    SharedTokens(redis_client, name=name, seal=SEAL).get(fetches("a"))
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
    assert SharedTokens(redis_client, name=name, seal=SEAL).get(never) == "a"


def test_only_one_of_many_workers_fetches_the_token(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    fetched: list[int] = []
    barrier = threading.Barrier(8)

    def fetch() -> tuple[str, int]:
        fetched.append(1)
        return f"token-{len(fetched)}", 3600

    def worker(_: int) -> str:
        barrier.wait(30)
        return SharedTokens(redis_client, name=name, seal=SEAL, wait_seconds=30).get(fetch)

    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(worker, range(8)))

    assert values == {"token-1"}
    assert len(fetched) == 1


def test_other_workers_use_the_old_token_while_one_fetches(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    tokens = SharedTokens(redis_client, name=name, seal=SEAL)
    tokens.get(fetches("a"))
    leave(redis_client, name, 30)

    def fetch_while_another_asks() -> tuple[str, int]:
        assert tokens.get(never) == "a"
        return "b", 3600

    assert tokens.get(fetch_while_another_asks) == "b"


def test_worker_that_waits_too_long_for_a_token_sends_nothing(redis_client: redis.Redis) -> None:
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", seal=SEAL, wait_seconds=0.05)

    def fetch_while_another_asks() -> tuple[str, int]:
        with pytest.raises(NotSent):
            tokens.get(never)
        return "a", 3600

    assert tokens.get(fetch_while_another_asks) == "a"


def test_dropping_an_old_token_keeps_the_newer_one(tokens: SharedTokens) -> None:
    tokens.get(fetches("a"))
    tokens.drop("a")
    assert tokens.get(fetches("b")) == "b"

    tokens.drop("a")

    assert tokens.get(never) == "b"


def test_new_token_is_told_once(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    first, second = (SharedTokens(redis_client, name=name, seal=SEAL) for _ in range(2))
    assert first.age_of_news() is None
    first.get(fetches("a"))
    assert second.get(never) == "a"
    age = first.age_of_news()
    assert age is not None
    assert age >= 0
    assert (first.age_of_news(), second.age_of_news()) == (None, None)


def test_lock_that_expires_during_the_fetch_is_harmless(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    tokens = SharedTokens(redis_client, name=name, seal=SEAL)

    def fetch_for_too_long() -> tuple[str, int]:
        redis_client.delete(f"daraja:token:{name}:lock")
        return "a", 3600

    assert tokens.get(fetch_for_too_long) == "a"


@pytest.mark.parametrize(("life", "expires"), [("3599", 3599), (3599, 3599), (3599.0, 3599), (None, 1), ("soon", 1)])
def test_token_life_is_read_from_number_or_text(
    redis_client: redis.Redis, daraja: responses.RequestsMock, life: object, expires: int
) -> None:
    name = f"test-{uuid4().hex}"
    daraja.replace("GET", TOKEN_URL, json={"access_token": "a-token", "expires_in": life})
    daraja.post(PAY_URL, json=ACK)
    given: list[int] = []

    class Tokens(SharedTokens):
        def _write(self, value: str, life_seconds: int) -> str:
            given.append(life_seconds)
            return super()._write(value, life_seconds)

    Gateway(credentials(), tokens=Tokens(redis_client, name=name, seal=SEAL)).pay(**PAYMENT)

    assert given == [expires]
