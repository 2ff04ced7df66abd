"""The dispatcher, which sends due payouts at the shared pace with hundreds of requests in flight.

The bulk gateway's thread makes the requests. The thread that runs the dispatcher writes claims and responses, many in
one statement. One database connection therefore serves all requests, and no transaction is open during a request.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeAlias

import redis
from django.db import InterfaceError, OperationalError, connection

from payments.mpesa import client, gateway_errors
from payments.mpesa.bulk_client import Ended, Payment
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.rate_limit import Limiter
from payments.payouts import breakers
from payments.payouts.evidence import orphans, status_queries
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.payouts.sending.answers import Answers
from payments.policy import Policy

log = logging.getLogger(__name__)

# Slots are reserved this far ahead, which is long enough to write a batch of claims. If the worker is killed, at most
# the claims of these 0.15 seconds stay unsent.
AHEAD_SECONDS = 0.15
TICK_SECONDS = 0.05
# Our pace is two per cent below the limit (rate_limit.py). A request may therefore leave this long after its slot, and
# the number of requests in any one second still stays within the limit.
LATE_SECONDS = 0.015
# The number of claims that may wait for a free connection is this share (1.5 per cent) of the requests that the limit
# allows in one second. This is less than the two per cent that our pace leaves free.
QUEUE_SHARE = Decimal("0.015")
# Responses are kept in memory for this long while PostgreSQL is away, for example during a restart. Later the requests
# are in doubt, and status queries find their results.
RECORD_PATIENCE_SECONDS = 60.0
LONGEST_REST = 1.0
LONGEST_WAIT_FOR_SLOTS = 5.0
LONGEST_QUERY_WAIT = 2.0
# Status queries at a time. The number is small because each query is committed before it is POSTed. If the worker is
# killed in between, these attempts are asked about again PAYOUT_QUERY_AFTER later.
QUERIES_AT_ONCE = 8


Responses: TypeAlias = list[tuple[sending_claims.Claim, sending_claims.Response]]


class BulkGateway(Protocol):
    """A gateway for many requests at once: bulk_client.BulkGateway, or a fake in tests."""

    def start(self, payments: Iterable[Payment]) -> None: ...

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]: ...


@dataclass(frozen=True)
class Dispatcher:
    """The dispatcher with its gateways, pace and clock.

    `in_flight` bounds the requests under way at once. `before_claim` is called before each claim. It stops the sending
    if the database has lost commits. `age_of_news` gives the seconds since M-Pesa was asked for an access token that it
    issued, once for each new token.
    """

    gateway: client.Gateway
    bulk_gateway: BulkGateway
    limiter: Limiter
    query_limiter: Limiter
    addresses: Addresses
    policy: Policy
    clock: Callable[[], datetime]
    before_claim: Callable[[], None]
    in_flight: int
    answers: Answers = field(default_factory=Answers)
    age_of_news: Callable[[], float | None] = lambda: None

    def send_one(self, transaction_id: int) -> bool:
        """Send one payout and return True, or return False and send nothing.

        Sends nothing if the payout is not due, if another worker holds it, or if the pace has no slot within a second.
        A request without an answer counts as `run` counts it: while M-Pesa is silent, only probes leave.
        Raises: redis.RedisError. Then nothing was sent.
        """
        slots = self.limiter.reserve(longest_wait_seconds=1.0)
        if not slots:
            return False
        time.sleep(slots[0])
        self.before_claim()
        self._report_silence()
        claims = sending_claims.claim(
            at=self.clock(), policy=self.policy, addresses=self.addresses, limit=1, transaction_id=transaction_id
        )
        for claim in claims:
            self.answers.left(claim.attempt_id, time.monotonic())
            try:
                response = sending_claims.call(claim, gateway=self.gateway, addresses=self.addresses)
                if not _is_answer(response):
                    self._report_silence()
                self.answers.ended(claim.attempt_id, is_answer=_is_answer(response), at=time.monotonic())
            finally:
                self.answers.ended(claim.attempt_id, is_answer=False, at=time.monotonic())
            self._record([(claim, response)])
        return bool(claims)

    def run(self, *, keep_going: Callable[[], bool]) -> int:
        """Send until no payout is due or `keep_going` returns False, and return the number of requests made.

        Before this method returns or raises, it waits for the requests under way and records their responses. A slot is
        reserved before its claim is made, so a worker killed in between loses only the slot.
        Raises: redis.RedisError; any error that kept a request from being made.
        """
        sent, rest, last_served, is_due = 0, 0.0, 0, False
        under_way: dict[int, sending_claims.Claim] = {}
        received: Responses = []
        self.answers.begin()
        try:
            while keep_going():
                is_due = is_due or sending_claims.any_due(at=self.clock(), policy=self.policy)
                if not is_due and not under_way and not received:
                    break
                room = self.in_flight + self._queue_length() - len(under_way)
                claims, is_due = self._claim(room, last_served) if is_due else ([], False)
                if claims:
                    under_way |= {claim.attempt_id: claim for claim in claims}
                    sent += len(claims)
                    last_served, rest = _last_served(claims, last_served), 0.0
                # Record the previous responses only now, so that new requests do not wait for it.
                received = self._record(received)
                if under_way:
                    received = self._collect(under_way, patience_seconds=TICK_SECONDS)
                    self._report_silence()
                    if any(not isinstance(response, client.Accepted) for _, response in received):
                        # A response other than an acceptance may open a breaker, which pauses sending. So record the
                        # response before the next claim.
                        received = self._record(received)
                elif not claims:
                    # Nothing could be claimed: sending is paused, the next probe is not due, the pace has no slot, or
                    # another worker holds the payouts.
                    rest = min(LONGEST_REST, rest + TICK_SECONDS)
                    time.sleep(rest)
        except BaseException:
            self._finish(under_way, received)  # Its own errors are logged. The first error is the one to raise.
            raise
        if error := self._finish(under_way, received):
            raise error
        return sent

    def _finish(self, under_way: dict[int, sending_claims.Claim], received: Responses) -> Exception | None:
        """Record the responses, and wait for the requests under way. Return the first error.

        An error concerns one response or one batch. The responses to all other requests are still recorded.
        """
        first = None
        while under_way or received:
            waiting = len(under_way)
            try:
                batch, received = received, []
                self._record(batch)
                if under_way:
                    received = self._collect(under_way, patience_seconds=LONGEST_REST)
            except Exception as error:
                log.exception("An error while the last responses were recorded")
                first = first or error
                if not batch and len(under_way) == waiting:
                    break  # The gateway returns nothing any more. Status queries find the results.
        return first

    def ask_due(self, *, for_seconds: float) -> int:
        """POST the status queries that are due, and return their number.

        Slots are reserved before the queries are stored. So a query that cannot leave is not counted as asked.
        Raises: redis.RedisError. Then the queries stay due.
        """
        until = time.monotonic() + for_seconds
        asked = 0
        with ThreadPoolExecutor(max_workers=QUERIES_AT_ONCE, thread_name_prefix="ask") as threads:
            while time.monotonic() < until:
                asked_at = self.clock()
                slots, reserved_at = self._query_slots(asked_at), time.monotonic()
                claim: Any = {"policy": self.policy, "addresses": self.addresses, "limit": len(slots)}
                queries = (
                    orphans.ask(at=asked_at, **claim)
                    or status_queries.ask(at=asked_at, **claim)
                    or orphans.ask(at=asked_at, supposed=True, **claim)
                )
                if not queries:
                    break
                under_way = {}
                for query, slot in zip(queries, slots, strict=False):
                    time.sleep(max(0.0, reserved_at + slot - time.monotonic()))
                    post = threads.submit(status_queries.post, query, gateway=self.gateway, addresses=self.addresses)
                    under_way[post] = query
                is_taken = is_unreachable = False
                for post, query in under_way.items():
                    try:
                        conversation_id = post.result()
                        _record_put(query, conversation_id)
                        is_taken |= conversation_id is not None
                    except gateway_errors.NotSent as error:
                        log.warning("Status query about %s not sent: %s", query.originator_conversation_id, error)
                        about = orphans if query.query_id is None else status_queries
                        about.withdraw(query, at=self.clock(), policy=self.policy)
                        is_unreachable |= _is_unreachable(error)
                if is_taken:
                    breakers.reached(asked_at, at=self.clock())
                self._hear_of_token(is_unreachable)
                breakers.judge(at=self.clock(), policy=self.policy)
                asked += len(queries)
        return asked

    def _hear_of_token(self, is_unreachable: bool) -> None:
        """Close the breaker of the network if M-Pesa has issued an access token since the last call.

        `is_unreachable`: a later call did not reach M-Pesa, so the token proves nothing any more.
        """
        age = self.age_of_news()
        if age is not None and not is_unreachable:
            at = self.clock()
            breakers.reached(at - timedelta(seconds=age), at=at)

    def _query_slots(self, at: datetime) -> list[float]:
        """Reserve a slot for each due query, up to QUERIES_AT_ONCE. Return the seconds to wait for each slot.

        Raises: redis.RedisError.
        """
        due = (
            orphans.count_due(at=at, limit=QUERIES_AT_ONCE)
            or status_queries.count_due(at=at, limit=QUERIES_AT_ONCE)
            or orphans.count_due(at=at, limit=QUERIES_AT_ONCE, supposed=True)
        )
        return self.query_limiter.reserve(due, longest_wait_seconds=LONGEST_QUERY_WAIT) if due else []

    def _claim(self, room: int, last_served: int) -> tuple[list[sending_claims.Claim], bool]:
        """Reserve slots for at most `room` requests. Claim at most one payout for each slot, and start the requests.

        Returns the claims, and True if more payouts may be due.
        """
        slots = self._slots(room, AHEAD_SECONDS) if room > 0 else []
        if not slots:
            return [], True
        self.before_claim()
        at, limit = self.clock(), len(slots)
        claims = sending_claims.claim_next(
            at=at, policy=self.policy, addresses=self.addresses, limit=limit, after=last_served
        )
        if claims and time.monotonic() > slots[0] + LATE_SECONDS:
            slots = self._later_slots(slots[: len(claims)])
        for claim, slot in zip(claims, slots, strict=False):
            self.answers.left(claim.attempt_id, slot)
        self.bulk_gateway.start(
            Payment(key=claim.attempt_id, at=slot, request=sending_claims.request(claim, addresses=self.addresses))
            for claim, slot in zip(claims, slots, strict=False)
        )
        return claims, len(claims) == limit

    def _later_slots(self, missed: list[float]) -> list[float]:
        """Return new slots for requests that missed their slots.

        Without new slots, too many requests would leave in the same second.
        If Redis is down or has too few slots, the remaining requests keep the distances between their old slots. Each
        of them is delayed by as much as the first request is late.
        """
        late = time.monotonic() - missed[0]
        try:
            slots = self._slots(len(missed), LONGEST_WAIT_FOR_SLOTS)
        except redis.RedisError as error:
            log.warning("No later slots for %s requests: %s", len(missed), error)
            slots = []
        return slots + [slot + late for slot in missed[len(slots) :]]

    def _slots(self, count: int, within_seconds: float) -> list[float]:
        """Reserve slots and return the times at which requests may leave, on the clock of time.monotonic."""
        now = time.monotonic()
        return [now + wait for wait in self.limiter.reserve(count, longest_wait_seconds=within_seconds)]

    def _queue_length(self) -> int:
        """Return the number of claims that may wait for a free connection.

        Even if all these claims leave at once, the number of requests in that second stays within the limit.
        """
        return min(self.in_flight // 2, int(self.limiter.per_second * QUEUE_SHARE))

    def _collect(self, under_way: dict[int, sending_claims.Claim], *, patience_seconds: float) -> Responses:
        """Return the responses of the requests that have ended.

        Raises: any error that kept a request from being made, after recording the other responses.
        """
        ended = self.bulk_gateway.collect(patience_seconds=patience_seconds, at_least=1 + len(under_way) // 10)
        now = time.monotonic()
        received: Responses = []
        unforeseen: list[Exception] = []
        for end in ended:
            claim = under_way.pop(end.key, None)
            self.answers.ended(end.key, is_answer=_is_answer(end.response), at=now)
            if claim is None:
                # This request belongs to an earlier run, which was cut off before it collected the response. A status
                # query finds the result.
                continue
            if isinstance(end.response, client.Accepted | gateway_errors.GatewayError):
                received.append((claim, end.response))
            else:
                unforeseen.append(end.response)
        if unforeseen:
            self._record(received)
            raise unforeseen[0]
        return received

    def _report_silence(self) -> None:
        """Open the breaker `silence` if M-Pesa has stopped answering, so that only probes leave.

        Call it right after the ended requests are collected. Otherwise answers that wait to be collected look like
        silence.
        """
        seconds = self.answers.silence(time.monotonic())
        if seconds is None:
            return
        at = self.clock()
        breakers.report_silence(
            oldest_posted_at=at - timedelta(seconds=seconds),
            reason=f"No answer for {seconds:.1f} seconds. Usually M-Pesa takes {self.answers.usual:.1f} seconds.",
            at=at,
            policy=self.policy,
        )

    def _record(self, received: Responses) -> Responses:
        """Record the responses and return an empty list. While PostgreSQL is away, wait for it.

        Recording the same response twice changes nothing, so a commit whose answer was lost does no harm.
        Raises: django.db.OperationalError or InterfaceError after RECORD_PATIENCE_SECONDS.
        """
        until, rest = time.monotonic() + RECORD_PATIENCE_SECONDS, 0.0
        while received:
            try:
                responses.record_all(received, at=self.clock(), policy=self.policy)
                self._hear_of_token(any(_is_unreachable(response) for _, response in received))
                break
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() >= until:
                    log.error("%s responses are lost, and status queries ask about them: %s", len(received), error)
                    raise
                log.warning("%s responses wait until PostgreSQL answers: %s", len(received), error)
                connection.close_if_unusable_or_obsolete()
                rest = min(LONGEST_REST, rest + 2 * TICK_SECONDS)
                time.sleep(rest)
        return []


def _record_put(query: status_queries.DueQuery, conversation_id: str | None) -> None:
    """Record that a query about an attempt or about an orphan was POSTed."""
    if query.query_id is None:
        orphans.record_put(query)
    else:
        status_queries.record_put(query, conversation_id)


def _is_answer(response: object) -> bool:
    """Return True if the response shows that M-Pesa answered this request, whatever it said."""
    return isinstance(response, client.Accepted) or (
        isinstance(response, gateway_errors.GatewayError) and bool(response.code)
    )


def _is_unreachable(response: object) -> bool:
    return isinstance(response, gateway_errors.NotSent) and response.reason == "network"


def _last_served(claims: list[sending_claims.Claim], before: int) -> int:
    """Return the settlement after which the round continues, or 0 if a new round begins.

    Requests that skip the queue do not count. If two claims are from one settlement, its turn came twice, so every
    waiting settlement was served. Otherwise some settlements may still wait for their turn.
    """
    served = [claim.settlement_id or 0 for claim in claims if not claim.skips_queue]
    if not served:
        return before
    return served[-1] if len(set(served)) == len(served) else 0
