"""Stub of M-Pesa that answers B2C requests cheaply and remembers their times.

`python -m bench.stub` serves hand-written HTTP/1.1 on asyncio. It runs in a separate process, so that its work is not
measured. It listens on loopback only. GET /told returns [[seconds, id], …], one pair for each payment since the last
GET /set?latency=<seconds>.
"""

import asyncio
import json
import re
import sys
import time
from typing import ClassVar

ID = re.compile(rb'"OriginatorConversationID": ?"([^"]+)"')
LENGTH = re.compile(rb"(?i)content-length: *([0-9]+)")
ACCEPTED = (
    b'{"ConversationID": "AG_1", "OriginatorConversationID": "x", "ResponseCode": "0", "ResponseDescription": "ok"}'
)
TOKEN = b'{"access_token": "stub-token", "expires_in": "3599"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Stub(asyncio.Protocol):
    """A connection. Class attributes are shared by all connections."""

    latency = 0.0
    told: ClassVar[list[tuple[float, str]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while b"\r\n\r\n" in self._read:
            head, _, rest = self._read.partition(b"\r\n\r\n")
            stated = LENGTH.search(head)
            length = int(stated[1]) if stated else 0
            if len(rest) < length:
                return
            self._read = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            match = ID.search(body)
            Stub.told.append((time.monotonic(), match[1].decode() if match else ""))
            if Stub.latency:
                asyncio.get_running_loop().call_later(Stub.latency, self._say, ACCEPTED)
            else:
                self._say(ACCEPTED)
        elif head.startswith(b"GET /told"):
            self._say(json.dumps(Stub.told).encode())
        elif head.startswith(b"GET /set"):
            Stub.latency = float(head.split(b"latency=")[1].split()[0])
            Stub.told = []
            self._say(b"{}")
        else:
            self._say(TOKEN)

    def _say(self, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(OK % (len(body), body))  # type: ignore[attr-defined]


async def serve() -> None:
    """Print the address, and answer until standard input ends. It ends at the latest with the parent process."""
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=2048)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"http://{host}:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
