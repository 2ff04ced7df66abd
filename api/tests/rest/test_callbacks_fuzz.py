"""Fuzz tests of api/rest/callbacks.py: only a body that matches completely moves money.

Every body gets 2xx or 4xx. Bodies are raw bytes, JSON of any shape, and genuine messages with changed fields. Each
example starts from the same payout, which was sent and asked about, and is rolled back at its end.
"""

import json
import re
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
from payments.mpesa import messages
from payments.payouts.evidence import callbacks
from testing import builders, payout_steps, shapes
from testing.builders import money_snapshot, transfers
from testing.payout_steps import ADDRESSES, RECEIPT, after, question, result_body, sent, status_body

pytestmark = pytest.mark.django_db

PLAIN = "/api/payments/b2c-callback/"
KINDS = ("b2c-callback", "b2c-timeout", "status-result")
AMOUNT = 285
OTHER = 460
fuzzed = hypothesis_settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass(frozen=True)
class Scene:
    """A payout that was sent and asked about, another payout, and a client that posts as M-Pesa does."""

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
        """Apply the stored callbacks as the worker does, and return their outcomes."""
        waiting = callbacks.to_apply(after=0, limit=1_000)
        return [callbacks.apply(callback_id=pk, at=after(30), policy=payout_steps.POLICY) for pk in waiting]


@pytest.fixture
def scene(settings: Settings) -> Scene:
    settings.CALLBACK_TOKEN_KEY, settings.MPESA_CALLBACK_URL = ADDRESSES.key, ADDRESSES.callback_url
    payout = builders.payout(AMOUNT)
    attempt, other = sent(payout), sent(builders.payout(OTHER))
    token = question(attempt, after(20)).token
    return Scene(Client(enforce_csrf_checks=True, raise_request_exception=False), payout, attempt, other, token)


@contextmanager
def rolled_back() -> Iterator[None]:
    """Roll back the writes of an example, so that the next one starts from the same rows."""
    before = transaction.savepoint()
    try:
        yield
    finally:
        transaction.savepoint_rollback(before)


def path(kind: str, token: str) -> str:
    return f"/api/payments/{kind}/{token}/"


def money() -> list[tuple[str, str, str, Decimal]]:
    return transfers()


# --- generated bodies ------------------------------------------------------------------------------------------------

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
    """Return a genuine message with replaced or missing fields and parameters, or without its end."""
    root = json.loads(genuine)
    result = root["Result"]
    listed = result.get("ResultParameters", {}).get("ResultParameter", [])
    parameters = {parameter["Key"]: parameter["Value"] for parameter in listed} | swaps["parameters"]
    pairs = [{"Key": key, "Value": value} for key, value in parameters.items() if key not in swaps["without"]]
    result["ResultParameters"] = {"ResultParameter": pairs}
    result |= swaps["fields"]
    root["Result"] = {key: value for key, value in result.items() if key not in swaps["without"]}
    body = json.dumps(root).encode()
    return body[: len(body) - swaps["cut"]] if swaps["cut"] > 30 else body


# --- unknown tokens --------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW, token=st.text("0123456789abcdef", min_size=64, max_size=64), kind=st.sampled_from(KINDS))
def test_any_bytes_with_an_unknown_token_store_nothing(scene: Scene, body: bytes, token: str, kind: str) -> None:
    # given
    before = money_snapshot()

    # when
    status = scene.post(path(kind, token), body)

    # then
    assert status in (400, 404, 411)
    assert money_snapshot() == before


@fuzzed
@given(swaps=SWAPS, kind=st.sampled_from(KINDS), wrong_digit=st.integers(0, 63))
def test_genuine_message_with_one_wrong_token_digit_stores_nothing(
    scene: Scene, swaps: dict[str, Any], kind: str, wrong_digit: int
) -> None:
    # given
    before = money_snapshot()
    token = scene.own if kind != "status-result" else scene.query_token
    wrong = token[:wrong_digit] + ("0" if token[wrong_digit] != "0" else "1") + token[wrong_digit + 1 :]

    # when
    statuses = [scene.post(path(kind, wrong), body) for body in (result_body(scene.attempt), _changed(scene, swaps))]

    # then
    assert statuses == [404, 404]
    assert money_snapshot() == before


def _changed(scene: Scene, swaps: dict[str, Any]) -> bytes:
    return swapped(result_body(scene.attempt), swaps)


@fuzzed
@given(
    segment=st.text(min_size=1, max_size=80), body=RAW, content_type=st.sampled_from(["", "text/xml", "\x7f", "a/b"])
)
@example(segment="../../admin", body=b"", content_type="")
@example(segment="%00" * 20, body=b"{}", content_type="")
def test_any_path_below_the_plain_path_answers_4xx(scene: Scene, segment: str, body: bytes, content_type: str) -> None:
    # when
    before = money_snapshot()
    status = scene.post(f"{PLAIN}{segment}", body, content_type)

    # then
    assert 400 <= status < 500
    assert money_snapshot() == before


# --- valid tokens ----------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW, kind=st.sampled_from(KINDS))
def test_any_bytes_with_a_valid_token_are_stored_and_move_no_money(scene: Scene, body: bytes, kind: str) -> None:
    with rolled_back():
        # given
        before = money()

        # when
        status = scene.post(path(kind, scene.query_token if kind == "status-result" else scene.own), body)
        outcomes = scene.apply_all()

        # then
        assert status == ((200 if len(body) <= 16 * 1024 else 400) if body else 411)
        assert len(outcomes) == Callback.objects.count() == (status == 200)
        assert money() == before


def swapped_field(name: str, value: Any) -> dict[str, Any]:
    """Return swaps that replace one field of a message."""
    return {"fields": {name: value}, "parameters": {}, "without": set(), "cut": 0}


# These types of a result are absent, blank or zero. Such a result is final, and it pays.
FINAL_TYPES = (None, "", " ", "\x1f", "\u00a0", "0", " 0", 0, "00", "0000")
# These are another number or no number, so the result waits for a further message or cannot be read.
OTHER_TYPES = (1, "1", "01", "00000", -0.0, 0.0, "0.0", "\u0660", "-0", True, False, [], {})


@pytest.mark.parametrize("value", FINAL_TYPES + OTHER_TYPES, ids=repr)
def test_result_without_a_type_or_of_type_zero_is_final(scene: Scene, value: Any) -> None:
    # given
    before = money()
    body = swapped(result_body(scene.attempt), swapped_field("ResultType", value))

    # when
    scene.post(path("b2c-callback", scene.own), body)
    outcomes = scene.apply_all()

    # then
    is_final = any(value is final or (type(value), value) == (type(final), final) for final in FINAL_TYPES)
    assert (money() != before, outcomes == ["paid"]) == (is_final, is_final)
    if is_final:
        assert _reports_success_of(body, scene.attempt, "TransactionAmount", "Amount")


@fuzzed
@given(swaps=SWAPS, of_another=st.booleans())
@example(swaps=swapped_field("ResultType", ""), of_another=False)
@example(swaps=swapped_field("ResultType", "00"), of_another=False)
@example(swaps=swapped_field("ResultCode", "0\x1f"), of_another=False)
def test_changed_result_pays_only_if_id_amount_and_phone_are_ours(
    scene: Scene, swaps: dict[str, Any], of_another: bool
) -> None:
    with rolled_back():
        # given
        before = money()
        body = swapped(result_body(scene.other if of_another else scene.attempt), swaps)

        # when
        status = scene.post(path("b2c-callback", scene.own), body)
        outcomes = scene.apply_all()

        # then
        assert (status, len(outcomes)) == (200, 1)
        if money() != before:
            assert outcomes == ["paid"]
            assert _reports_success_of(body, scene.attempt, "TransactionAmount", "Amount")


@fuzzed
@given(swaps=SWAPS, of_another=st.booleans())
def test_changed_answer_pays_only_if_completed_and_not_of_another_payout(
    scene: Scene, swaps: dict[str, Any], of_another: bool
) -> None:
    with rolled_back():
        # given
        before = money()
        body = swapped(status_body(scene.other if of_another else scene.attempt), swaps)

        # when
        status = scene.post(path("status-result", scene.query_token), body)
        outcomes = scene.apply_all()

        # then
        assert (status, len(outcomes)) == (200, 1)
        if money() != before:
            parameters = _parameters(body)
            assert outcomes == ["paid"]
            assert str(parameters["TransactionStatus"]).strip().casefold() == "completed"
            assert not of_another


def _parameters(body: bytes) -> dict[str, Any]:
    result = json.loads(body)["Result"]
    listed = result["ResultParameters"]["ResultParameter"]
    return {parameter["Key"].replace(" ", ""): parameter.get("Value") for parameter in reversed(listed)}


def _reports_success_of(body: bytes, attempt: Attempt, *amounts: str) -> bool:
    """Return True if a body reports success and has the id, amount and phone of this attempt."""
    parameters, result = _parameters(body), json.loads(body)["Result"]
    # A blank text counts as absent, and M-Pesa sends numbers as texts too.
    code, kind = _said(result["ResultCode"]), _said(result.get("ResultType"))
    amount = next(parameters[name] for name in amounts if name in parameters)
    return (
        _said(result["OriginatorConversationID"]) == attempt.originator_conversation_id
        and Decimal(str(amount)) == attempt.amount
        and attempt.phone_number in str(parameters["ReceiverPartyPublicName"])
        and code == "0"
        and (kind is None or kind.strip("0") == "")
    )


def _said(value: Any) -> str | None:
    """Return a field as text without control characters and blanks around it, or None if nothing is left."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(value)).strip() or None if value is not None else None


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
def test_result_pays_exactly_if_id_amount_and_phone_match(
    scene: Scene, ocid: str | int | None, amount: Any, phone: str | None, code: int | str | None
) -> None:
    with rolled_back():
        # given
        before = money()
        ours = scene.attempt.phone_number
        spelt = {
            "own": f"{ours} - JOHN DOE", "0own": f"0{ours[3:]} - JOHN", "masked": f"{ours[:4]}****{ours[-3:]} - JOHN",
            "other": "254799999999 - JOHN DOE", "other masked": "2547****999 - JOHN", "shortcode": "600000 - KASOKO",
        }  # fmt: skip
        own_id = scene.attempt.originator_conversation_id
        ids = {
            "own": own_id,
            "own ": f"{own_id} ",
            "OWN": own_id.lower(),
            "other": scene.other.originator_conversation_id,
        }
        fields = {
            "TransactionAmount": amount, "TransactionReceipt": RECEIPT,
            "ReceiverPartyPublicName": spelt.get(phone or "", phone),
        }  # fmt: skip
        result = {
            "ResultType": 0, "ResultCode": code, "ResultDesc": "", "OriginatorConversationID": ids.get(str(ocid), ocid),
            "ResultParameters": {"ResultParameter": [{"Key": key, "Value": value} for key, value in fields.items()]},
        }  # fmt: skip

        # when
        status = scene.post(path("b2c-callback", scene.own), json.dumps({"Result": result}).encode())
        outcomes = scene.apply_all()

        # then
        matches = (
            ocid in RIGHT_IDS and amount in (AMOUNT, f"{AMOUNT}", f"{AMOUNT}.00") and phone in RIGHT_PHONES
            and code in (0, "0")
        )  # fmt: skip
        assert status == 200
        assert (outcomes == ["paid"]) == matches
        assert (money() != before) == matches


@fuzzed
@given(
    shape=st.sampled_from(shapes.of_kind("b2c_result", "b2c_timeout", "status_answer")),
    kind=st.sampled_from(KINDS),
    place=st.integers(0, 900),
    cut=st.integers(0, 4),
    put=st.binary(max_size=4),
)
def test_bent_shape_pays_only_what_it_still_reports(
    scene: Scene, shape: shapes.Shape, kind: str, place: int, cut: int, put: bytes
) -> None:
    with rolled_back():
        # given: a body that was seen in the wild, about our payout, with a few other bytes
        before = money()
        genuine = shape.body.replace(shapes.OCID.encode(), scene.attempt.originator_conversation_id.encode())
        genuine = genuine.replace(b'"Value": 500', b'"Value": %d' % AMOUNT)
        genuine = genuine.replace(shapes.PHONE.encode(), scene.attempt.phone_number.encode())
        body = genuine[:place] + put + genuine[place + cut :]

        # when
        status = scene.post(path(kind, scene.query_token if kind == "status-result" else scene.own), body)
        outcomes = scene.apply_all()

        # then
        assert (status, len(outcomes)) == (200, 1)
        if money() != before:
            assert outcomes == ["paid"]
            assert kind != "b2c-timeout"
            read = messages.parse_result(body) if kind == "b2c-callback" else messages.parse_status(body)
            assert read.originator_conversation_id in (scene.attempt.originator_conversation_id, None)
            assert read.amount in (AMOUNT, None)


def test_two_hundred_repeats_of_a_genuine_result_pay_once(scene: Scene) -> None:
    # given
    genuine = result_body(scene.attempt)

    # when: the same bytes come 100 times, and the same message with other blanks 100 times
    statuses = []
    for number in range(100):
        statuses += [scene.post(path("b2c-callback", scene.own), genuine + b" " * extra) for extra in (0, number)]
        if number % 10 == 0:
            scene.apply_all()
    outcomes = scene.apply_all()

    # then: an address stores fifty different bodies, and every repetition of them is accepted
    assert statuses == [200] * 100 + [200, 429] * 50
    assert Callback.objects.count() == callbacks.MOST_BODIES == 50
    assert set(outcomes) <= {"paid already"}
    assert len(transfers(code="paid")) == len(transfers(code="won")) == 1


# --- the plain path --------------------------------------------------------------------------------------------------


@fuzzed
@given(body=RAW)
def test_any_bytes_at_the_plain_path_are_refused_and_store_nothing(scene: Scene, body: bytes) -> None:
    # given
    before = money_snapshot()

    # when
    status = scene.post(PLAIN, body)

    # then
    assert status in (400, 404, 411)
    assert money_snapshot() == before


@fuzzed
@given(swaps=SWAPS)
def test_changed_message_at_the_plain_path_pays_only_by_our_reference(scene: Scene, swaps: dict[str, Any]) -> None:
    with rolled_back():
        # given
        before = money()
        genuine = json.loads(result_body(scene.attempt))
        genuine["Result"]["ExternalReference"] = scene.payout.external_ref
        body = swapped(json.dumps(genuine).encode(), swaps)

        # when
        status = scene.post(PLAIN, body)

        # then
        assert status in (200, 400, 404)
        if money() != before:
            assert json.loads(body)["Result"]["ExternalReference"].strip() == scene.payout.external_ref
            assert [code for code, *_ in money()[len(before) :]] == _keys_of_payment(scene.attempt)


def _keys_of_payment(attempt: Attempt) -> list[str]:
    return [f"won:{attempt.pk}", f"paid:{attempt.pk}", f"charge:{attempt.pk}"]


@fuzzed
@given(body=RAW, swaps=SWAPS)
def test_in_production_the_plain_path_stores_nothing(
    scene: Scene, settings: Settings, body: bytes, swaps: dict[str, Any]
) -> None:
    # given
    settings.MPESA_PRODUCTION = True
    before = money_snapshot()
    genuine = json.loads(result_body(scene.attempt))
    genuine["Result"]["ExternalReference"] = scene.payout.external_ref

    # when
    statuses = [scene.post(PLAIN, posted) for posted in (body, swapped(json.dumps(genuine).encode(), swaps))]

    # then
    assert statuses == [404, 404]
    assert money_snapshot() == before
