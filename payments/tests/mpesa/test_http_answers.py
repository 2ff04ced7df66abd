"""Each of Daraja's answers is classified by what it says about the money."""

import json
from typing import Any

import pytest
import responses

from payments.mpesa.client import Gateway
from payments.mpesa.gateway_errors import GatewayError, NotSent
from testing.gateways import ANSWERS, PAY_URL, PAYMENT, sent_bodies


@pytest.mark.parametrize(("status", "body", "error", "facts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_answer_raises_the_error_that_fits_the_money(
    gateway: Gateway,
    daraja: responses.RequestsMock,
    status: int,
    body: Any,
    error: type[GatewayError],
    facts: dict[str, Any],
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body)
    daraja.post(PAY_URL, body=raw, status=status, headers={"Location": PAY_URL})

    with pytest.raises(GatewayError) as caught:
        gateway.pay(**PAYMENT)

    assert type(caught.value) is error
    assert {name: getattr(caught.value, name) for name in facts} == facts
    assert len(sent_bodies(daraja, PAY_URL)) == 1


def test_throttle_answer_gives_the_retry_delay(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, status=429, headers={"Retry-After": "7"})

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.retry_after_seconds == 7.0
