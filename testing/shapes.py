"""Bodies that M-Pesa's servers and public integrations were seen to send, with made-up values and their meanings.

Each line of `shapes.jsonl` is one body: its name, kind, HTTP status (answers only), content and meaning. `means` is for
tests, `words` is the same meaning for people. The content is `body` (JSON), `text`, or `base64` for odd encodings.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The payout that the shapes are about.
OCID, AMOUNT, PHONE, RECEIPT = "KASOKO-1-7-0a1b2c3d-1", 500, "254700000123", "TK11AB2C3D"
CHECKOUT_ID = "ws_CO_01112026101500123700000123"


@dataclass(frozen=True)
class Shape:
    """One body, as the network carries it, and its meaning."""

    name: str
    kind: str
    status: int
    body: bytes
    means: dict[str, Any]
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


def _shape(line: str) -> Shape:
    row = json.loads(line)
    if "base64" in row:
        body = base64.b64decode(row["base64"])
    else:
        body = row["text"].encode() if "text" in row else json.dumps(row["body"]).encode()
    return Shape(row["name"], row["kind"], row.get("status", 200), body, row["means"], row["words"])


SHAPES = tuple(map(_shape, Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()))


def of_kind(*kinds: str) -> list[Shape]:
    """Return the shapes of these kinds."""
    return [shape for shape in SHAPES if shape.kind in kinds]
