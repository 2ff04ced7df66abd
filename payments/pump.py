"""The pump: sends due payouts at the shared pace with many requests in flight, from one process.

Threads carry the HTTP calls only; claims and results are written by the caller's thread, so one database connection
serves them all and none is held across the network.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime

from payments import daraja, payouts
from payments.addresses import Addresses
from payments.limiter import Limiter
from payments.policy import Policy

log = logging.getLogger(__name__)

LONGEST_PAUSE = 1.0
LONGEST_QUERY_WAIT = 2.0
# Few at a time: each is committed as asked before it is put, and a killed worker leaves them unasked until the next.
QUESTIONS = 8
Said = daraja.Accepted | daraja.GatewayError


@dataclass(frozen=True)
class Pump:
    """What sending needs: the gateway, the pace, the clock. `in_flight` bounds the requests under way at once."""

    gateway: daraja.Gateway
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
        pause = self.limiter.reserve(longest_wait_seconds=1.0)
        if pause is None:
            return False
        time.sleep(pause)
        claims = payouts.claim(
            at=self.clock(), policy=self.policy, addresses=self.addresses, limit=1, transaction_id=transaction_id
        )
        for claim in claims:
            said = payouts.call(claim, gateway=self.gateway, addresses=self.addresses)
            payouts.record(claim, said, at=self.clock(), policy=self.policy)
        return bool(claims)

    def send_due(self, *, for_seconds: float) -> int:
        """Send what is due, oldest first, for a while; return how many requests were made.

        A claim is made only when its slot has come, so what is killed in between has lost nothing but the slot.
        Raises: redis.RedisError, once the requests under way are recorded.
        """
        until = time.monotonic() + for_seconds
        sent = 0
        under_way: dict[Future[Said], payouts.Claim] = {}
        with ThreadPoolExecutor(max_workers=self.in_flight, thread_name_prefix="pump") as threads:
            try:
                while time.monotonic() < until:
                    is_due = payouts.any_due(at=self.clock(), policy=self.policy)
                    if not is_due and not under_way:
                        break
                    claims = self._next(until) if is_due and len(under_way) < self.in_flight else []
                    for claim in claims:
                        call = threads.submit(payouts.call, claim, gateway=self.gateway, addresses=self.addresses)
                        under_way[call] = claim
                    sent += len(claims)
                    self._record(under_way, patience_seconds=0.0 if claims else 0.05)
            finally:
                while under_way:
                    self._record(under_way, patience_seconds=1.0)
        return sent

    def ask_due(self, *, for_seconds: float) -> int:
        """Ask about the attempts that have gone without proof for too long; return how many questions were put.

        Raises: redis.RedisError.
        """
        until = time.monotonic() + for_seconds
        asked = 0
        with ThreadPoolExecutor(max_workers=self.in_flight, thread_name_prefix="ask") as threads:
            while time.monotonic() < until:
                questions = payouts.ask(at=self.clock(), policy=self.policy, addresses=self.addresses, limit=QUESTIONS)
                if not questions:
                    break
                under_way = {}
                for question in questions:
                    pause = self.query_limiter.reserve(longest_wait_seconds=LONGEST_QUERY_WAIT)
                    if pause is None:  # No slot in time: it counts as a question without an answer; the next is due.
                        continue
                    time.sleep(pause)
                    put = threads.submit(payouts.put, question, gateway=self.gateway, addresses=self.addresses)
                    under_way[put] = question
                for put, question in under_way.items():
                    if conversation_id := put.result():
                        payouts.record_question(question, conversation_id)
                asked += len(questions)
        return asked

    def _next(self, until: float) -> list[payouts.Claim]:
        pause = self.limiter.reserve(longest_wait_seconds=max(0.0, min(LONGEST_PAUSE, until - time.monotonic())))
        if pause is None:
            time.sleep(0.05)
            return []
        time.sleep(pause)
        at = self.clock()
        return payouts.claim(at=at, policy=self.policy, addresses=self.addresses, limit=1) or payouts.claim_resends(
            at=at, policy=self.policy, addresses=self.addresses, limit=1
        )

    def _record(self, under_way: dict[Future[Said], payouts.Claim], *, patience_seconds: float) -> None:
        if not under_way:
            return
        done, _ = wait(under_way, timeout=patience_seconds, return_when=FIRST_COMPLETED)
        for call in done:
            payouts.record(under_way.pop(call), call.result(), at=self.clock(), policy=self.policy)
