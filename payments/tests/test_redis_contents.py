"""Values in Redis that we did not write: nobody runs code, pays or crashes by them."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from django.conf import settings
from django.core.cache import cache

from payments import wiring
from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.rate_limit import Limiter
from payments.mpesa.sealing import Seal
from payments.payouts.restores import copies
from payments.settlement import preview_cache
from payments.settlement.decision import Decision
from testing import builders, forgeries
from testing.console_scenes import market_of_two
from testing.gateways import SEAL


@pytest.fixture
def server() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.REDIS_URL) as connection:
        yield connection


def new_token() -> tuple[str, int]:
    return "a-new-token", 3_600


def no_token() -> tuple[str, int]:
    raise AssertionError("The stored token should have been used.")


# --- M-Pesa's access token -------------------------------------------------------------------------------------------


def test_token_is_not_readable_in_redis(server: redis.Redis) -> None:
    name = uuid4().hex
    SharedTokens(server, name=name, seal=SEAL).get(lambda: ("the-token-in-clear", 3_600))
    assert b"the-token-in-clear" not in b"".join(server.hgetall(f"daraja:token:{name}").values())
    assert SharedTokens(server, name=name, seal=SEAL).get(no_token) == "the-token-in-clear"


@pytest.mark.parametrize("forgery", forgeries.NAMES)
def test_forged_token_is_not_sent_to_mpesa(server: redis.Redis, tmp_path: Path, forgery: str) -> None:
    tokens, name = None, uuid4().hex
    key = f"daraja:token:{name}"
    tokens = SharedTokens(server, name=name, seal=SEAL)
    forgeries.forge(server, key, forgery, tmp_path / "run")

    tokens.drop("an-old-token")
    forgeries.forge(server, key, forgery, tmp_path / "run")
    assert tokens.get(new_token) == "a-new-token"
    assert tokens.get(no_token) == "a-new-token"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["value", "margin"])
@pytest.mark.parametrize("text", forgeries.TEXTS.values(), ids=forgeries.TEXTS)
def test_forged_field_of_the_token_makes_workers_fetch_a_new_one(server: redis.Redis, field: str, text: bytes) -> None:
    name = uuid4().hex
    tokens = SharedTokens(server, name=name, seal=SEAL)
    tokens.get(lambda: ("an-old-token", 3_600))
    server.hset(f"daraja:token:{name}", field, text)
    assert tokens.get(new_token) == "a-new-token"


def test_token_sealed_for_another_name_or_with_another_secret_is_not_used(server: redis.Redis) -> None:
    ours, theirs = uuid4().hex, uuid4().hex
    SharedTokens(server, name=theirs, seal=SEAL).get(lambda: ("their-token", 3_600))
    server.copy(f"daraja:token:{theirs}", f"daraja:token:{ours}", replace=True)
    assert SharedTokens(server, name=ours, seal=SEAL).get(new_token) == "a-new-token"
    other = Seal("another secret", purpose="test")
    assert SharedTokens(server, name=theirs, seal=other).get(new_token) == "a-new-token"


# --- the pace --------------------------------------------------------------------------------------------------------


PACES = {
    **{name: name for name in forgeries.NAMES},
    "far future": f"{10**18} {10**15}",
    "infinite": "9" * 400 + " " + "9" * 400,
    "half infinite": "9" * 400 + " 1",
    "clock ahead": f"5 {10**17}",
}


@pytest.mark.parametrize("forgery", PACES)
def test_forged_pace_stops_sending_for_a_minute_at_most(server: redis.Redis, tmp_path: Path, forgery: str) -> None:
    limiter = Limiter(connection=server, name=uuid4().hex, per_second=Decimal(5))
    key = f"kasoko:pace:{limiter.name}"
    if forgery in forgeries.NAMES:
        forgeries.forge(server, key, forgery, tmp_path / "run")
    else:
        server.set(key, PACES[forgery])

    waits = [wait for _ in range(3) for wait in limiter.reserve(10, longest_wait_seconds=60)]

    assert len(waits) == 30
    assert all(0 <= wait <= 61 for wait in waits)
    assert sorted(waits) == waits
    assert len(set(waits)) == 30  # One request a slot: the pace holds.
    assert not (tmp_path / "run").exists()


# --- the heartbeat of the database -----------------------------------------------------------------------------------


@pytest.mark.parametrize("forgery", forgeries.NAMES)
def test_forged_heartbeat_is_no_copy(server: redis.Redis, tmp_path: Path, forgery: str) -> None:
    forgeries.forge(server, copies.KEY, forgery, tmp_path / "run")
    both = copies.Copies(server, tmp_path / "heartbeat")
    both.path.write_bytes(forgeries.TEXTS.get(forgery, forgeries.forged_pickle(tmp_path / "run")))
    assert both.read() == []
    both.write(database="ours", beats=7)
    assert [(copy.database, copy.beats) for copy in both.read()] == [("ours", 7)] * 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("beats", ["-1", "true", "1e3", str(2**63), "9" * 4_000])
def test_impossible_number_of_heartbeats_is_no_copy(server: redis.Redis, tmp_path: Path, beats: str) -> None:
    server.set(copies.KEY, f'{{"database": "ours", "beats": {beats}}}')
    assert copies.Copies(server, tmp_path / "heartbeat").read() == []


# --- previews --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgery", forgeries.NAMES)
def test_forged_preview_is_computed_again(
    db: None, server: redis.Redis, tmp_path: Path, at: datetime, forgery: str
) -> None:
    market, decision, rules = market_of_two(), Decision("WINNER", {"Yes": Decimal(100)}), builders.policy()
    (true,) = preview_cache.previews(market, [decision], at=at, policy=rules)
    forgeries.forge(server, cache.make_key(preview_cache._key(market, decision)), forgery, tmp_path / "run")
    (computed,) = preview_cache.previews(market, [decision], at=at, policy=rules)
    assert computed.preview == true.preview
    assert computed.current
    assert not (tmp_path / "run").exists()


def test_preview_moved_from_another_market_is_computed_again(db: None, server: redis.Redis, at: datetime) -> None:
    ours, theirs, rules = market_of_two(), market_of_two(), builders.policy()
    builders.orm_bet(theirs, builders.member(), "Yes", 5_000)
    decision = Decision("WINNER", {"Yes": Decimal(100)})
    (true,) = preview_cache.previews(ours, [decision], at=at, policy=rules)
    preview_cache.previews(theirs, [decision], at=at, policy=rules)
    keys = [cache.make_key(preview_cache._key(market, decision)) for market in (theirs, ours)]
    server.copy(*keys, replace=True)
    (kept,) = preview_cache.previews(ours, [decision], at=at, policy=rules)
    assert kept.preview == true.preview


# --- marks of nudges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgery", forgeries.NAMES)
def test_forged_mark_of_a_nudge_ends_with_the_next_sweep(server: redis.Redis, tmp_path: Path, forgery: str) -> None:
    key = f"kasoko:nudged:{wiring.SEND_DUE_PAYOUTS}"
    forgeries.forge(server, key, forgery, tmp_path / "run")
    wiring.nudge(wiring.SEND_DUE_PAYOUTS)
    wiring.sweep_began(wiring.SEND_DUE_PAYOUTS)
    assert not server.exists(key)
