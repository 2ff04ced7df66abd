"""Drills: the database loses its last commits after requests left, at a random moment.

Nobody may be paid twice, and nobody may be left out. Each table and sequence is copied at one moment and put back
later, as a restore from a backup does. M-Pesa is a book with one line for each payment. It refuses a duplicate id for
half an hour only, which is the time that we count on. After that it would pay again.
Needs an empty database. A drill commits, so the caller empties the tables again.
"""

from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import redis
from django.conf import settings
from django.db import connection

from markets.models import Market
from payments.models import Attempt, Breaker, Restore, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts.evidence import orphans, status_queries
from payments.payouts.operations import actions
from payments.payouts.restores import decisions, detection, procedure
from payments.payouts.restores.copies import Copies
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from testing import builders, database_copies, lost_commits
from testing.builders import AT
from testing.payout_steps import ADDRESSES, deliver, deliver_result, not_found_body, result_body, status_body
from users.audit import MACHINE

HORIZON = timedelta(minutes=30)
MEMBERS = 7


class RuleBroken(Exception):
    """The drill ended with a broken rule, which the message names."""


def require(holds: bool, rule: str) -> None:
    """Raise RuleBroken unless the rule holds."""
    if not holds:
        raise RuleBroken(rule)


class Book:
    """M-Pesa as a book: when each id was first paid, and how often.

    While it is `strict`, it refuses some first requests, as it refuses a payee. It keeps no line about a refusal.
    """

    def __init__(self, random: Random) -> None:
        self.random, self.strict = random, True
        self.now = AT
        self.paid_at: dict[str, datetime] = {}
        self.payments: Counter[str] = Counter()

    def pay(self, *, originator_conversation_id: str, **_: Any) -> client.Accepted:
        first = self.paid_at.get(originator_conversation_id)
        if first is not None and self.now < first + HORIZON:
            raise gateway_errors.OutcomeUnknown("500.002.1001", "Duplicate OriginatorConversationID.", duplicate=True)
        if first is None and self.strict and originator_conversation_id.endswith("-1") and self.random.random() < 0.3:
            raise gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
        self.paid_at[originator_conversation_id] = self.now
        self.payments[originator_conversation_id] += 1
        return client.Accepted(f"AG_{originator_conversation_id}"[:60], originator_conversation_id)

    def by_payout(self) -> Counter[str]:
        """Return the number of payments of each payout, over all of its requests."""
        counts: Counter[str] = Counter()
        for ocid, times in self.payments.items():
            counts[ocid.rpartition("-")[0]] += times
        return counts


class Drill:
    """One run on a virtual clock, with a small pace so that a short loss concerns some payouts only."""

    def __init__(self, random: Random, path: Path) -> None:
        self.random, self.book = random, Book(random)
        self.redis = redis.Redis.from_url(settings.REDIS_URL)
        self.copies = Copies(self.redis, path / "heartbeat")
        self.policy = builders.policy(payouts_a_second=Decimal(1), in_flight=2)
        self.markets = [self._market() for _ in range(2)]
        self.beat()

    def _market(self) -> Market:
        market = builders.market()
        for _ in range(MEMBERS):
            builders.orm_bet(market, builders.member(), "Yes", 100)
        builders.orm_bet(market, builders.member(), "No", 500)
        return market

    @property
    def now(self) -> datetime:
        return self.book.now

    def pass_time(self, seconds: float) -> None:
        self.book.now += timedelta(seconds=seconds)

    def beat(self) -> Restore | None:
        return detection.beat(at=self.now, copies=self.copies, policy=self.policy)

    def settle(self) -> None:
        """Settle the markets that are not settled."""
        for market in Market.objects.exclude(status="SETTLED"):
            if market.status == "OPEN":
                builders.resolve(market, "Yes", at=self.now, policy=self.policy)
            builders.settle(market, at=self.now, policy=self.policy)

    def send(self, count: int) -> None:
        """Send at most `count` requests, one a second as the pace demands, and receive some of the results."""
        for _ in range(count):
            self.pass_time(1)
            self.beat()
            for claim in sending_claims.claim_next(
                at=self.now, policy=self.policy, addresses=ADDRESSES, limit=1, after=0
            ):
                answer = sending_claims.call(claim, gateway=self.book, addresses=ADDRESSES)
                responses.record(claim, answer, at=self.now, policy=self.policy)
                self.retry_failed()
                if self.random.random() < 0.6 and isinstance(answer, client.Accepted):
                    attempt = Attempt.objects.get(pk=claim.attempt_id)
                    receipt = f"R{attempt.originator_conversation_id[-12:]}"
                    deliver_result(attempt, result_body(attempt, receipt=receipt), self.now, policy=self.policy)

    def retry_failed(self) -> None:
        """Retry the failed payouts, as a person does. A retry is refused while M-Pesa is being asked."""
        for payout_id in Transaction.objects.filter(status="FAILED").values_list("pk", flat=True):
            with suppress(actions.PayoutNotRetryable):
                actions.retry(transaction_id=payout_id, by=MACHINE, at=self.now)

    def ask_about_later(self) -> None:
        """Ask about the later requests that may be lost, and receive M-Pesa's answers."""
        for query in orphans.ask(at=self.now, policy=self.policy, addresses=ADDRESSES, limit=100, supposed=True):
            ocid = query.originator_conversation_id
            payout = Transaction.objects.get(external_ref=ocid.rpartition("-")[0])
            request = Attempt(originator_conversation_id=ocid, amount=payout.amount, phone_number=payout.phone_number)
            known = status_body(request, receipt=f"R{ocid[-12:]}") if ocid in self.book.paid_at else not_found_body()
            body = known.replace(b"MBN0000000", f"MBN-{ocid}-{self.now.timestamp()}".encode())
            orphans.record_put(query)
            lost_commits.store("status", query.token, body, self.now)
        for orphan_id in orphans.to_place(limit=100):
            orphans.place(orphan_id=orphan_id, at=self.now, policy=self.policy, addresses=ADDRESSES)

    def ask(self) -> None:
        """Send the status queries that are due, and receive M-Pesa's answers."""
        for query in status_queries.ask(at=self.now, policy=self.policy, addresses=ADDRESSES, limit=100):
            attempt = Attempt.objects.get(originator_conversation_id=query.originator_conversation_id)
            known = attempt.originator_conversation_id in self.book.paid_at
            receipt = f"R{attempt.originator_conversation_id[-12:]}"
            body = status_body(attempt, receipt=receipt) if known else not_found_body()
            status_queries.record_put(query, None)
            deliver("status", query.token, body, self.now, policy=self.policy)

    def go_on(self, hours: float = 3) -> None:
        """Let the workers run until every payout is completed, or for some hours."""
        until = self.now + timedelta(hours=hours)
        while self.now < until and Transaction.objects.exclude(status="COMPLETED").exists():
            self.beat()
            self.send(1)
            self.advance()
            self.ask_about_later()
            self.ask()
            self.retry_failed()
            self.send(3)
            self.pass_time(60)

    def advance(self) -> None:
        """List payouts, and open the requests that are asked about first."""
        procedure.advance(at=self.now, policy=self.policy, addresses=ADDRESSES, keep_going=lambda: True)

    def two_people_decide(self, reference: str = "all") -> None:
        by = [builders.actor(builders.member(is_staff=True)) for _ in range(2)]
        decisions.decide(reference=reference, grounds="The statement shows no other payment.", by=by, at=self.now)


def lose_commits(drill: Drill, *, lost_seconds: float) -> None:
    """Take a copy at a random moment, go on for a while, and put the copy back."""
    if drill.random.random() < 0.7:
        drill.settle()
        drill.send(drill.random.randint(0, MEMBERS))
    drill.beat()
    copy = database_copies.take()
    drill.settle()
    drill.send(drill.random.randint(1, MEMBERS))
    drill.ask()
    drill.book.strict = False
    drill.pass_time(lost_seconds)
    drill.beat()
    database_copies.put_back(copy)
    connection.close()
    restore = drill.beat()
    require(restore is not None, "The loss was not noticed")
    if drill.random.random() < 0.7:  # The lost settlements are made again before or after the listing.
        drill.advance()


def check_everybody_is_paid_once(drill: Drill) -> None:
    """Compare M-Pesa's book with the payouts."""
    payouts = Transaction.objects.filter(destination="mpesa")
    refs = Counter(payouts.values_list("external_ref", flat=True))
    paid = drill.book.by_payout()
    require(not [ref for ref in paid if paid[ref] > 1], "Somebody was paid twice")
    require(len(refs) == 2 * MEMBERS and paid == refs, "Somebody was left out")
    require(set(payouts.values_list("status", flat=True)) == {"COMPLETED"}, "A payout is not completed")


def short_loss(moment: int, path: Path) -> None:
    """Lose less than the resend horizon. Everything goes on by itself."""
    drill = Drill(Random(f"short {moment}"), path)
    lose_commits(drill, lost_seconds=drill.random.uniform(0, 120))
    drill.settle()
    drill.go_on()
    check_everybody_is_paid_once(drill)
    require(Restore.objects.get().state == "ASKING", "A short loss waits for people")
    require(not Breaker.objects.filter(opened_at__isnull=False).exists(), "Sending is still stopped")


def long_loss(moment: int, path: Path) -> None:
    """Lose more than the resend horizon. Two people decide."""
    drill = Drill(Random(f"long {moment}"), path)
    lose_commits(drill, lost_seconds=drill.random.uniform(2_000, 90_000))
    drill.settle()
    payments = sum(drill.book.payments.values())
    drill.go_on(hours=0.1)
    require(sum(drill.book.payments.values()) == payments, "A payout left before two people had decided")
    drill.two_people_decide()
    drill.go_on()
    check_everybody_is_paid_once(drill)
