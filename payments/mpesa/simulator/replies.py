"""HTTP answers of the simulator."""

from dataclasses import dataclass

from payments.mpesa.simulator import faults, messages
from payments.mpesa.simulator.messages import Refused

_BAD_TOKEN_STATUS = {"404.001.03": 404, "401.002.01": 401, "400.003.01": 400, "404.001.04": 404}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer: sent after `delay` seconds, or never when `dropped`."""

    status: int
    body: bytes
    content_type: str = "application/json"
    delay: float = 0.0
    dropped: bool = False


def reply(message: object, *, status: int = 200, delay: float = 0.0, dropped: bool = False) -> Reply:
    """Build an HTTP answer of a JSON message."""
    return Reply(status, messages.encode(message), delay=delay, dropped=dropped)


def bad_token(spelling: str, token: str) -> Refused:
    text = {
        "404.001.04": "Invalid Authentication Header",
        "401.002.01": f"Error Occurred - Invalid Access Token - {token}",
    }.get(spelling, "Invalid Access Token")
    return Refused(_BAD_TOKEN_STATUS[spelling], spelling, text)


def server_error(strikes: faults.Strikes) -> Reply:
    if strikes.has("error_500", "html"):
        page = b"<html><head><title>503</title></head><body><h1>Service Unavailable</h1></body></html>"
        return Reply(503, page, content_type="text/html")
    return reply(
        {"requestId": "11728-2929992-1", "errorCode": "500.003.1001", "errorMessage": "Internal Server Error"},
        status=500,
    )
