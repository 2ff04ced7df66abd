"""The dispatcher: sends due payouts at the shared pace, with hundreds of requests in flight.

The bulk gateway's thread carries the requests. The thread that runs the dispatcher writes claims and results, many in
one statement. So one database connection serves them all, and none is held across the network.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol, TypeAlias

import redis

from payments.mpesa import client, gateway_errors
from payments.mpesa.bulk_client import Ended, Payment
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.rate_limit import Limiter
from payments.payouts.evidence import status_queries
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy

log = logging.getLogger(__name__)

# Slots are reserved so far ahead. Claims of a batch are written meanwhile, and what a killed worker had claimed and not
# sent is no more than this.
AHEAD_SECONDS = 0.15
TICK_SECONDS = 0.05
# The pace is two per cent below the allowed one: a slot may be used as late as that and no second has too many.
LATE_SECONDS = 0.015
MARGIN = Decimal("0.015")
LONGEST_REST = 1.0
LONGEST_WAIT_FOR_SLOTS = 5.0
LONGEST_QUERY_WAIT = 2.0
# Few at a time: each is committed as asked before it is put, and a killed worker leaves them unasked until the next.
QUESTIONS = 8


Answers: TypeAlias = list[tuple[sending_claims.Claim, sending_claims.Said]]


class Calls(Protocol):
    """What carries many requests at once: bulk_client.BulkGateway."""

    def start(self, payments: Iterable[Payment]) -> None: ...

    def collect(self, *, patience_seconds: float, enough: int) -> list[Ended]: ...


@dataclass(frozen=True)
class Dispatcher:
    """What sending needs: the gateways, the pace, the clock. `in_flight` bounds the requests under way at once."""

    gateway: client.Gateway
    calls: Calls
    limiter: Limiter
    query_limiter: Limiter
    addresses: Addresses
    policy: Policy
    clock: Callable[[], datetime]
    in_flight: int

    def send_one(self, transaction_id: int) -> bool:
        """Send one due payout; False where it is not due, another worker has it, or the pace allows it only later.

        Raises: redis.RedisError, and sends nothing.
        """
        slots = self.limiter.reserve(longest_wait_seconds=1.0)
        if not slots:
            return False
        time.sleep(slots[0])
        claims = sending_claims.claim(
            at=self.clock(), policy=self.policy, addresses=self.addresses, limit=1, transaction_id=transaction_id
        )
        for claim in claims:
            said = sending_claims.call(claim, gateway=self.gateway, addresses=self.addresses)
            responses.record(claim, said, at=self.clock(), policy=self.policy)
        return bool(claims)

    def run(self, *, keep_going: Callable[[], bool]) -> int:
        """Send until nothing is due any more, or `keep_going` says no; return how many requests were made.

        Whatever ends it, the requests under way are heard out and written down first. A claim is made only when its
        slot has been given, so what is killed in between has lost nothing but the slot.
        Raises: redis.RedisError; what a request raised that could not even be made.
        """
        sent, rest, last_turn, is_due = 0, 0.0, 0, False
        under_way: dict[int, sending_claims.Claim] = {}
        answers: Answers = []
        try:
            while keep_going():
                is_due = is_due or sending_claims.any_due(at=self.clock(), policy=self.policy)
                if not is_due and not under_way and not answers:
                    break
                room = self.in_flight + self._queue() - len(under_way)
                claims, is_due = self._claim(room, last_turn) if is_due else ([], False)
                if claims:
                    under_way |= {claim.attempt_id: claim for claim in claims}
                    sent += len(claims)
                    last_turn, rest = _last_turn(claims, last_turn), 0.0
                # The lanes are filled again before what emptied them is written down.
                answers = self._record(answers)
                if under_way:
                    answers = self._hear(under_way, patience_seconds=TICK_SECONDS)
                    if any(not isinstance(said, client.Accepted) for _, said in answers):
                        # It may be a reason to send no more, so it is written down first.
                        answers = self._record(answers)
                elif not claims:  # Something holds back what is due: a pause, a probe's time, the pace, another worker.
                    rest = min(LONGEST_REST, rest + TICK_SECONDS)
                    time.sleep(rest)
        finally:
            answers = self._record(answers)
            while under_way:
                self._record(self._hear(under_way, patience_seconds=LONGEST_REST))
        return sent

    def ask_due(self, *, for_seconds: float) -> int:
        """Ask about the attempts that have gone without proof for too long; return how many questions were put.

        Raises: redis.RedisError.
        """
        until = time.monotonic() + for_seconds
        asked = 0
        with ThreadPoolExecutor(max_workers=QUESTIONS, thread_name_prefix="ask") as threads:
            while time.monotonic() < until:
                questions = status_queries.ask(
                    at=self.clock(), policy=self.policy, addresses=self.addresses, limit=QUESTIONS
                )
                if not questions:
                    break
                under_way = {}
                for question in questions:
                    slots = self.query_limiter.reserve(longest_wait_seconds=LONGEST_QUERY_WAIT)
                    if not slots:  # No slot in time: it counts as a question without an answer; the next is due.
                        continue
                    time.sleep(slots[0])
                    put = threads.submit(status_queries.put, question, gateway=self.gateway, addresses=self.addresses)
                    under_way[put] = question
                for put, question in under_way.items():
                    if conversation_id := put.result():
                        status_queries.record_question(question, conversation_id)
                asked += len(questions)
        return asked

    def _claim(self, room: int, last_turn: int) -> tuple[list[sending_claims.Claim], bool]:
        """Claim what there are slots and room for, and start it; the slots come first. Second: more may be due."""
        slots = self._slots(room, AHEAD_SECONDS) if room > 0 else []
        if not slots:
            return [], True
        at, limit = self.clock(), len(slots)
        claims = sending_claims.claim_next(
            at=at, policy=self.policy, addresses=self.addresses, limit=limit, after=last_turn
        )
        if claims and time.monotonic() > slots[0] + LATE_SECONDS:
            slots = self._later_slots(slots[: len(claims)])
        self.calls.start(
            Payment(key=claim.attempt_id, at=slot, request=sending_claims.request(claim, addresses=self.addresses))
            for claim, slot in zip(claims, slots, strict=False)
        )
        return claims, len(claims) == limit

    def _later_slots(self, missed: list[float]) -> list[float]:
        """Other slots for requests that would all leave at once now, too many for one second; the missed are forgone.

        Where Redis has just gone or has no more to give, they leave at the pace they had.
        """
        late = time.monotonic() - missed[0]
        try:
            slots = self._slots(len(missed), LONGEST_WAIT_FOR_SLOTS)
        except redis.RedisError as error:
            log.warning("No later slots for %s requests: %s", len(missed), error)
            slots = []
        return slots + [slot + late for slot in missed[len(slots) :]]

    def _slots(self, count: int, within_seconds: float) -> list[float]:
        """When requests may leave, as time.monotonic has it."""
        now = time.monotonic()
        return [now + wait for wait in self.limiter.reserve(count, longest_wait_seconds=within_seconds)]

    def _queue(self) -> int:
        """How many claims may wait for a lane: so few that, should they leave at once, no second has too many."""
        return min(self.in_flight // 2, int(self.limiter.per_second * MARGIN))

    def _hear(self, under_way: dict[int, sending_claims.Claim], *, patience_seconds: float) -> Answers:
        """What has ended meanwhile. Raises what could not even be requested, the others written down."""
        ended = self.calls.collect(patience_seconds=patience_seconds, enough=1 + len(under_way) // 10)
        answers: Answers = []
        unforeseen: list[Exception] = []
        for end in ended:
            claim = under_way.pop(end.key, None)
            if claim is None:  # Of a run that ended before it could write this down: a question finds out.
                continue
            if isinstance(end.response, client.Accepted | gateway_errors.GatewayError):
                answers.append((claim, end.response))
            else:
                unforeseen.append(end.response)
        if unforeseen:
            self._record(answers)
            raise unforeseen[0]
        return answers

    def _record(self, answers: Answers) -> Answers:
        """Write answers down; what is left of them is nothing."""
        if answers:
            responses.record_all(answers, at=self.clock(), policy=self.policy)
        return []


def _last_turn(claims: list[sending_claims.Claim], before: int) -> int:
    """The settlement after which the next turn begins; what did not wait for a turn has not had one.

    Where each came from another settlement, more of them may wait than there were places; else all have been round.
    """
    turns = [claim.settlement_id or 0 for claim in claims if not claim.before_turns]
    if not turns:
        return before
    return turns[-1] if len(set(turns)) == len(turns) else 0
