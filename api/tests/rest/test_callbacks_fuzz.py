"""M-Pesa's door under fire: whatever comes is answered 2xx or 4xx, and moves money only where everything matches.

Bodies are raw bytes, JSON of any shape, and genuine messages with fields swapped. Each example starts from the same
payout, sent and asked about, and is rolled back to it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from django.conf import Settings
from django.db import transaction
from django.test import Client
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from payments.models import Attempt, Callback, Transaction
from payments.payouts.evidence import callbacks
from testing import builders, payout_steps
from testing.builders import money_snapshot, transfers
from testing.payout_steps import ADDRESSES, RECEIPT, after, question, result_body, sent, status_body

pytestmark = pytest.mark.django_db

PLAIN = "/api/payments/b2c-callback/"
KINDS = ("b2c-callback", "b2c-timeout", "status-result")
AMOUNT = 285
OTHER = 460
fuzzed = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Door:
    """One payout that was sent and is asked about, another one, and a caller who brings what M-Pesa would."""

    caller: Client
    payout: Transaction
    attempt: Attempt
    other: Attempt
    query_token: str

    @property
    def own(self) -> str:
        return ADDRESSES.token(self.attempt.originator_conversation_id)

    def post(self, where: str, body: bytes, content_type: str = "application/json") -> int:
        return self.caller.post(where, body, content_type=content_type).status_code

    def apply_all(self) -> list[str]:
        """Apply what is stored and not applied yet, as the worker would: the verdicts."""
        waiting = callbacks.to_apply(after=0, limit=1_000)
        return [callbacks.apply(callback_id=pk, at=after(30), policy=payout_steps.POLICY) for pk in waiting]


@pytest.fixture
def door(settings: Settings) -> Door:
    settings.SECRET_KEY, settings.MPESA_CALLBACK_URL = ADDRESSES.key, ADDRESSES.callback_url
    payout = builders.payout(AMOUNT)
    attempt, other = sent(payout), sent(builders.payout(OTHER))
    token = question(attempt, after(20)).token
    return Door(Client(enforce_csrf_checks=True, raise_request_exception=False), payout, attempt, other, token)


@contextmanager
def taken_back() -> Iterator[None]:
    """Take back all that an example wrote, so that the next one finds what the test was given."""
    before = transaction.savepoint()
    try:
        yield
    finally:
        transaction.savepoint_rollback(before)


def path(kind: str, token: str) -> str:
    return f"/api/payments/{kind}/{token}/"


def money() -> list[tuple[str, str, str, Decimal]]:
    return transfers()


# --- what comes ------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["0", 0, "00", "0.0", -0.0, AMOUNT, f"{AMOUNT}.00", 1e308, "1e3", RECEIPT, "2547", "\u0660"]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)
RAW = st.one_of(
    st.binary(max_size=400),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"[" * 8_000, b'{"a":' * 3_000, b"\xff" * 16_385, b'{"Result": {"ResultCode": 1e999999999}}']),
    TREES.map(lambda tree: json.dumps(tree).encode()),
    TREES.map(lambda tree: json.dumps({"Result": tree}).encode()),
)
FIELDS = (
    "ResultType", "ResultCode", "ResultDesc", "OriginatorConversationID", "ConversationID", "TransactionID",
    "ExternalReference", "ResultParameters",
)  # fmt: skip
PARAMETERS = (
    "TransactionAmount", "Amount", "TransactionReceipt", "ReceiptNo", "ReceiverPartyPublicName", "CreditPartyName",
    "DebitPartyName", "TransactionStatus", "OriginatorConversationID", "TransactionCompletedDateTime",
)  # fmt: skip
SWAPS = st.fixed_dictionaries(
    {
        "fields": st.dictionaries(st.sampled_from(FIELDS), TREES, max_size=2),
        "parameters": st.dictionaries(st.sampled_from(PARAMETERS), TREES, max_size=3),
        "without": st.sets(st.sampled_from(FIELDS + PARAMETERS), max_size=2),
        "cut": st.integers(0, 40),
    }
)


def swapped(genuine: bytes, swaps: dict[str, Any]) -> bytes:
    """A genuine message with fields and parameters replaced, left out, or its end cut off."""
    root = json.loads(genuine)
    result = root["Result"]
    listed = result.get("ResultParameters", {}).get("ResultParameter", [])
    found = {one["Key"]: one["Value"] for one in listed} | swaps["parameters"]
    pairs = [{"Key": key, "Value": value} for key, value in found.items() if key not in swaps["without"]]
    result["ResultParameters"] = {"ResultParameter": pairs}
    result |= swaps["fields"]
    root["Result"] = {key: value for key, value in result.items() if key not in swaps["without"]}
    body = json.dumps(root).encode()
    return body[: len(body) - swaps["cut"]] if swaps["cut"] > 30 else body


# --- unknown tokens --------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW, token=st.text("0123456789abcdef", min_size=64, max_size=64), kind=st.sampled_from(KINDS))
def test_any_bytes_with_a_token_that_nobody_was_given_leave_no_row(
    door: Door, body: bytes, token: str, kind: str
) -> None:
    # given
    before = money_snapshot()

    # when
    status = door.post(path(kind, token), body)

    # then
    assert status in (400, 404)
    assert money_snapshot() == before


@fuzzed
@given(swaps=SWAPS, kind=st.sampled_from(KINDS), one_off=st.integers(0, 63))
def test_a_genuine_message_with_a_token_that_is_one_digit_off_leaves_no_row(
    door: Door, swaps: dict[str, Any], kind: str, one_off: int
) -> None:
    # given
    before = money_snapshot()
    token = door.own if kind != "status-result" else door.query_token
    wrong = token[:one_off] + ("0" if token[one_off] != "0" else "1") + token[one_off + 1 :]

    # when
    statuses = [door.post(path(kind, wrong), body) for body in (result_body(door.attempt), _changed(door, swaps))]

    # then
    assert statuses == [404, 404]
    assert money_snapshot() == before


def _changed(door: Door, swaps: dict[str, Any]) -> bytes:
    return swapped(result_body(door.attempt), swaps)


@fuzzed
@given(
    segment=st.text(min_size=1, max_size=80), body=RAW, content_type=st.sampled_from(["", "text/xml", "\x7f", "a/b"])
)
@example(segment="../../admin", body=b"", content_type="")
@example(segment="%00" * 20, body=b"{}", content_type="")
def test_any_path_below_the_door_is_answered(door: Door, segment: str, body: bytes, content_type: str) -> None:
    # when
    before = money_snapshot()
    status = door.post(f"{PLAIN}{segment}", body, content_type)

    # then
    assert 400 <= status < 500
    assert money_snapshot() == before


# --- good tokens -----------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW, kind=st.sampled_from(KINDS))
def test_any_bytes_with_a_good_token_are_stored_applied_and_move_no_money(door: Door, body: bytes, kind: str) -> None:
    with taken_back():
        # given
        before = money()

        # when
        status = door.post(path(kind, door.query_token if kind == "status-result" else door.own), body)
        verdicts = door.apply_all()

        # then
        assert status == (200 if len(body) <= 16 * 1024 else 400)
        assert len(verdicts) == Callback.objects.count() == (status == 200)
        assert money() == before


@fuzzed
@given(swaps=SWAPS, of_another=st.booleans())
def test_a_swapped_result_moves_money_only_if_id_amount_and_phone_are_ours(
    door: Door, swaps: dict[str, Any], of_another: bool
) -> None:
    with taken_back():
        # given
        before = money()
        body = swapped(result_body(door.other if of_another else door.attempt), swaps)

        # when
        status = door.post(path("b2c-callback", door.own), body)
        verdicts = door.apply_all()

        # then
        assert (status, len(verdicts)) == (200, 1)
        if money() != before:
            assert verdicts == ["paid"]
            assert _names(body, door.attempt, "TransactionAmount", "Amount")


@fuzzed
@given(swaps=SWAPS, of_another=st.booleans())
def test_a_swapped_answer_moves_money_only_if_it_says_completed_and_contradicts_nothing(
    door: Door, swaps: dict[str, Any], of_another: bool
) -> None:
    with taken_back():
        # given
        before = money()
        body = swapped(status_body(door.other if of_another else door.attempt), swaps)

        # when
        status = door.post(path("status-result", door.query_token), body)
        verdicts = door.apply_all()

        # then
        assert (status, len(verdicts)) == (200, 1)
        if money() != before:
            said = _said(body)
            assert verdicts == ["paid"]
            assert str(said["TransactionStatus"]).strip().casefold() == "completed"
            assert not of_another


def _said(body: bytes) -> dict[str, Any]:
    result = json.loads(body)["Result"]
    listed = result["ResultParameters"]["ResultParameter"]
    return {one["Key"].replace(" ", ""): one.get("Value") for one in reversed(listed)}


def _names(body: bytes, attempt: Attempt, *amounts: str) -> bool:
    """Whether a body names this attempt, its amount and its phone, and says paid; by a reading of the test's own."""
    said, result = _said(body), json.loads(body)["Result"]
    amount = next(said[name] for name in amounts if name in said)
    return (
        result["OriginatorConversationID"].strip() == attempt.originator_conversation_id
        and Decimal(str(amount)) == attempt.amount
        and attempt.phone_number in str(said["ReceiverPartyPublicName"])
        and str(result["ResultCode"]).strip() == "0"
        and str(result.get("ResultType")) in ("0", "None")
    )


IDS = st.sampled_from(["own", "other", "own ", "OWN", "", None, 0])
AMOUNTS = st.sampled_from(
    [AMOUNT, f"{AMOUNT}", f"{AMOUNT}.00", float(AMOUNT), AMOUNT + 1, AMOUNT * 100, -AMOUNT, 0, None]
)
PHONES = st.sampled_from(["own", "0own", "masked", "other", "other masked", "shortcode", "", None])
RIGHT_IDS, RIGHT_PHONES = ("own", "own "), ("own", "0own", "masked")


@fuzzed
@given(ocid=IDS, amount=AMOUNTS, phone=PHONES, code=st.sampled_from([0, "0", 1, "17", "", None]))
@example(ocid="own", amount=AMOUNT, phone="own", code=0)
@example(ocid="own", amount=f"{AMOUNT}.00", phone="masked", code="0")
@example(ocid="other", amount=AMOUNT, phone="own", code=0)
@example(ocid="own", amount=AMOUNT + 1, phone="own", code=0)
@example(ocid="own", amount=AMOUNT, phone="other", code=0)
def test_a_result_pays_exactly_if_id_amount_and_phone_match(
    door: Door, ocid: str | int | None, amount: Any, phone: str | None, code: int | str | None
) -> None:
    with taken_back():
        # given
        before = money()
        ours = door.attempt.phone_number
        spelt = {
            "own": f"{ours} - JOHN DOE", "0own": f"0{ours[3:]} - JOHN", "masked": f"{ours[:4]}****{ours[-3:]} - JOHN",
            "other": "254799999999 - JOHN DOE", "other masked": "2547****999 - JOHN", "shortcode": "600000 - KASOKO",
        }  # fmt: skip
        own_id = door.attempt.originator_conversation_id
        ids = {
            "own": own_id,
            "own ": f"{own_id} ",
            "OWN": own_id.lower(),
            "other": door.other.originator_conversation_id,
        }
        said = {
            "TransactionAmount": amount, "TransactionReceipt": RECEIPT,
            "ReceiverPartyPublicName": spelt.get(phone or "", phone),
        }  # fmt: skip
        result = {
            "ResultType": 0, "ResultCode": code, "ResultDesc": "", "OriginatorConversationID": ids.get(str(ocid), ocid),
            "ResultParameters": {"ResultParameter": [{"Key": key, "Value": value} for key, value in said.items()]},
        }  # fmt: skip

        # when
        status = door.post(path("b2c-callback", door.own), json.dumps({"Result": result}).encode())
        verdicts = door.apply_all()

        # then
        matches = (
            ocid in RIGHT_IDS and amount in (AMOUNT, f"{AMOUNT}", f"{AMOUNT}.00") and phone in RIGHT_PHONES
            and code in (0, "0")
        )  # fmt: skip
        assert status == 200
        assert (verdicts == ["paid"]) == matches
        assert (money() != before) == matches


def test_two_hundred_replays_of_a_genuine_result_book_it_once(door: Door) -> None:
    # given
    genuine = result_body(door.attempt)

    # when: the very same bytes a hundred times, and the same words in other bytes as often
    statuses = []
    for number in range(100):
        statuses += [door.post(path("b2c-callback", door.own), genuine + b" " * extra) for extra in (0, number)]
        if number % 10 == 0:
            door.apply_all()
    verdicts = door.apply_all()

    # then
    assert statuses == [200] * 200
    assert Callback.objects.count() == 100
    assert set(verdicts) == {"paid already"}
    assert len(transfers(code="paid")) == len(transfers(code="won")) == 1


# --- the plain path --------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW)
def test_any_bytes_at_the_plain_path_are_refused_and_leave_no_row(door: Door, body: bytes) -> None:
    # given
    before = money_snapshot()

    # when
    status = door.post(PLAIN, body)

    # then
    assert status in (400, 404)
    assert money_snapshot() == before


@fuzzed
@given(swaps=SWAPS)
def test_a_swapped_message_at_the_plain_path_moves_money_only_by_our_reference(
    door: Door, swaps: dict[str, Any]
) -> None:
    with taken_back():
        # given
        before = money()
        genuine = json.loads(result_body(door.attempt))
        genuine["Result"]["ExternalReference"] = door.payout.external_ref
        body = swapped(json.dumps(genuine).encode(), swaps)

        # when
        status = door.post(PLAIN, body)

        # then
        assert status in (200, 400, 404)
        if money() != before:
            assert json.loads(body)["Result"]["ExternalReference"].strip() == door.payout.external_ref
            assert [code for code, *_ in money()[len(before) :]] == _keys_of_payment(door.attempt)


def _keys_of_payment(attempt: Attempt) -> list[str]:
    return [f"won:{attempt.pk}", f"paid:{attempt.pk}", f"charge:{attempt.pk}"]


@fuzzed
@given(body=RAW, swaps=SWAPS)
def test_in_production_nothing_at_the_plain_path_leaves_a_row(
    door: Door, settings: Settings, body: bytes, swaps: dict[str, Any]
) -> None:
    # given
    settings.MPESA_PRODUCTION = True
    before = money_snapshot()
    genuine = json.loads(result_body(door.attempt))
    genuine["Result"]["ExternalReference"] = door.payout.external_ref

    # when
    statuses = [door.post(PLAIN, one) for one in (body, swapped(json.dumps(genuine).encode(), swaps))]

    # then
    assert statuses == [404, 404]
    assert money_snapshot() == before
