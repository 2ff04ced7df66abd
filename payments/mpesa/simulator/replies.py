"""HTTP answers of the simulator."""

from dataclasses import dataclass

from payments.mpesa.simulator import faults, messages
from payments.mpesa.simulator.messages import Refused

_BAD_TOKEN_STATUS = {"404.001.03": 404, "401.002.01": 401, "400.003.01": 400, "404.001.04": 404}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, sent after `delay` seconds. If `dropped`, the connection closes without an answer."""

    status: int
    body: bytes
    content_type: str = "application/json"
    delay: float = 0.0
    dropped: bool = False


def reply(message: object, *, status: int = 200, delay: float = 0.0, dropped: bool = False) -> Reply:
    """Build an HTTP answer from a JSON message."""
    return Reply(status, messages.encode(message), delay=delay, dropped=dropped)


def bad_token(error_code: str, token: str) -> Refused:
    """Build the refusal of an access token. `error_code` is one of Daraja's four codes for a bad token."""
    text = {
        "404.001.04": "Invalid Authentication Header",
        "401.002.01": f"Error Occurred - Invalid Access Token - {token}",
    }.get(error_code, "Invalid Access Token")
    return Refused(_BAD_TOKEN_STATUS[error_code], error_code, text)


def server_error(active_faults: faults.ActiveFaults) -> Reply:
    """Build the answer of the fault error_500: JSON with HTTP 500, or an HTML page with HTTP 503."""
    if active_faults.has("error_500", "html"):
        page = b"<html><head><title>503</title></head><body><h1>Service Unavailable</h1></body></html>"
        return Reply(503, page, content_type="text/html")
    return reply(
        {"requestId": "11728-2929992-1", "errorCode": "500.003.1001", "errorMessage": "Internal Server Error"},
        status=500,
    )
