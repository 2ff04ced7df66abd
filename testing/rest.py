"""Unreadable bodies and checks of refusals, for the tests of both REST surfaces."""

from typing import Any

from django.test import Client

# Bodies that are not a JSON object (RFC 8259), or that hold values which cannot be stored. Every route answers 400.
UNREADABLE_BODIES = {
    "nothing": b"",
    "no JSON": b"market_id=1",
    "half an object": b'{"market_id": 1',
    "30 KB of brackets": b"[" * 30_000,
    "30 KB of braces": b'{"a":' * 6_000,
    "a list": b"[1]",
    "a text": b'"Yes"',
    "a number": b"7",
    "null": b"null",
    "NaN": b'{"market_id": NaN}',
    "Infinity": b'{"market_id": -Infinity}',
    "a key twice": b'{"outcome": "No", "outcome": "Yes", "amount": 5}',
    "NUL": b'{"outcome": "Yes\\u0000"}',
    "NUL in a key": b'{"\\u0000": 1}',
    "a lone surrogate": b'{"outcome": "\\ud800"}',
    "not UTF-8": b'{"outcome": "\xff\xfe"}',
    "UTF-16": '{"outcome": "Yes"}'.encode("utf-16"),
    "a number of a billion digits": b'{"market_id": 1e1000000000}',
    "a number of 5,000 digits": b'{"market_id": ' + b"9" * 5_000 + b"}",
    "100 KB of blanks": b"{" + b" " * 100_000 + b"}",
}


def post(client: Client, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    return client.post(path, body, content_type="application/json", headers=headers)


def assert_refused(answer: Any, status: int, code: str) -> None:
    """Assert that an answer is a refusal with this status and code, in the envelope that all refusals share."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.content
    assert answer["Content-Type"] == "application/json"
    assert set(answer.json()) == {"code", "message", "details"}
    assert answer.json()["message"]
    assert isinstance(answer.json()["details"], dict)
    assert b"Traceback" not in answer.content
