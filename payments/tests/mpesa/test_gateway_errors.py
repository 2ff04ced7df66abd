"""The gateway's errors pass through a task queue unchanged."""

import pickle

import pytest

from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown, Rejected


@pytest.mark.parametrize(
    "error", [NotSent("throttle", "429", "slow", 2.0), Rejected("25", "no"), OutcomeUnknown("1", "hm", True)]
)
def test_pickled_error_keeps_its_type_fields_and_text(error: GatewayError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))
