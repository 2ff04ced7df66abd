"""Callback addresses: one token for each subject, and no word that M-Pesa forbids."""

import hashlib
import hmac
import re

from django.urls import resolve
from hypothesis import given
from hypothesis import strategies as st

from payments.mpesa import request_fields
from payments.mpesa.callback_urls import Addresses, token_hash

ADDRESSES = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
OCID = "KASOKO-1-7-0a1b2c3d-1"
TOKEN = re.compile(r"[0-9a-f]{64}")


def test_token_is_the_keyed_digest_of_its_subject() -> None:
    # when
    token = ADDRESSES.token(OCID)

    # then
    assert token == hmac.new(b"k" * 40, f"kasoko.callback:{OCID}".encode(), hashlib.sha256).hexdigest()
    assert token_hash(token) == hashlib.sha256(token.encode()).hexdigest()


def test_resend_of_the_same_id_has_the_same_token() -> None:
    assert ADDRESSES.token(OCID) == ADDRESSES.token(OCID)


def test_attempts_and_queries_have_different_tokens() -> None:
    # when
    subjects = [OCID, "KASOKO-1-7-0a1b2c3d-2", f"{OCID}?1", f"{OCID}?2"]
    tokens = {ADDRESSES.token(subject) for subject in subjects}

    # then
    assert len(tokens) == 4


def test_another_key_makes_other_tokens() -> None:
    # given
    other = Addresses(callback_url=ADDRESSES.callback_url, key="l" * 40)

    # then
    assert other.token(OCID) != ADDRESSES.token(OCID)


def test_addresses_share_one_parent_path() -> None:
    # when
    addresses = [ADDRESSES.result("ab"), ADDRESSES.timeout("ab"), ADDRESSES.status_result("ab")]

    # then
    assert addresses == [
        "https://kasoko.app/api/payments/b2c-callback/ab/",
        "https://kasoko.app/api/payments/b2c-timeout/ab/",
        "https://kasoko.app/api/payments/status-result/ab/",
    ]


def test_each_address_is_one_of_our_routes() -> None:
    # given
    token = ADDRESSES.token(OCID)
    urls = [ADDRESSES.result(token), ADDRESSES.timeout(token), ADDRESSES.status_result(token)]

    # when
    matches = [resolve(url.removeprefix("https://kasoko.app")) for url in urls]

    # then
    assert [match.url_name for match in matches] == ["b2c_result", "b2c_timeout", "status_result"]
    assert [match.kwargs["token"] for match in matches] == [token] * 3


@given(st.text(max_size=40))
def test_no_address_contains_a_forbidden_word(subject: str) -> None:
    # when
    token = ADDRESSES.token(subject)
    urls = [ADDRESSES.result(token), ADDRESSES.timeout(token), ADDRESSES.status_result(token)]

    # then
    assert TOKEN.fullmatch(token)
    assert not any(word in url for url in urls for word in request_fields.FORBIDDEN_WORDS)


def test_repr_hides_the_key() -> None:
    assert "kkk" not in repr(ADDRESSES)
