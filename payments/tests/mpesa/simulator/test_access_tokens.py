"""The simulator's access tokens."""

from collections.abc import Callable

import requests

from payments.mpesa.simulator.terms import Terms
from testing.merchants import Merchant


def test_new_token_ends_the_previous_token(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()
    old = merchant.session.headers["Authorization"]
    merchant.sign_in()

    # when
    merchant.session.headers["Authorization"] = old
    refusals = [merchant.pay("A-1"), merchant.ask(OriginalConversationID="A-1")]
    refusals.append(merchant.ask("/mpesa/accountbalance/v1/query", CommandID="AccountBalance"))
    merchant.session.headers["Authorization"] = "Basic nonsense"
    refusals.append(merchant.pay("A-1"))

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in refusals] == [
        (404, "404.001.03"),
        (400, "400.003.01"),
        (401, "401.002.01"),
        (404, "404.001.04"),
    ]
    assert merchant.book()["payments"] == []


def test_expires_in_comes_as_text_and_as_number(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()

    # when
    lives = {merchant.sign_in().json()["expires_in"] for _ in range(20)}

    # then
    assert lives == {3599, "3599"}


def test_wrong_credentials_get_no_token(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start(terms=Terms(consumer_key="key", consumer_secret="secret"))
    url = f"{merchant.base_url}/oauth/v1/generate"
    grant = {"grant_type": "client_credentials"}

    # when
    answers = [
        requests.get(url, params=grant, timeout=9),
        requests.get(url, params=grant, auth=("key", "wrong"), timeout=9),
        requests.get(url, auth=("key", "secret"), timeout=9),
    ]

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in answers] == [
        (400, "400.008.01"),
        (400, "400.008.01"),
        (400, "400.008.02"),
    ]
