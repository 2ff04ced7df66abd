"""HTTP server of the simulator: options, start, stop and routes.

The simulator answers as Safaricom's Daraja does, on the loopback address. It keeps a record of all payments, the book.
Its own paths are under /sandbox/; `_route_sandbox` lists them.
"""

import argparse
import itertools
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from payments.mpesa.simulator import faults, request_reading
from payments.mpesa.simulator.book import Book
from payments.mpesa.simulator.delivery import Delivery
from payments.mpesa.simulator.fault_schedule import Schedule
from payments.mpesa.simulator.messages import NOT_FOUND_CODES, Refused
from payments.mpesa.simulator.outages import REFUSAL, Outages
from payments.mpesa.simulator.provider import Provider
from payments.mpesa.simulator.replies import Reply, reply
from payments.mpesa.simulator.terms import Terms

BIGGEST_BODY = 64 * 1024
MOST_CONNECTIONS = 512
IDLE_SECONDS = 75


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a simulator. Port 0 means any free port. Without a `book` file, a restart loses all payments."""

    host: str = "127.0.0.1"
    port: int = 0
    latency: float = 0.05
    terms: Terms = field(default_factory=Terms)
    seed: int = 0
    fault_rate: float = 0.0
    fault_names: tuple[str, ...] = tuple(faults.FAULTS)
    phone_faults: tuple[tuple[str, str], ...] = ()
    book: Path | None = None
    float_shillings: int = 10_000_000


def _clock() -> datetime:
    return datetime.now(UTC)


class Simulator:
    """A simulator with its server, its book of payments and its schedule of faults. It is a context manager.

    Raises: OSError if the port is in use; ValueError if the book file cannot be read as a book.
    """

    def __init__(self, options: Options) -> None:
        self.latency = options.latency
        self.schedule = Schedule(
            seed=options.seed, rate=options.fault_rate, names=options.fault_names, phones=options.phone_faults
        )
        self.stopping = threading.Event()
        self.outages = Outages()
        self.delivery = Delivery()
        self._server = _Server((options.host, options.port), self)
        try:
            self.book = Book(options.book, float_shillings=options.float_shillings, seed=options.seed, now=_clock)
        except (OSError, ValueError):
            self._server.server_close()
            raise
        for phone, text in self.book.used_faults:
            self.schedule.count_uses(phone, [text])
        self.provider = Provider(
            terms=options.terms, book=self.book, schedule=self.schedule, delivery=self.delivery, now=_clock
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="simulator", daemon=True)
        host, port = self._server.server_address[:2]
        self.base_url = f"http://{host!s}:{port}"

    def start(self) -> "Simulator":
        """Start to answer, and continue the payments that an earlier process left unfinished."""
        self.delivery.start()
        self.provider.resume()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering. Payments that are accepted and not executed remain in the book for the next start."""
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.close_connections()
        self.delivery.stop()
        self.book.close()

    def __enter__(self) -> "Simulator":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], simulator: Simulator) -> None:
        self.simulator = simulator
        self.numbers = itertools.count(1)
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    # Each connection has its own thread, so a limit of connections also limits the threads.
    def get_request(self) -> tuple[socket.socket, object]:
        if not self._free.acquire(timeout=0.5):
            raise OSError("every connection is in use")
        try:
            connection, address = super().get_request()
        except OSError:
            self._free.release()
            raise
        with self._lock:
            self._open.add(connection)
        return connection, address

    def close_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._open.discard(request)
        super().close_request(request)
        self._free.release()

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = IDLE_SECONDS
    server: _Server

    def _answer(self) -> None:
        simulator, outage = self.server.simulator, ""
        try:
            body = self._body()
            outage = simulator.outages.kind_for(self.path)
            if outage == "refused":
                raise Refused(*REFUSAL)
            answer = reply({}) if outage == "silent" else _route(simulator, self.command, self.path, self.headers, body)
        except Refused as refusal:
            answer = reply(
                {
                    "requestId": f"11728-2929992-{next(self.server.numbers)}",
                    "errorCode": refusal.code,
                    "errorMessage": refusal.message,
                },
                status=refusal.status,
            )
        if outage in ("silent", "unanswered"):
            while not simulator.outages.wait(0.1) and not simulator.stopping.is_set():
                continue
            self.close_connection = True
            return
        wait = answer.delay + (0.0 if self.path.startswith("/sandbox/") else simulator.latency)
        if (wait and simulator.stopping.wait(wait)) or answer.dropped:
            self.close_connection = True
            return
        closing = "Connection: close\r\n" if self.close_connection else ""
        head = (
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n{closing}\r\n"
        )
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else answer.body))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal() or int(length) > BIGGEST_BODY:
            # The end of this body is unknown, so the next request could not be found. The connection must close.
            self.close_connection = True
            raise Refused(400, "400.002.05", "Invalid Request Payload")
        return self.rfile.read(int(length))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _answer


def _route(simulator: Simulator, verb: str, target: str, headers: Message, raw: bytes) -> Reply:
    parts = urlsplit(target)
    path, arguments = parts.path.rstrip("/"), parse_qs(parts.query)
    if path.startswith("/sandbox/"):
        return _route_sandbox(simulator, verb, path.removeprefix("/sandbox/"), arguments, raw)
    authorization = headers.get("Authorization", "")
    if path == "/oauth/v1/generate":
        if verb != "GET":
            raise Refused(405, "405.001", "Method Not Allowed")
        grant_type = arguments.get("grant_type", [""])[0]
        return simulator.provider.tokens.issue(authorization=authorization, grant_type=grant_type)
    products = {
        "/mpesa/b2c/v3/paymentrequest": (simulator.provider.pay, "404.001.03"),
        "/mpesa/transactionstatus/v1/query": (simulator.provider.ask_status, "400.003.01"),
        "/mpesa/accountbalance/v1/query": (simulator.provider.ask_balance, "401.002.01"),
        "/mpesa/stkpush/v1/processrequest": (simulator.provider.express.push, "404.001.03"),
        "/mpesa/stkpushquery/v1/query": (simulator.provider.express.query, "404.001.03"),
    }
    if path not in products:
        raise Refused(404, "404.001.01", "Resource not found")
    if verb != "POST":
        raise Refused(405, "405.001", "Method Not Allowed")
    answer, token_error_code = products[path]
    simulator.provider.tokens.check(authorization, token_error_code)
    return answer(request_reading.read_body(headers.get("Content-Type", ""), raw))


def _route_sandbox(simulator: Simulator, verb: str, path: str, arguments: Mapping[str, list[str]], raw: bytes) -> Reply:
    """Answer the simulator's own paths, which Daraja does not have.

    GET health · GET book (?payments=0 for only the totals) · GET book/<OCID> · GET faults (the table)
    POST float {"amount"} sets the balance of the Utility account.
    POST faults {"phone", "spec"} adds a fault; {"phone", "spec": null} removes the faults of that phone;
    {"rate", "names": "all" | "name,name"} changes the rate and the kinds of the random faults.
    POST outage {"kind"} begins an outage, or ends it if the kind is null. GET outage counts its payment requests.
    """
    match verb, path.split("/", 1):
        case "GET", ["health"]:
            return reply({"status": "ok", "pending": simulator.delivery.pending()})
        case "GET", ["book"]:
            return reply(simulator.book.summary(with_payments=arguments.get("payments") != ["0"]))
        case "GET", ["book", ocid]:
            entry = simulator.book.entry(unquote(ocid))
            return reply(entry or {"error": "never seen"}, status=200 if entry else 404)
        case "GET", ["faults"]:
            return reply({fault.name: [fault.wire, fault.money, fault.source] for fault in faults.TABLE})
        case "GET", ["outage"]:
            return reply({"arrived": simulator.outages.arrived})
        case "POST", ["float" | "faults" | "outage" as subject]:
            body = request_reading.read_body("application/json", raw)
            set_subject = {"float": _set_float, "faults": _set_faults, "outage": _set_outage}[subject]
            try:
                return set_subject(simulator, body)
            except (KeyError, TypeError, ValueError) as error:
                return reply({"error": str(error)}, status=400)
    return reply({"error": "no such path"}, status=404)


def _set_float(simulator: Simulator, body: request_reading.Body) -> Reply:
    amount = body["amount"]
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
        raise ValueError("amount must be a whole number of shillings")
    simulator.book.set_float(amount)
    return reply({"float": amount})


def _set_outage(simulator: Simulator, body: request_reading.Body) -> Reply:
    if body["kind"] is None:
        simulator.outages.end()
    else:
        simulator.outages.begin(str(body["kind"]))
    return reply({"status": "ok"})


def _set_faults(simulator: Simulator, body: request_reading.Body) -> Reply:
    if "phone" in body and body.get("spec") is None:
        simulator.schedule.clear(str(body["phone"]))
    elif "phone" in body:
        simulator.schedule.add(str(body["phone"]), str(body["spec"]))
    else:
        rate = float(str(body["rate"]))
        simulator.schedule.set_rate(rate, faults.parse_names(str(body.get("names", "all"))))
    return reply({"status": "ok"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command line."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 means any free port")
    parser.add_argument("--url-file", type=Path, help="file to write the base URL to")
    parser.add_argument("--callback-delay", type=float, default=0.2, help="seconds from acceptance to result")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--tps", type=int, default=0, help="payment requests accepted in one second; 0 means no limit")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same faults")
    parser.add_argument(
        "--fault-rate",
        type=float,
        default=0.0,
        help="chance of a random fault in a request, 0 to 1; all kinds are equally likely",
    )
    parser.add_argument(
        "--faults", type=_argument(faults.parse_names), default="all", help="all, or names separated by commas"
    )
    parser.add_argument(
        "--phone-fault",
        type=_argument(faults.parse_phone),
        action="append",
        default=[],
        metavar="2547XXXXXXXX=NAME[:VARIANT][xCOUNT]",
        help="a fault for one phone; the option may be repeated",
    )
    parser.add_argument("--book", type=Path, help="file that keeps the book across restarts")
    parser.add_argument("--float", type=int, default=10_000_000, help="shillings in the Utility account of a new book")
    parser.add_argument("--token-life", type=int, default=3599, help="life of an access token in seconds")
    parser.add_argument("--not-found-code", choices=NOT_FOUND_CODES, default="49", help="answer for an unknown id")
    parser.add_argument("--consumer-key", default="", help="accept only this consumer key; if empty, any")
    parser.add_argument("--consumer-secret", default="", help="accept only this consumer secret; if empty, any")
    parser.add_argument("--passkey", default="", help="accept only this M-Pesa Express passkey; if empty, any")
    parser.add_argument("--list-faults", action="store_true", help="print the table of faults and exit")


def serve(arguments: Mapping[str, object]) -> int:
    """Run until SIGTERM or SIGINT and return the exit status. The first line of output is the base URL.

    `arguments` are the values of the options that `add_arguments` adds.
    """
    values = argparse.Namespace(**arguments)
    if values.list_faults:
        for fault in faults.TABLE:
            print(f"{fault.name}\n  wire:   {fault.wire}\n  money:  {fault.money}\n  source: {fault.source}")
        return 0
    options = Options(
        host=values.host,
        port=values.port,
        latency=values.latency,
        terms=Terms(
            callback_delay=values.callback_delay,
            tps=values.tps,
            token_life=values.token_life,
            not_found_code=values.not_found_code,
            consumer_key=values.consumer_key,
            consumer_secret=values.consumer_secret,
            passkey=values.passkey,
        ),
        seed=values.seed,
        fault_rate=values.fault_rate,
        fault_names=values.faults,
        phone_faults=tuple(values.phone_fault),
        book=values.book,
        float_shillings=values.float,
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        simulator = Simulator(options)
    except (OSError, ValueError) as error:
        print(f"The simulator cannot start: {error}", file=sys.stderr)
        return 1
    with simulator:
        print(simulator.base_url, flush=True)
        if values.url_file:
            # Write to another name first, so that a reader never sees half a URL.
            draft = values.url_file.with_name(f"{values.url_file.name}.{os.getpid()}")
            draft.write_text(f"{simulator.base_url}\n")
            draft.replace(values.url_file)
        ended.wait()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator without Django: `python -m payments.mpesa.simulator`."""
    parser = argparse.ArgumentParser(prog="python -m payments.mpesa.simulator", description=__doc__)
    add_arguments(parser)
    return serve(vars(parser.parse_args(arguments)))


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Make argparse show the message of a ValueError, which argparse hides by default."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
