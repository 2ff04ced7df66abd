"""Fields that must not be sent are refused before any request."""

from decimal import Decimal

import pytest
import responses

from payments.mpesa.client import Gateway
from payments.mpesa.request_fields import FORBIDDEN_WORDS
from testing.gateways import PAYMENT


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"amount_shillings": True}, TypeError, "bool"),
        ({"amount_shillings": 285.0}, TypeError, "float"),
        ({"amount_shillings": Decimal("285.37")}, TypeError, "Decimal"),
        ({"amount_shillings": "285"}, TypeError, "str"),
        ({"amount_shillings": 0}, ValueError, "above zero"),
        ({"amount_shillings": -1}, ValueError, "above zero"),
        ({"phone_number": "0712345678"}, ValueError, r"2547\*\*\*\*678"),
        ({"phone_number": "٢٥٤٧١٢٣٤٥٦٧٨"}, ValueError, "does not have the form"),
        ({"originator_conversation_id": "a" * 37}, ValueError, "1 to 36"),
        ({"originator_conversation_id": "a b"}, ValueError, "1 to 36"),
        ({"remarks": "!"}, ValueError, "remarks"),
        ({"result_url": "ftp://pay.example.com/"}, ValueError, "http"),
    ],
)
def test_invalid_argument_is_refused_and_nothing_is_sent(
    gateway: Gateway, daraja: responses.RequestsMock, changes: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gateway.pay(**{**PAYMENT, **changes})

    assert len(daraja.calls) == 0


@pytest.mark.parametrize("word", FORBIDDEN_WORDS)
@pytest.mark.parametrize("field", ["result_url", "timeout_url"])
def test_callback_url_with_forbidden_word_is_refused(gateway: Gateway, word: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}'"):
        gateway.pay(**{**PAYMENT, field: f"https://pay.example.com/a{word.upper()}b/"})
