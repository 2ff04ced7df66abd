"""Fuzz of the parsers of M-Pesa's messages: each must return a record or raise `Unreadable`.

Hypothesis makes messages of the right shape. atheris changes bytes to reach more code; it runs only if it is installed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments.mpesa import message_fields, messages, result_codes, strict_json
from testing import shapes
from testing.figures import Figure, hand_over, say

PARSERS = ("parse_result", "parse_status", "parse_timeout", "parse_balance", "parse_stk")
READERS = {module.__name__ for module in (messages, message_fields, strict_json, result_codes)}
BATCH = 5_000
ATHERIS = find_spec("atheris") is not None
KEYS = (
    "Result", "ResultType", "ResultCode", "ResultDesc", "OriginatorConversationID", "ConversationID", "TransactionID",
    "ResultParameters", "ResultParameter", "Key", "Value", "TransactionAmount", "TransactionReceipt", "ReceiptNo",
    "ReceiverPartyPublicName", "CreditPartyName", "DebitPartyName", "TransactionStatus", "DebitPartyCharges", "Amount",
    "AccountBalance", "FinalisedTime", "Body", "stkCallback", "CallbackMetadata", "Item", "Name", "CheckoutRequestID",
    "resultCode", "ExternalReference",
)  # fmt: skip
TEXTS = ("0", "Completed", "254712345678 - JOHN", "2547****678", "Fee For B2C Payment|KES|22.40", "16.02.2026 10:30:05",
         "Utility Account|KES|1.00|1.00|0.00|0.00", "SKG7ABCDEF", "20260216103005", "\u0660")  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(TEXTS),
    st.sampled_from(TEXTS), st.integers(0, 300),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner),
    max_leaves=12,
)
PAIRS = st.lists(st.fixed_dictionaries({"Key": st.sampled_from(KEYS), "Value": SCALARS}), max_size=6)
RESULTS = st.fixed_dictionaries(
    {"ResultCode": st.sampled_from([0, "0", 1, "17", "SFC_IC0003", None])},
    optional={
        **{name: SCALARS for name in ("ResultType", *KEYS[3:7])},
        "ResultParameters": st.fixed_dictionaries({"ResultParameter": PAIRS}) | TREES,
    },
).map(lambda result: {"Result": result})
CALLBACKS = st.fixed_dictionaries({"CheckoutRequestID": SCALARS, "ResultCode": SCALARS, "CallbackMetadata": TREES}).map(
    lambda callback: {"Body": {"stkCallback": callback}}
)


def _bent(shape: shapes.Shape) -> st.SearchStrategy[bytes]:
    """Return bodies that are a shape with a few bytes replaced by others."""
    places = st.tuples(st.integers(0, max(0, len(shape.body))), st.integers(0, 3), st.binary(max_size=3))
    return places.map(lambda bend: shape.body[: bend[0]] + bend[2] + shape.body[bend[0] + bend[1] :])


BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(shapes.SHAPES).flatmap(_bent),
    (TREES | RESULTS | RESULTS | CALLBACKS).map(lambda tree: json.dumps(tree).encode()),
)


def read(body: bytes) -> None:
    """Read a body with every parser, and read every attribute of the records.

    Any exception other than `Unreadable` is an error of a parser.
    """
    for name in PARSERS:
        try:
            record = getattr(messages, name)(body)
        except strict_json.Unreadable:
            continue
        for attribute in dir(type(record)):
            if not attribute.startswith("_"):
                getattr(record, attribute)
        result_codes.meaning(getattr(record, "result_code", ""))


def run(*, seconds: float) -> list[Figure]:
    """Fuzz for `seconds`, half of the time with each fuzzer, and return the figures.

    Each fuzzer runs in its own process, because an error of a parser ends that process.
    """
    bar = "0 uncaught exceptions"
    by_hypothesis = Figure("Bodies made by Hypothesis, each read by five parsers", bar, "", None)
    by_atheris = Figure("Bodies made by atheris, each read by five parsers", bar, "not run: it is not installed", None)
    share = seconds / 2 if ATHERIS else seconds
    figures = [_measured(by_hypothesis, ["hypothesis", f"--seconds={share:.0f}"], r"bodies: (\d+)", share)]
    if not ATHERIS:
        return [*figures, by_atheris]
    with tempfile.TemporaryDirectory() as directory:
        corpus, words = Path(directory) / "corpus", Path(directory) / "words"
        corpus.mkdir()
        for shape in shapes.SHAPES:
            (corpus / shape.name).write_bytes(shape.body)
        words.write_text("".join(f'"{word}"\n' for word in (*KEYS, *TEXTS[:-1])))
        limits = [f"-max_total_time={share:.0f}", "-max_len=4096", "-print_final_stats=1", f"-dict={words}"]
        arguments = ["atheris", *limits, f"-artifact_prefix={directory}/", str(corpus)]
        return [*figures, _measured(by_atheris, arguments, r"number_of_executed_units: (\d+)", share)]


def _measured(figure: Figure, arguments: list[str], counted: str, seconds: float) -> Figure:
    """Run one fuzzer, and return its figure with the number of bodies and the error, if there was one."""
    say(f"parser: {arguments[0]} for {seconds:.0f} s")
    command = [sys.executable, "-m", "soak.parser", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300, check=False)
    count = re.search(counted, ended.stdout + ended.stderr)
    error = "" if ended.returncode == 0 else f"; error {ended.stdout[-500:]} {ended.stderr[-2000:]}"
    seen = f"{int(count[1]):,} in {seconds:.0f} s" if count else "no count printed"
    return replace(figure, seen=seen + error, passed=ended.returncode == 0 and count is not None)


def _by_hypothesis(seconds: float) -> None:
    bodies, until = 0, time.monotonic() + seconds

    @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BODIES)
    def every_body_is_read_or_refused(body: bytes) -> None:
        nonlocal bodies
        bodies += 1
        read(body)

    while time.monotonic() < until:
        every_body_is_read_or_refused()
    say(f"bodies: {bodies}")


def _by_atheris(arguments: list[str]) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    for module in (messages, message_fields, strict_json, result_codes):
        for name, function in list(vars(module).items()):
            if getattr(function, "__module__", "") in READERS and hasattr(function, "__code__"):
                setattr(module, name, atheris.instrument_func(function))
    atheris.Setup([sys.argv[0], *arguments], read)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["atheris"]:
        _by_atheris(sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument(
            "fuzzer", nargs="?", choices=["hypothesis", "atheris"], help="run this fuzzer in this process"
        )
        parser.add_argument("--seconds", type=float, default=300)
        options = parser.parse_args()
        if options.fuzzer:
            _by_hypothesis(options.seconds)
        else:
            hand_over(run(seconds=options.seconds))
