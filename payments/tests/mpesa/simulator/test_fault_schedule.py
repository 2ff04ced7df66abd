"""The schedule of faults chooses the faults of each request."""

from collections.abc import Callable
from pathlib import Path

from payments.mpesa.simulator import fault_schedule, faults
from testing.merchants import PHONE, Merchant


def test_same_seed_chooses_the_same_faults(tmp_path: Path) -> None:
    # given
    ids = [f"KASOKO-1-{number}-aaaaaaaa-1" for number in range(2_000)]

    def chosen(seed: int) -> list[list[str]]:
        schedule = fault_schedule.Schedule(seed=seed, rate=0.2, names=tuple(faults.FAULTS))
        return [schedule.active_faults("payment", key=ocid, phone=PHONE, earlier=0).texts() for ocid in ids]

    # when
    first, again, other = chosen(7), chosen(7), chosen(8)

    # then
    assert first == again != other
    assert 250 <= sum(map(bool, first)) <= 450
    assert {text.partition(":")[0] for texts in first for text in texts} == {
        fault.name for fault in faults.TABLE if "payment" in fault.stages
    }


def test_random_faults_can_be_switched_off_at_run_time(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start(fault_rate=1.0, fault_names=("quota",))
    refused = merchant.pay("A-1")

    # when
    merchant.sandbox_call("faults", {"rate": 0, "names": "all"})

    # then
    assert refused.json()["errorCode"] == "500.003.03"
    assert merchant.pay("A-2").status_code == 200


def test_resend_succeeds_after_a_random_refusal(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start(fault_rate=1.0, fault_names=("spike_arrest",))

    # when
    codes = [merchant.pay("A-1").status_code for _ in range(3)]

    # then
    assert codes == [500, 200, 500]
