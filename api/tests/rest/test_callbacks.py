"""Tests of api/rest/callbacks.py: stored and refused callbacks, trusted addresses, and servers that are down."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import Settings
from django.test import Client
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from payments import settlement_tasks
from payments.models import Attempt, Callback, StatusQuery, Transaction
from payments.payouts.evidence import callbacks
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import ADDRESSES, after, question, result_body, sent, states, status_body

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[3]
ACCEPTED = {"ResultCode": 0, "ResultDesc": "Accepted"}
MPESA = "196.201.214.200"
UNKNOWN = "0" * 64
PLAIN = "/api/payments/b2c-callback/"


@pytest.fixture(autouse=True)
def _addresses_of_the_test_kit(settings: Settings) -> None:
    settings.CALLBACK_TOKEN_KEY, settings.MPESA_CALLBACK_URL = ADDRESSES.key, ADDRESSES.callback_url


@pytest.fixture
def payout() -> Transaction:
    """285 shillings owed to a member over M-Pesa."""
    return builders.payout(285)


@pytest.fixture
def attempt(payout: Transaction) -> Attempt:
    return sent(payout)


@pytest.fixture
def caller() -> Client:
    """A client without a CSRF token, like M-Pesa."""
    return Client(enforce_csrf_checks=True, raise_request_exception=False)


def path(kind: str, token: str) -> str:
    return f"/api/payments/{kind}/{token}/"


def own(attempt: Attempt) -> str:
    return ADDRESSES.token(attempt.originator_conversation_id)


def post(caller: Client, where: str, body: bytes, source: str = MPESA, **headers: str) -> Any:
    return caller.post(where, body, content_type="application/json", REMOTE_ADDR=source, headers=headers)


# --- stored callbacks ------------------------------------------------------------------------------------------------


def test_result_is_stored_raw_answered_and_applied_later(
    caller: Client, payout: Transaction, attempt: Attempt, queued: Callable[[], list[tuple[str, str, list[Any]]]]
) -> None:
    # given
    body = result_body(attempt)

    # when
    answer = post(caller, path("b2c-callback", own(attempt)), body)
    stored = Callback.objects.get()
    before = states(payout, attempt)
    settlement_tasks.apply_stored_callbacks()

    # then
    assert (answer.status_code, answer.json()) == (200, ACCEPTED)
    assert (stored.kind, stored.attempt_id, stored.query_id) == ("result", attempt.pk, None)
    assert (bytes(stored.body), stored.source_ip, stored.trusted) == (body, MPESA, True)
    assert (stored.applied_at, stored.verdict) == (None, "")
    assert before == ("PROCESSING", "ACCEPTED")
    assert [name for name, _, _ in queued()] == ["payments.settlement_tasks.apply_stored_callbacks"]
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    stored.refresh_from_db()
    assert stored.verdict == "paid"
    assert stored.applied_at is not None


def test_repeated_body_is_stored_once(caller: Client, attempt: Attempt) -> None:
    # when
    answers = [post(caller, path("b2c-callback", own(attempt)), result_body(attempt)).status_code for _ in range(3)]

    # then
    assert answers == [200, 200, 200]
    assert Callback.objects.count() == 1


def test_different_body_at_same_address_is_stored_too(caller: Client, attempt: Attempt) -> None:
    # when
    for body in (result_body(attempt), result_body(attempt, 2040)):
        post(caller, path("b2c-callback", own(attempt)), body)

    # then
    assert Callback.objects.count() == 2


def test_repeated_store_of_a_callback_adds_one_row(attempt: Attempt) -> None:
    # given
    callback = {
        "kind": "result",
        "token": own(attempt),
        "body": b"{}",
        "source_ip": None,
        "trusted": True,
        "at": after(1),
        "addresses": ADDRESSES,
    }

    # when
    callbacks.store(**callback)
    callbacks.store(**callback)

    # then
    assert Callback.objects.count() == 1


def test_answer_is_stored_for_its_query(caller: Client, attempt: Attempt) -> None:
    # given
    asked = question(attempt, after(20))

    # when
    answer = post(caller, path("status-result", asked.token), status_body(attempt))

    # then
    assert answer.status_code == 200
    assert list(Callback.objects.values_list("kind", "attempt", "query")) == [("status", None, asked.query_id)]


def test_timeout_is_stored_for_its_request_or_query(caller: Client, attempt: Attempt) -> None:
    # given
    asked = question(attempt, after(20))

    # when
    answers = [post(caller, path("b2c-timeout", token), b"{}").status_code for token in (own(attempt), asked.token)]

    # then
    assert answers == [200, 200]
    assert list(Callback.objects.order_by("pk").values_list("kind", "attempt", "query")) == [
        ("timeout", attempt.pk, None),
        ("timeout", None, asked.query_id),
    ]


def test_body_is_stored_up_to_16_kibibytes(caller: Client, attempt: Attempt) -> None:
    # given
    longest = result_body(attempt).ljust(16 * 1024)

    # when
    answers = [post(caller, path("b2c-callback", own(attempt)), body) for body in (longest + b" ", longest)]

    # then
    assert [answer.status_code for answer in answers] == [400, 200]
    assert answers[0].json()["code"] == "body_too_large"
    assert bytes(Callback.objects.get().body) == longest


# --- refused callbacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["b2c-callback", "b2c-timeout", "status-result"])
def test_unknown_token_answers_404_and_stores_nothing(caller: Client, attempt: Attempt, kind: str) -> None:
    # then
    with nothing_moved():
        answer = post(caller, path(kind, UNKNOWN), result_body(attempt))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert Callback.objects.count() == 0


def test_token_works_only_at_its_own_kind_of_address(caller: Client, attempt: Attempt) -> None:
    # given
    asked = question(attempt, after(20))

    # when
    answers = [
        post(caller, path("b2c-callback", asked.token), result_body(attempt)).status_code,
        post(caller, path("status-result", own(attempt)), status_body(attempt)).status_code,
    ]

    # then
    assert answers == [404, 404]
    assert Callback.objects.count() == 0


@pytest.mark.parametrize("kind", ["b2c-callback", "b2c-timeout", "status-result"])
@pytest.mark.parametrize("verb", ["get", "head", "put", "patch", "delete", "options"])
def test_methods_other_than_post_answer_405(caller: Client, attempt: Attempt, kind: str, verb: str) -> None:
    assert getattr(caller, verb)(path(kind, own(attempt))).status_code == 405


@pytest.mark.parametrize("kind", ["b2c-callback", "b2c-timeout", "status-result"])
def test_address_without_its_slash_answers_404_without_redirect(caller: Client, attempt: Attempt, kind: str) -> None:
    # when
    answer = post(caller, path(kind, own(attempt)).removesuffix("/"), result_body(attempt))

    # then
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert Callback.objects.count() == 0


@pytest.mark.parametrize("token", ["0" * 63, "0" * 65, "G" * 64, "A" * 64, "%00", "..", "٣" * 64])
def test_malformed_token_answers_404(caller: Client, token: str) -> None:
    assert post(caller, f"{PLAIN}{token}/", b"{}").status_code == 404


def test_plain_path_without_its_slash_answers_404(caller: Client) -> None:
    assert post(caller, PLAIN.removesuffix("/"), b"{}").status_code == 404


# --- generated bodies ------------------------------------------------------------------------------------------------

ANYTHING = hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# An address stores at most 50 different bodies.
FEWER = hypothesis_settings(ANYTHING, max_examples=40)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([0, "0", 1, 2040, 285])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
FIELDS = st.sampled_from(
    ["ResultType", "ResultCode", "ResultDesc", "OriginatorConversationID", "ConversationID", "TransactionID",
     "ExternalReference", "ResultParameters"]
)  # fmt: skip
PARAMETERS = st.fixed_dictionaries(
    {"ResultParameter": st.lists(st.fixed_dictionaries({"Key": st.text(max_size=12), "Value": VALUES}), max_size=4)}
)


@ANYTHING
@given(body=st.binary(max_size=200))
@example(body=b"")
@example(body=b"null")
@example(body=b"[" * 8_000)
@example(body=b'{"Result": NaN}')
@example(body=b'{"Result": {"ResultCode": "\\u0000"}}')
@example(body=b'{"Result": {"ResultCode": 0, "ResultCode": 1}}')
@example(body=b"\xef\xbb\xbf{}")
@example(body=b'{"Result": {"ResultCode": 1' + b"0" * 5_000 + b"}}")
def test_any_bytes_at_an_unknown_address_store_nothing(caller: Client, attempt: Attempt, body: bytes) -> None:
    for kind in ("b2c-callback", "b2c-timeout", "status-result"):
        assert post(caller, path(kind, UNKNOWN), body).status_code == (404 if body else 411)
    assert Callback.objects.count() == 0


@FEWER
@given(body=st.binary(min_size=1, max_size=200))
@example(body=b"null")
@example(body=b"[" * 8_000)
@example(body=b'{"Result": NaN}')
@example(body=b'{"Result": {"ResultCode": "\\u0000"}}')
@example(body=b'{"Result": {"ResultCode": 0, "ResultCode": 1}}')
@example(body=b"\xef\xbb\xbf{}")
@example(body=b'{"Result": {"ResultCode": 1' + b"0" * 5_000 + b"}}")
def test_any_bytes_at_a_known_address_are_stored_and_applied_without_error(
    caller: Client, payout: Transaction, attempt: Attempt, body: bytes
) -> None:
    _post_and_apply(caller, attempt, body)
    assert states(payout, attempt)[1] in ("ACCEPTED", "IN_DOUBT")


@FEWER
@given(changes=st.dictionaries(FIELDS, VALUES | PARAMETERS, max_size=5), genuine=st.booleans())
def test_any_message_at_a_known_address_is_stored_and_applied_without_error(
    caller: Client, attempt: Attempt, changes: dict[str, Any], genuine: bool
) -> None:
    base = json.loads(result_body(attempt, 2040))["Result"] if genuine else {"ResultCode": 0}
    _post_and_apply(caller, attempt, json.dumps({"Result": base | changes}).encode())


def _post_and_apply(caller: Client, attempt: Attempt, body: bytes) -> None:
    """Post a body to the attempt's three addresses and to the plain one, then apply the stored callbacks."""
    asked = StatusQuery.objects.filter(attempt=attempt).first()
    token = ADDRESSES.token(f"{attempt.originator_conversation_id}?1") if asked else question(attempt, after(20)).token
    answers = [
        post(caller, path("b2c-callback", own(attempt)), body),
        post(caller, path("b2c-timeout", own(attempt)), body),
        post(caller, path("status-result", token), body),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert post(caller, PLAIN, body).status_code in (200, 400, 404)
    for callback_id in Callback.objects.filter(applied_at=None).values_list("pk", flat=True):
        assert callbacks.apply(callback_id=callback_id, at=after(30), policy=payout_steps.POLICY)


# --- source addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "source", "trusted"),
    [
        (0, MPESA, "", MPESA, True),
        (0, "6.6.6.6", "", "6.6.6.6", False),
        (0, "6.6.6.6", MPESA, "6.6.6.6", False),
        (1, "10.0.0.1", MPESA, MPESA, True),
        (1, "10.0.0.1", f"{MPESA}, 6.6.6.6", "6.6.6.6", False),
        (1, "10.0.0.1", f"6.6.6.6, {MPESA}", MPESA, True),
        (2, "10.0.0.1", f"{MPESA}, 10.0.0.2", MPESA, True),
        (2, "10.0.0.1", f"{MPESA}, 6.6.6.6, 10.0.0.2", "6.6.6.6", False),
        (1, "10.0.0.1", "", "10.0.0.1", False),
        (2, "10.0.0.1", MPESA, "10.0.0.1", False),
        (1, "10.0.0.1", "unknown", None, False),
        (1, "10.0.0.1", f"{MPESA}:443", MPESA, True),
        (1, "10.0.0.1", f"::ffff:{MPESA}", MPESA, True),
        (1, "10.0.0.1", f"[::ffff:{MPESA}]:443", MPESA, True),
        (1, "10.0.0.1", f' "{MPESA}" ', MPESA, True),
        (1, "10.0.0.1", "fe80::1%eth0", "fe80::1", False),
        (1, "", MPESA, MPESA, True),
        (1, "::ffff:10.0.0.1", MPESA, MPESA, True),
        (1, "6.6.6.6", MPESA, "6.6.6.6", False),
        (2, "10.0.0.1", f"{MPESA}, 6.6.6.6", "6.6.6.6", False),
        (0, f"::ffff:{MPESA}", "", MPESA, True),
        (0, f"{MPESA}:55001", "", MPESA, True),
        (0, "fe80::1%eth0", "", "fe80::1", False),
        (0, "[::1]:80", "", "::1", False),
        (0, "1.2.3.4:x", "", None, False),
        (0, "\x00", "", None, False),
        (1, "10.0.0.1", "2001:db8::1", "2001:db8::1", False),
        (0, "", "", None, False),
    ],
)
def test_source_is_the_address_that_our_own_proxies_saw(
    caller: Client,
    attempt: Attempt,
    settings: Settings,
    hops: int,
    peer: str,
    forwarded: str,
    source: str | None,
    trusted: bool,
) -> None:
    # given
    settings.TRUSTED_PROXY_HOPS = hops

    # when
    answer = post(
        caller, path("b2c-callback", own(attempt)), result_body(attempt), peer, **{"X-Forwarded-For": forwarded}
    )

    # then
    stored = Callback.objects.get()
    assert answer.status_code == 200
    assert (stored.source_ip, stored.trusted) == (source, trusted)


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "source"),
    [
        (0, "203.0.113.7", MPESA, MPESA),
        (0, "203.0.113.7", f"{MPESA}, 203.0.113.9", MPESA),
        (0, "203.0.113.7", f"{MPESA}, 6.6.6.6, 203.0.113.9", "6.6.6.6"),
        (0, "203.0.113.7", f"{MPESA}, unknown", None),
        (0, "203.0.113.7", "203.0.113.9", "203.0.113.9"),
        (0, "203.0.113.7", "", "203.0.113.7"),
        (0, "10.0.0.1", MPESA, "10.0.0.1"),
        (0, "6.6.6.6", MPESA, "6.6.6.6"),
        (0, "6.6.6.6", f"{MPESA}, 203.0.113.9", "6.6.6.6"),
        (0, "nonsense", MPESA, None),
        (1, "203.0.113.7", f"{MPESA}, 203.0.113.9", "203.0.113.9"),
        (2, "203.0.113.7", f"{MPESA}, 203.0.113.9", MPESA),
        (2, "203.0.113.7", MPESA, "203.0.113.7"),
    ],
)
def test_forwarded_addresses_count_only_from_configured_proxies(
    caller: Client, attempt: Attempt, settings: Settings, hops: int, peer: str, forwarded: str, source: str | None
) -> None:
    # given
    settings.TRUSTED_PROXIES, settings.TRUSTED_PROXY_HOPS = ["203.0.113.0/24"], hops

    # when
    answer = post(
        caller, path("b2c-callback", own(attempt)), result_body(attempt), peer, **{"X-Forwarded-For": forwarded}
    )

    # then
    stored = Callback.objects.get()
    assert (answer.status_code, stored.source_ip, stored.trusted) == (200, source, source == MPESA)


@pytest.mark.parametrize(("source", "expected_status"), [(MPESA, "COMPLETED"), ("6.6.6.6", "PROCESSING")])
def test_in_production_untrusted_callback_is_stored_but_completes_nothing(
    caller: Client, payout: Transaction, attempt: Attempt, settings: Settings, source: str, expected_status: str
) -> None:
    # given
    settings.MPESA_PRODUCTION = True

    # when
    answer = post(caller, path("b2c-callback", own(attempt)), result_body(attempt), source)
    settlement_tasks.apply_stored_callbacks()

    # then
    assert answer.status_code == 200
    assert Callback.objects.get().applied_at is not None
    assert states(payout, attempt)[0] == expected_status


@pytest.mark.parametrize("applied_between", [True, False])
def test_untrusted_body_counts_once_mpesa_sends_the_same_body(
    caller: Client, payout: Transaction, attempt: Attempt, settings: Settings, applied_between: bool
) -> None:
    # given
    settings.MPESA_PRODUCTION = True
    where, body = path("b2c-callback", own(attempt)), result_body(attempt)
    post(caller, where, body, "6.6.6.6")
    if applied_between:
        settlement_tasks.apply_stored_callbacks()
        assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")

    # when
    answers = [post(caller, where, body, source).status_code for source in (MPESA, MPESA, "6.6.6.6")]
    settlement_tasks.apply_stored_callbacks()

    # then: both are stored as they came, each once
    assert answers == [200, 200, 200]
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    stored = Callback.objects.order_by("pk").values_list("source_ip", "trusted", "verdict")
    assert list(stored)[1] == (MPESA, True, "paid")
    assert [(source, trusted) for source, trusted, _ in stored] == [("6.6.6.6", False), (MPESA, True)]


# --- the guide's plain path ------------------------------------------------------------------------------------------


def guides_body(reference: str, code: int = 0) -> bytes:
    return json.dumps(
        {
            "Result": {
                "ResultCode": code,
                "ResultDesc": "The service request has been processed successfully.",
                "OriginatorConversationID": "...",
                "ConversationID": "...",
                "ExternalReference": reference,
                "ResponseDescription": "success",
            }
        }
    ).encode()


def test_plain_callback_completes_the_payout_at_once(caller: Client, payout: Transaction) -> None:
    # when
    answer = post(caller, PLAIN, guides_body(payout.external_ref), "127.0.0.1")

    # then
    payout.refresh_from_db()
    assert (answer.status_code, answer.json()) == (200, ACCEPTED)
    assert payout.status == "COMPLETED"


def test_repeated_plain_callback_pays_once(caller: Client, payout: Transaction) -> None:
    # when
    answers = [post(caller, PLAIN, guides_body(payout.external_ref)).status_code for _ in range(3)]

    # then
    assert answers == [200, 200, 200]
    assert payout.attempts.count() == 1
    assert len(builders.transfers(code="paid")) == 1


def test_plain_callback_with_an_unknown_reference_answers_404(caller: Client, payout: Transaction) -> None:
    # then
    with nothing_moved():
        answer = post(caller, PLAIN, guides_body("KASOKO-1-1-1613398249.5"))
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_reference")


@pytest.mark.parametrize("body", [b"hello", b"[]", b"{}", b'{"Result": []}', b"[" * 8_000])
def test_unreadable_plain_callback_answers_400(caller: Client, payout: Transaction, body: bytes) -> None:
    # then
    with nothing_moved():
        answer = post(caller, PLAIN, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "unreadable_body")


def test_plain_callback_over_16_kibibytes_answers_400(caller: Client, payout: Transaction) -> None:
    # then
    with nothing_moved():
        answer = post(caller, PLAIN, guides_body(payout.external_ref).ljust(16 * 1024 + 1))
    assert answer.status_code == 400


def test_in_production_the_plain_path_answers_404(caller: Client, payout: Transaction, settings: Settings) -> None:
    # given
    settings.MPESA_PRODUCTION = True

    # then
    with nothing_moved():
        answer = post(caller, PLAIN, guides_body(payout.external_ref))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- servers that are down -------------------------------------------------------------------------------------------


def test_callback_is_stored_and_answered_while_redis_is_down(
    caller: Client, attempt: Attempt, settings: Settings
) -> None:
    # given
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    # when
    answer = post(caller, path("b2c-callback", own(attempt)), result_body(attempt))

    # then
    assert answer.status_code == 200
    assert Callback.objects.filter(applied_at=None).count() == 1


def test_callback_answers_503_while_the_database_is_down() -> None:
    # given
    code = f"""
import django
django.setup()
from django.test import Client
mpesa = Client(raise_request_exception=False)
for where in ("b2c-callback/{UNKNOWN}/", "b2c-timeout/{UNKNOWN}/", "status-result/{UNKNOWN}/", "b2c-callback/"):
    body = {guides_body("KASOKO-1-1-aaaaaaaa")!r}
    answer = mpesa.post("/api/payments/" + where, body, content_type="application/json")
    print(answer.status_code, answer.json()["code"])
"""
    down = {"DATABASE_URL": "postgres://kasoko:secret@127.0.0.1:1/kasoko", "DJANGO_SETTINGS_MODULE": "api.settings"}

    # when
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **down, "ALLOWED_HOSTS": "testserver"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    # then
    assert ended.stdout.splitlines() == ["503 try_again"] * 4, ended.stderr


# --- applying --------------------------------------------------------------------------------------------------------


def test_stored_callbacks_are_applied_once_oldest_first(attempt: Attempt) -> None:
    # given
    for code in (17, 26, 0):
        callbacks.store(
            kind="result", token=own(attempt), body=result_body(attempt, code), source_ip=None, trusted=True,
            at=datetime(2026, 2, 16, 8, 0, tzinfo=UTC), addresses=ADDRESSES,
        )  # fmt: skip

    # when
    settlement_tasks.apply_stored_callbacks()

    # then
    outcomes = list(Callback.objects.order_by("pk").values_list("verdict", flat=True))
    assert outcomes == ["in doubt: code 17 proves nothing", "in doubt: code 26 proves nothing", "paid"]
    with nothing_moved():
        settlement_tasks.apply_stored_callbacks()
