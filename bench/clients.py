"""Clients to measure, each in its own process: the dispatcher, and bare clients without books.

    python -m bench.clients dispatcher <seconds>
    python -m bench.clients aiohttp <url> <requests> <in flight>
    python -m bench.clients requests <url> <requests> <in flight>

A client's last line is JSON: the number of requests, the seconds, and the CPU seconds of its process.
"""

import asyncio
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import requests

BODY = {
    "InitiatorName": "testapi",
    "SecurityCredential": "c" * 344,
    "CommandID": "BusinessPayment",
    "Amount": 100,
    "PartyA": "600000",
    "PartyB": "254712345678",
    "Remarks": "Payout KASOKO 1 1 00000000",
    "QueueTimeOutURL": f"https://kasoko.app/api/payments/b2c-timeout/{'a' * 64}/",
    "ResultURL": f"https://kasoko.app/api/payments/b2c-callback/{'a' * 64}/",
    "Occassion": "KASOKO 1 1 00000000",
}
HEADERS = {"Authorization": "Bearer stub-token", "Content-Type": "application/json"}


def body(number: int) -> bytes:
    """Return the body of a bare client's request."""
    return json.dumps({"OriginatorConversationID": f"BARE-{number}", **BODY}).encode()


def cpu_seconds() -> float:
    """Return the CPU seconds that this process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(work: Callable[[], int]) -> None:
    """Do the work and print its cost. `work` returns the number of requests that it made."""
    began, used = time.monotonic(), cpu_seconds()
    made = work()
    cost = {"requests": made, "seconds": time.monotonic() - began, "cpu": cpu_seconds() - used}
    sys.stdout.write(json.dumps(cost) + "\n")


def bare_aiohttp(url: str, count: int, in_flight: int) -> int:
    """POST `count` requests from one event loop, `in_flight` at a time, and read each response as JSON."""

    async def lane(session: aiohttp.ClientSession, numbers: list[int]) -> None:
        while numbers:
            number = numbers.pop()
            async with session.post(url, data=body(number), headers=HEADERS) as response:
                json.loads(await response.read())

    async def run() -> None:
        numbers = list(range(count))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:
            await asyncio.gather(*[lane(session, numbers) for _ in range(in_flight)])

    asyncio.run(run())
    return count


def bare_requests(url: str, count: int, in_flight: int) -> int:
    """POST `count` requests from `in_flight` threads, each with its own session."""
    own = threading.local()

    def post(number: int) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
            own.session.trust_env = False
        response = own.session.post(url, data=body(number), headers=HEADERS, timeout=30)
        json.loads(response.content)

    with ThreadPoolExecutor(in_flight) as threads:
        list(threads.map(post, range(count)))
    return count


def dispatcher(seconds: float) -> int:
    """Run the dispatcher of a worker process for at most `seconds`, and return the number of requests."""
    import django

    django.setup()
    from payments import wiring

    until = time.monotonic() + seconds
    sent = wiring.dispatcher().run(keep_going=lambda: time.monotonic() < until)
    wiring.bulk_gateway().close()
    return sent


def main(arguments: list[str]) -> None:
    """Run the named client."""
    which, *rest = arguments
    if which == "dispatcher":
        import django

        django.setup()  # Before the measurement: Django's start is not part of a payout's cost.
        measured(lambda: dispatcher(float(rest[0])))
    else:
        url, count, in_flight = rest[0], int(rest[1]), int(rest[2])
        work = bare_aiohttp if which == "aiohttp" else bare_requests
        measured(lambda: work(url, count, in_flight))


if __name__ == "__main__":
    main(sys.argv[1:])
