"""Django's cache in Redis: signed JSON, so that a value which we did not write reads as missing."""

import pickle
from pathlib import Path

import pytest
import redis
from django.conf import settings
from django.core.cache import cache

from api.cache_serializer import MOST_BYTES, SignedJson
from api.console.pages import markets as market_pages
from testing import forgeries


@pytest.mark.parametrize("value", [None, True, 3, "x", [1, "é", None], {"a": [{"b": "c"}]}])
def test_value_of_json_survives_the_cache(value: object) -> None:
    assert SignedJson().loads(SignedJson().dumps(value)) == value


@pytest.mark.parametrize("forgery", forgeries.NAMES)
def test_value_that_we_did_not_write_is_missing(tmp_path: Path, forgery: str) -> None:
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        forgeries.forge(server, cache.make_key("console:test"), forgery, tmp_path / "run")
        assert market_pages._cached("console:test") is None
        market_pages._keep("console:test", {"labels": []}, 60)
        assert market_pages._cached("console:test") == {"labels": []}
    assert not (tmp_path / "run").exists()


def test_signed_value_moved_to_another_key_is_missing() -> None:
    market_pages._keep("console:one", {"labels": []}, 60)
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        server.copy(cache.make_key("console:one"), cache.make_key("console:two"), replace=True)
    assert market_pages._cached("console:two") is None


def test_value_with_a_changed_byte_or_of_great_size_is_missing() -> None:
    signed = SignedJson().dumps({"a": 1})
    assert SignedJson().loads(signed.replace(b"1", b"2", 1)) is None
    assert SignedJson().loads(SignedJson().dumps("x" * MOST_BYTES)) is None
    assert SignedJson().loads(pickle.dumps({"a": 1})) is None
