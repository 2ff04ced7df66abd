"""Fuzz of the callback endpoints, with a million forged callbacks.

The bodies are raw bytes, JSON of any shape, and genuine messages with changed fields. They are posted to unknown
tokens, to tokens that M-Pesa was given, and to the plain path. Each passes URLs, middleware, view and PostgreSQL; only
the socket is left out. One genuine message is repeated 200 times. Every forgery names an id, an amount and a phone that
are not ours. A few changed fields cannot make it genuine.
"""

import argparse
import io
import json
import logging
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from testing.figures import Figure, Progress, hand_over, say

ENVIRONMENT = {"DJANGO_SECRET_KEY": "k" * 40, "DJANGO_SETTINGS_MODULE": "api.settings", "KASOKO_ENV_FILE": os.devnull}
ATTEMPTS = 200
REPLAYS = 200
APPLY_EVERY = 500
LONGEST_P99_MS = 50.0
KINDS = ("b2c-callback", "b2c-timeout", "status-result")
SCALARS: tuple[Any, ...] = (None, True, 0, "0", 1, -1, 285, "285.00", 1e308, 10**40, "", "x" * 200, "\x00", "\ud800",
                            "254712345678", "Completed", "2547****678 - JOHN", [], {}, [[]], "٣")  # fmt: skip


def run(*, count: int, at_most_seconds: float, seed: int) -> list[Figure]:
    """Make a scratch database with payouts under way, fuzz with one process a core, and return the figures."""
    import django

    django.setup()
    logging.disable(logging.CRITICAL)
    from django.db import connection

    own = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        tokens = _payouts_under_way()
        before = _transfers()
        results = list(_in_processes(count, at_most_seconds, seed, tokens, str(connection.settings_dict["NAME"])))
        return _figures(results, before, count)
    finally:
        connection.close()
        connection.creation.destroy_test_db(own, verbosity=0)


def _payouts_under_way() -> list[dict[str, str]]:
    """Make payouts that were sent and asked about. Return the id, the phone and the tokens of each payout."""
    from payments import wiring
    from payments.models import Attempt
    from payments.payouts.evidence import status_queries
    from payments.payouts.sending import claims
    from testing import builders

    policy, addresses = wiring.policy(), wiring.addresses()
    bets = [(builders.member(), "Yes", 285) for _ in range(ATTEMPTS)]
    builders.settled_market(bets, fee_pct=0, policy=builders.policy())
    at = builders.AT
    claims.claim(at=at, policy=policy, addresses=addresses, limit=ATTEMPTS)
    status_queries.ask(at=at + policy.query_after, policy=policy, addresses=addresses, limit=ATTEMPTS)
    Attempt.objects.update(next_query_at=None)
    return [
        {"ocid": ocid, "phone": phone, "result": addresses.token(ocid), "status": addresses.token(f"{ocid}?1")}
        for ocid, phone in Attempt.objects.order_by("pk").values_list("originator_conversation_id", "phone_number")
    ]


def _transfers() -> Counter[str]:
    from payments.models import Transfer

    return Counter(Transfer.objects.values_list("key", flat=True))


def _in_processes(
    count: int, seconds: float, seed: int, tokens: list[dict[str, str]], database: str
) -> Iterator[dict[str, Any]]:
    jobs = os.cpu_count() or 1
    command = [sys.executable, "-m", "soak.callbacks", f"--count={count // jobs}", f"--seconds={seconds}"]
    children = []
    for job in range(jobs):
        child = subprocess.Popen(
            [*command, f"--seed={seed}", f"--part={job}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"SOAK_DATABASE": database},
        )  # fmt: skip
        if child.stdin:
            child.stdin.write(json.dumps(tokens))
            child.stdin.close()
        children.append(child)
    for child in children:
        for line in child.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
            else:
                say(line.rstrip())
        if child.wait():
            raise SystemExit(f"A fuzzing process ended with exit status {child.returncode}.")


def _figures(results: list[dict[str, Any]], before: Counter[str], count: int) -> list[Figure]:
    from payments.ledger import invariants
    from payments.models import Attempt, Callback

    sent = sum(result["sent"] for result in results)
    replays = sum(result["replays"] for result in results)
    wrong = [answer for result in results for answer in result["wrong"]]
    slots: Counter[int] = Counter()
    for result in results:
        slots.update({int(slot): number for slot, number in result["slots"].items()})
    paid = Attempt.objects.filter(state="PAID").values_list("pk", flat=True)
    allowed = [f"{code}:{pk}" for pk in paid for code in ("won", "paid", "charge")]
    moved = _transfers() - before - Counter(allowed)
    strays = Callback.objects.filter(attempt=None, query=None).count() + Callback.objects.filter(kind="plain").count()
    p99, seconds = _percentile(slots, Decimal("0.99")), max(result["seconds"] for result in results)
    differences = [str(difference) for difference in invariants.differences()]
    rate = f"{sent:,} in {seconds:.0f} s ({sent / seconds:,.0f} a second), {Callback.objects.count():,} stored"
    short = "" if sent >= count - len(results) else f"; the time limit came before {count:,} callbacks"
    return [
        Figure("Fuzzed callbacks, each with the right status (2xx or 4xx)", "0 with 5xx or a wrong status",
               f"{rate}; {len(wrong)} wrong{f' {wrong[:3]}' if wrong else ''}{short}", not wrong),
        Figure("Money moved by these callbacks", "only the payment of the genuine message, once",
               f"{sum(moved.values())} transfers too many; {replays} genuine copies paid {len(paid)} payout",
               not moved and len(paid) == 1 and not differences),
        Figure("Rows stored for unknown tokens", "0", f"{strays}", strays == 0),
        Figure("Time to answer, 99th percentile", f"under {LONGEST_P99_MS:.0f} ms", f"{p99:.1f} ms",
               p99 < LONGEST_P99_MS),
    ]  # fmt: skip


def _percentile(slots: Counter[int], share: Decimal) -> float:
    """Return the time in ms within which `share` of the answers came. Units: a slot is 0.1 ms."""
    passed = 0
    for slot in sorted(slots):
        passed += slots[slot]
        if passed >= share * slots.total():
            return (slot + 1) / 10
    return 0.0


# --- a fuzzing process -----------------------------------------------------------------------------------------------


class Endpoint:
    """The WSGI application. It is called in the same way as a web server calls it."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application
        self.slots: Counter[int] = Counter()

    def post(self, path: str, body: bytes) -> int:
        """POST a body, and return the status of the answer."""
        statuses: list[str] = []
        environ = {
            "REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "",
            "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)), "REMOTE_ADDR": "196.201.214.200",
            "wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0), "wsgi.multithread": False, "wsgi.multiprocess": True, "wsgi.run_once": False,
        }  # fmt: skip
        began = time.perf_counter()
        answer = self._application(environ, lambda status, headers, error=None: statuses.append(status))
        b"".join(answer)
        answer.close()
        self.slots[int((time.perf_counter() - began) * 10_000)] += 1
        return int(statuses[0][:3])


class Forger:
    """Draws bodies of callbacks that the services must not believe."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def body(self) -> bytes:
        """Draw one body."""
        kind = self.chance.randrange(10)
        if kind == 0:
            return self.chance.randbytes(self.chance.randrange(300))
        if kind == 1:
            return self.chance.choice(
                (b"", b"null", b"[" * 9_000, b"\xff" * 20_000, b'{"Result":' * 40, b"\xef\xbb\xbf{}")
            )
        if kind == 2:
            return json.dumps(self._tree(4)).encode()
        body = json.dumps({"Result": self._changed(self._forged())}).encode()
        if kind < 5:
            at = self.chance.randrange(len(body))
            body = body[:at] + self.chance.randbytes(1) + body[at + 1 :]
        return body

    def _forged(self) -> dict[str, Any]:
        """Return a message that reports a payment, with an id, an amount and a phone that are not ours."""
        values = {
            "TransactionAmount": 999_999, "Amount": 999_999, "TransactionReceipt": "SKGFORGED1",
            "ReceiptNo": "SKGFORGED1",
            "ReceiverPartyPublicName": "254199999999 - A THIEF", "CreditPartyName": "254199999999 - A THIEF",
            "OriginatorConversationID": "KASOKO-9-9-ffffffff-1", "TransactionStatus": "Completed",
        }  # fmt: skip
        return {
            "ResultType": 0, "ResultCode": self.chance.choice((0, 0, "0", 1, "17", 2040)), "ResultDesc": "Accepted.",
            "OriginatorConversationID": "KASOKO-9-9-ffffffff-1", "ConversationID": "AG_1",
            "TransactionID": "SKGFORGED1", "ExternalReference": "KASOKO-9-9-ffffffff",
            "ResultParameters": {"ResultParameter": [{"Key": key, "Value": value} for key, value in values.items()]},
        }  # fmt: skip

    def _changed(self, result: dict[str, Any]) -> dict[str, Any]:
        """Replace or remove at most two fields or parameters of the message, and return it."""
        pairs = result["ResultParameters"]["ResultParameter"]
        for _ in range(self.chance.randrange(3)):
            if self.chance.random() < 0.5:
                self.chance.choice(pairs)["Value"] = self._tree(2)
            elif self.chance.random() < 0.5:
                result[self.chance.choice(list(result))] = self._tree(3)
            else:
                result.pop(self.chance.choice(list(result)))
        return result

    def _tree(self, depth: int) -> Any:
        shape = self.chance.randrange(4) if depth else 0
        if shape < 2:
            return self.chance.choice(SCALARS)
        inner = [self._tree(depth - 1) for _ in range(self.chance.randrange(4))]
        return inner if shape == 2 else {str(self.chance.choice(SCALARS))[:9]: value for value in inner}


def fuzz(*, count: int, at_most_seconds: float, seed: int, part: int) -> dict[str, Any]:
    """POST `count` callbacks, and return the counts as values that JSON can hold.

    The process of part 0 also repeats a genuine callback 200 times.
    """
    import django

    django.setup()
    logging.disable(logging.CRITICAL)
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    from payments import settlement_tasks

    settings.DATABASES["default"]["NAME"] = os.environ["SOAK_DATABASE"]
    endpoint, chance = Endpoint(get_wsgi_application()), random.Random(f"{seed}:{part}")  # noqa: S311
    forger, tokens = Forger(chance), json.loads(sys.stdin.read())
    genuine = _genuine(tokens[0])
    progress, sent, replays = Progress(f"callbacks of process {part}", count), 0, 0
    wrong: list[str] = []
    replay_every = max(1, count // REPLAYS) if part == 0 else 0
    while sent < count and progress.seconds < at_most_seconds:
        if replay_every and sent % replay_every == 0:
            path, body, right = f"b2c-callback/{tokens[0]['result']}/", genuine, {200}
            replays += 1
        else:
            path, body, right = _one(chance, forger, tokens)
        status = endpoint.post(f"/api/payments/{path}", body)
        sent += 1
        if status not in right and len(wrong) < 20:
            wrong.append(f"{status} at {path[:20]} for {body[:200]!r}")
        if sent % APPLY_EVERY == 0:
            settlement_tasks.apply_stored_callbacks()
            if part == 0:
                progress.at(sent)
    settlement_tasks.apply_stored_callbacks()
    return {"sent": sent, "replays": replays, "wrong": wrong, "slots": endpoint.slots, "seconds": progress.seconds}


def _one(chance: random.Random, forger: Forger, tokens: list[dict[str, str]]) -> tuple[str, bytes, set[int]]:
    """Draw a forgery. Return its path, its body, and the set of right statuses."""
    body, kind = forger.body(), chance.choice(KINDS)
    too_long = len(body) > 16 * 1024
    draw = chance.random()
    if draw < 0.75:
        return f"{kind}/{secrets.token_hex(32)}/", body, {400} if too_long else {404}
    if draw < 0.85:
        return "b2c-callback/", body, {400, 404}
    token = chance.choice(tokens)["status" if kind == "status-result" else "result"]
    return f"{kind}/{token}/", body, {400} if too_long else {200}


def _genuine(token: dict[str, str]) -> bytes:
    values = {"TransactionAmount": 285, "TransactionReceipt": "SKGGENUINE",
            "ReceiverPartyPublicName": f"{token['phone']} - JOHN DOE"}  # fmt: skip
    pairs = [{"Key": key, "Value": value} for key, value in values.items()]
    result = {"ResultType": 0, "ResultCode": 0, "ResultDesc": "", "OriginatorConversationID": token["ocid"],
              "ResultParameters": {"ResultParameter": pairs}}  # fmt: skip
    return json.dumps({"Result": result}).encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1_800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if options.part is None:
        hand_over(run(count=options.count, at_most_seconds=options.seconds, seed=options.seed))
    else:
        result = fuzz(count=options.count, at_most_seconds=options.seconds, seed=options.seed, part=options.part)
        sys.stdout.write(f"{json.dumps(result)}\n")
