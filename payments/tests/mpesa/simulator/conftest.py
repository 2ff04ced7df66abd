"""Fixtures of the simulator's tests: a callback receiver and simulators in this process."""

from collections.abc import Callable, Iterator

import pytest

from payments.mpesa.simulator.server import Options, Simulator
from payments.mpesa.simulator.terms import Terms
from testing.merchants import PHONE, CallbackReceiver, Merchant


@pytest.fixture
def receiver() -> Iterator[CallbackReceiver]:
    receiver = CallbackReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def start(receiver: CallbackReceiver) -> Iterator[Callable[..., Merchant]]:
    """Start simulators in this process. The arguments are the fault specifications of PHONE."""
    running: list[tuple[Simulator, Merchant]] = []

    def begin(*specs: str, callback_delay: float = 0.01, tps: int = 0, **options: object) -> Merchant:
        terms = options.pop("terms", Terms(callback_delay=callback_delay, tps=tps))
        phone_faults = tuple((PHONE, spec) for spec in specs)
        simulator = Simulator(Options(latency=0, terms=terms, phone_faults=phone_faults, **options)).start()
        merchant = Merchant(simulator.base_url, receiver)
        running.append((simulator, merchant))
        return merchant

    yield begin
    for simulator, merchant in running:
        merchant.session.close()
        simulator.stop()
