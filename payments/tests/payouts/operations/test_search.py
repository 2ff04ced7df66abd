"""Search for payouts."""

from datetime import datetime

from payments.payouts.operations import search
from testing import builders, console_scenes
from testing.builders import member


def found_by(typed: str = "", **chosen: object) -> set[int]:
    return set(search.search(typed, **chosen).payouts.values_list("pk", flat=True))  # type: ignore[arg-type]


def test_payout_is_found_by_phone_receipt_reference_market_and_number(db: None, at: datetime) -> None:
    # given
    user = member(phone_number="0712345678")
    payout, other = builders.payout(285, user=user, at=at), builders.payout(300, at=at)
    console_scenes.pay(payout, at, "SKG7ABC001")

    # when, then
    for typed in (
        "0712 345 678",
        "254712345678",
        "skg7abc001",
        payout.external_ref,
        f"{payout.external_ref}-1",
        f"#{payout.pk}",
    ):
        assert found_by(typed) == {payout.pk}, typed
    assert found_by(f"market {payout.settlement.market_id}") == {payout.pk}
    assert found_by(f"m:{other.settlement.market_id}") == {other.pk}
    assert found_by() == {payout.pk, other.pk}
    for typed in ("0799999999", "SKG7ABC999", "KASOKO-9-9-12345678", "999999", "market 999", "x" * 80):
        assert found_by(typed) == set(), typed
    assert "2547****678" in search.search("0712345678").understood


def test_payouts_are_filtered_by_state_and_code(db: None, at: datetime) -> None:
    pending, failed, doubtful = builders.payout(100, at=at), builders.payout(200, at=at), builders.payout(300, at=at)
    console_scenes.send_to_unregistered_phone(failed, at)
    console_scenes.send_and_time_out(doubtful, at)
    assert found_by(state="pending") == {pending.pk}
    assert found_by(state="failed") == found_by(code="2040") == {failed.pk}
    assert found_by(state="in_doubt") == found_by(state="processing") == {doubtful.pk}
    assert found_by(state="held") == found_by(code="1") == set()
    assert found_by(state="nonsense") == {pending.pk, failed.pk, doubtful.pk}
    assert found_by(market_id=failed.settlement.market_id, state="failed") == {failed.pk}
