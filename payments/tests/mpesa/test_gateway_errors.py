"""The gateway's errors: their texts, and pickling for a task queue."""

import pickle

import pytest

from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown, Rejected


@pytest.mark.parametrize(
    "error", [NotSent("throttle", "429", "slow", 2.0), Rejected("25", "no"), OutcomeUnknown("1", "hm", True)]
)
def test_pickled_error_keeps_its_type_fields_and_text(error: GatewayError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotSent("network"), "Not sent"),
        (NotSent("throttle", "500.003.02", "Spike Arrest"), "Not sent: 500.003.02 Spike Arrest"),
        (Rejected("25", "no"), "Rejected by Daraja: 25 no"),
        (OutcomeUnknown(message="no answer"), "Outcome unknown: no answer"),
    ],
)
def test_error_text_states_our_knowledge_of_the_money(error: GatewayError, text: str) -> None:
    assert str(error) == text
