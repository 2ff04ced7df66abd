"""Strict reader of the requests that the simulator gets. Pure."""

import json
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from payments.mpesa.simulator.messages import Refused

Body = Mapping[str, object]

# No callback URL may contain one of these words. Source: Daraja portal, C2B Register URL page. Safaricom's support says
# that the rule holds for every callback URL.
FORBIDDEN_WORDS = (
    "mpesa",
    "m-pesa",
    "safaricom",
    "exe",
    "cmd",
    "sql",
    "query",
    "ngrok",
    "mockbin",
    "requestbin",
)
_COMMANDS = ("BusinessPayment", "SalaryPayment", "PromotionPayment")
MSISDN = re.compile(r"254[17][0-9]{8}")
SHORTCODE = re.compile(r"[0-9]{5,7}")
WHOLE = re.compile(r"[0-9]{1,12}")
_OCID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
STAMP = re.compile(r"[0-9]{14}")


def read_body(content_type: str, raw: bytes) -> Body:
    """Read a request body, which must be a JSON object. Raises: Refused."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise invalid_field("Content-Type")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "400.002.05", "Invalid Request Payload") from error
    if not isinstance(body, dict):
        raise Refused(400, "400.002.05", "Invalid Request Payload")
    return body


def payment_request(body: Body) -> dict[str, str]:
    """Check a B2C request and return the fields that the book keeps. Raises: Refused."""
    matching_field(body, "OriginatorConversationID", _OCID)
    text_field(body, "SecurityCredential", 1, 1_000)
    command = text_field(body, "CommandID", 1, 64)
    if command not in _COMMANDS:
        raise invalid_field("CommandID")
    matching_field(body, "Amount", WHOLE)
    matching_field(body, "PartyB", MSISDN)
    return {
        "InitiatorName": text_field(body, "InitiatorName", 1, 100),
        "CommandID": command,
        "PartyA": matching_field(body, "PartyA", SHORTCODE),
        "Remarks": text_field(body, "Remarks", 2, 100),
        "QueueTimeOutURL": url_field(body, "QueueTimeOutURL"),
        "ResultURL": url_field(body, "ResultURL"),
        "Occassion": text_field(body, "Occassion", 0, 100),
    }


def text_field(body: Body, name: str, shortest: int, longest: int) -> str:
    """Return a printable field of `shortest` to `longest` characters. Raises: Refused."""
    value = body.get(name, "")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not shortest <= len(value) <= longest or not value.isprintable():
        raise invalid_field(name)
    return value


def matching_field(body: Body, name: str, pattern: re.Pattern[str]) -> str:
    """Return a field that matches a pattern. Raises: Refused."""
    value = text_field(body, name, 1, 128)
    if not pattern.fullmatch(value):
        raise invalid_field(name)
    return value


def url_field(body: Body, name: str) -> str:
    """Return a callback URL without forbidden words. Raises: Refused."""
    url = text_field(body, name, 1, 1_000)
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or any(word in url.lower() for word in FORBIDDEN_WORDS):
        raise invalid_field(name)
    return url


def invalid_field(name: str) -> Refused:
    """Build the refusal of a field."""
    return Refused(400, "400.002.02", f"Bad Request - Invalid {name}")
