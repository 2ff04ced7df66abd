"""Conformance of the services with the pure machine, after each random event.

It compares each payout's status and due time, and each attempt's state and times. It also compares the answer to each
question and the balances of the ledger. The events need not be plausible: M-Pesa may report anything, in any order,
from any address. If the services and the machine disagree, one of the two breaks rule D3, D4 or D6.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, Literal

from django.db import IntegrityError, InternalError, connection

from payments.models import Breaker, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions, bulk_retries, decisions
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from soak.simulation.pure import operations
from soak.simulation.pure.attempts import Refused
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.rows import Answer, Attempt, Forbidden, Payout, Question, Result
from soak.simulation.scratch import rolled_back
from soak.simulation.seed_result import SeedResult, Violation
from testing import builders, payout_steps
from users import audit
from users.models import CustomUser

EVENTS = 30
SHORT = (1, 5, 21, 40, 61, 130)
LONG = (400, 1_000, 1_799, 1_801, 4_000, 90_000)
RESPONSES: tuple[client.Accepted | gateway_errors.GatewayError, ...] = (
    payout_steps.ACCEPTED,
    payout_steps.ACCEPTED,
    payout_steps.READ_TIMEOUT,
    payout_steps.DUPLICATE,
    payout_steps.REJECTED,
    payout_steps.NO_CONNECTION,
    payout_steps.THROTTLED,
    gateway_errors.NotSent("auth", "404.001.03", "Invalid Access Token"),
    gateway_errors.Rejected("400.002.02", "Bad Request - Invalid InitiatorName"),
    gateway_errors.Rejected("404.001.01", "Resource not found"),
)
CODES = ("0", "0", "0", "2040", "4", "1", "2001", "SFC_IC0003", "15", "17", "5", "4711", "TP40153", "2006")
STATUSES = {
    "Completed": "completed",
    "Failed": "failed",
    "Declined": "failed",
    "Pending": "unknown",
    "Reversed": "reversed",
    "49": "not_found",
}
# One query for everything that is compared. Units: seconds since the epoch; whole shillings.
STATE = """
SELECT 'payout', external_ref, status, CASE status WHEN 'PENDING' THEN extract(epoch FROM due_at)::float8 END,
    NULL::float8, NULL::float8, NULL::float8, NULL::float8, '', false, NULL::float8
FROM payments_transaction WHERE destination = 'mpesa'
UNION ALL SELECT 'attempt', originator_conversation_id, state, extract(epoch FROM posted_at)::float8,
    extract(epoch FROM first_sent_at)::float8, extract(epoch FROM doubted_at)::float8,
    extract(epoch FROM next_query_at)::float8, extract(epoch FROM resend_at)::float8, receipt,
    conversation_id <> '', extract(epoch FROM known_at)::float8
FROM payments_attempt
UNION ALL SELECT 'question', a.originator_conversation_id, q.verdict, q.number, NULL, NULL, NULL, NULL, '', false, NULL
FROM payments_statusquery q JOIN payments_attempt a ON a.id = q.attempt_id
UNION ALL SELECT 'balance', account, '', sum(delta)::float8, NULL, NULL, NULL, NULL, '', false, NULL FROM (
    SELECT CASE WHEN a.kind IN ('wallet', 'receivable') THEN a.code ELSE a.kind END AS account, side.delta
    FROM payments_transfer f
    CROSS JOIN LATERAL (VALUES (f.credit_id, f.amount), (f.debit_id, -f.amount)) AS side (account_id, delta)
    JOIN payments_ledgeraccount a ON a.id = side.account_id
    WHERE a.kind IN ('wallet', 'receivable', 'payable', 'in_flight', 'mpesa_utility')) x
GROUP BY account HAVING sum(delta) <> 0
"""


class Disagreement(Exception):
    """The services and the machine differ after the same events."""


class Pair:
    """The same payouts in the services and in the machine. Each event is given to both sides."""

    def __init__(self, seed: int, *, machine: type[Machine] = Machine) -> None:
        self.random = Random(f"conformance {seed}")
        # Deaths before a question have draws of their own, so that the seeds of past disagreements keep their events.
        self.deaths = Random(f"deaths {seed}")
        self.now = payout_steps.AT
        self.policy = builders.policy(production=self.random.random() < 0.7)
        # The machine has neither breakers nor the canary. So no share of bad outcomes stops a claim.
        self.sending_policy = replace(self.policy, breaker_failure_share=Decimal(2))
        self.machine = machine(self.policy)
        self.trace: list[str] = []
        self.stats: Counter[str] = Counter()
        self.underway: list[tuple[sending_claims.Claim, Attempt]] = []
        self.names: dict[str, str] = {}

    def begin(self) -> None:
        """Make a member, two members of staff, and one or two payouts."""
        # These users have no PIN, because hashing a PIN takes longer than the rest of the run.
        user = CustomUser.objects.create(phone_number="254700000001", full_name="Member", password="!")
        self.staff = [
            audit.Actor(CustomUser.objects.create(phone_number=f"25470000001{n}", password="!").pk, "conformance")
            for n in (1, 2)
        ]
        for number in range(self.random.choice([1, 1, 2])):
            amount = self.random.choice([15, 285, 1_234, 60_000])
            real = builders.payout(amount, user=user, at=self.now, policy=self.policy)
            self.names[real.external_ref] = f"p{number + 1}"
            self.machine.owe(
                real.external_ref, member=str(user.pk), phone=user.phone_number, amount=amount, at=self.now
            )

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        text = self.named(text)
        self.trace.append(f"{(self.now - payout_steps.AT).total_seconds():10.1f} {text}")

    def named(self, text: str) -> str:
        """Replace each reference by p1, p2, …, because the database draws references at random."""
        for ref, name in self.names.items():
            text = text.replace(ref, name)
        return text

    # --- events ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Draw one event and give it to both sides."""
        attempts = [attempt for payout in self.machine.payouts for attempt in payout.attempts]
        questions = [question for attempt in attempts for question in attempt.questions]
        possible: list[tuple[int, Callable[[], None]]] = [(3, self._wait), (2, self._claim), (1, self._operate)]
        if self.underway:
            possible.append((6, self._record))
        if attempts:
            # Most messages are about the latest request.
            about = attempts[-1] if self.random.random() < 0.6 else self.random.choice(attempts)
            possible += [(3, self._ask), (1, self._resend), (4, lambda: self._result(about))]
            possible += [(1, lambda: self._timeout(about))]
        if questions:
            asked = questions[-1] if self.random.random() < 0.5 else self.random.choice(questions)
            possible += [(5, lambda: self._answer(asked)), (1, lambda: self._timeout(asked))]
        weights, events = zip(*possible, strict=True)
        (event,) = self.random.choices(events, weights)
        event()

    def _wait(self) -> None:
        soon = [at for payout in self.machine.payouts for at in self.machine.next_due(payout) if at and at > self.now]
        if soon and self.random.random() < 0.6:
            self.now = min(soon)
        else:
            self.now += timedelta(seconds=self.random.choice(SHORT if self.random.random() < 0.8 else LONG))
        self.note("waits")

    def _claim(self) -> None:
        only = self.random.choice([None, *self.machine.payouts])
        limit = self.random.choice([1, 100])
        self.note(f"claim {only.ref if only else 'due payouts'}, at most {limit}")
        _close_breakers()
        real_only = self._real(only).pk if only else None
        real = payout_steps.claims(self.now, self.sending_policy, limit, real_only)
        self._under_way(real, self.machine.claim(at=self.now, limit=limit, only=only))

    def _resend(self) -> None:
        self.note("resends")
        _close_breakers()
        self._under_way(
            payout_steps.resends(self.now, self.sending_policy), self.machine.resends(at=self.now, limit=100)
        )

    def _under_way(self, real: list[sending_claims.Claim], pure: list[Attempt]) -> None:
        claims = {claim.originator_conversation_id: claim for claim in real}
        if sorted(claims) != sorted(attempt.ocid for attempt in pure):
            raise Disagreement(f"to POST: {sorted(claims)}, the machine {[attempt.ocid for attempt in pure]}")
        self.underway += [(claims[attempt.ocid], attempt) for attempt in pure]

    def _record(self) -> None:
        claim, attempt = self.underway.pop(self.random.randrange(len(self.underway)))
        if self.random.random() < 0.1:
            self.note(f"the worker with {attempt.ocid} dies")
            return
        response = self.random.choice(RESPONSES)
        self.note(f"{attempt.ocid} POSTed: {response!r}")
        responses.record(claim, response, at=self.now, policy=self.policy)
        self.machine.record(attempt, response, at=self.now)

    def _ask(self) -> None:
        self.note("asks")
        real = status_queries.ask(at=self.now, policy=self.policy, addresses=payout_steps.ADDRESSES, limit=100)
        pure = self.machine.ask(at=self.now, limit=100)
        asked = sorted(question.originator_conversation_id for question in real)
        if asked != sorted(question.attempt.ocid for question in pure):
            raise Disagreement(f"to ask: {asked}, the machine {[question.attempt.ocid for question in pure]}")
        if self.deaths.random() < 0.1:
            self.note("the worker dies before it asks")
            return
        for query in real:
            status_queries.record_put(query, None)
        for question in pure:
            self.machine.put(question)

    def _result(self, about: Attempt) -> None:
        code = self.random.choice(CODES)
        payout, ocid, final = about.payout, about.ocid, True
        amount, phone, receipt = payout.amount, payout.phone, self.random.choice(["SKG0000001", "SKG0000002"])
        without: tuple[str, ...] = ()
        shown = phone
        match self.random.choice(["as it is"] * 8 + ["amount", "phone", "masked", "half", "id", "not final"]):
            case "amount":
                amount += 1
            case "phone":
                phone = shown = "254799999999"
            case "masked":
                shown = f"{phone[:4]}****{phone[-3:]}"
            case "half":
                without = ("TransactionAmount",)
            case "id":
                ocid = f"{ocid}9"
            case "not final":
                final = False
        trusted = self.random.random() < 0.7
        self.note(f"result {code} {amount} {shown} {receipt} {ocid} {without} {final=} {trusted=} for {about.ocid}")
        body = payout_steps.result_body(
            _as_real(about), int(code) if code.isdigit() else code, result_type=0 if final else 1,
            amount=amount, phone=shown, receipt=receipt, ocid=ocid, without=without,
        )  # fmt: skip
        # A result with code 0 has parameters, final or not. With other parameters it is stored as another message.
        stated = code if final else f"{code}, to be continued"
        if code == "0":
            result = Result(ocid, stated, shown, None if without else amount, phone, receipt)
        else:
            result = Result(ocid, stated)
        payout_steps.deliver(
            "result", payout_steps.ADDRESSES.token(about.ocid), body, self.now, policy=self.policy, trusted=trusted
        )
        self._apply(about, result, trusted)

    def _timeout(self, about: Attempt | Question) -> None:
        self.note(f"queue timeout of {self._label(about)}")
        body = b'{"Result": {}}'
        payout_steps.deliver("timeout", self._token(about), body, self.now, policy=self.policy)
        self._apply(about, None, True)

    def _answer(self, about: Question) -> None:
        status = self.random.choice(list(STATUSES))
        attempt = about.attempt
        amount, phone, ocid = attempt.payout.amount, attempt.payout.phone, attempt.ocid
        match self.random.choice(["as it is"] * 8 + ["amount", "phone", "id"]):
            case "amount":
                amount += 1
            case "phone":
                phone = "254799999999"
            case "id":
                ocid = f"{ocid}9"
        receipt = self.random.choice(["SKG0000001", "SKG0000002", ""])
        trusted = self.random.random() < 0.75
        self.note(f"answer {status} {amount} {phone} {ocid} {receipt} {trusted=} to {self._label(about)}")
        if status == "49":
            body, answer = payout_steps.not_found_body(), Answer("not_found")
        else:
            body = payout_steps.status_body(
                _as_real(attempt), status, amount=amount, phone=phone, receipt=receipt, ocid=ocid
            )
            completed = status == "Completed"
            answer = Answer(STATUSES[status], ocid, amount, phone, (receipt or None) if completed else status)
        payout_steps.deliver("status", self._token(about), body, self.now, policy=self.policy, trusted=trusted)
        self._apply(about, answer, trusted)

    def _apply(self, about: Attempt | Question, content: Result | Answer | None, trusted: bool) -> None:
        message = self.machine.store(about, content, trusted=trusted, at=self.now)
        if message is not None:
            self.machine.apply(message, at=self.now)

    def _operate(self) -> None:
        payout = self.random.choice(self.machine.payouts)
        pk, at = self._real(payout).pk, self.now
        act = self.random.choice(["retry", "retry all", "to the wallet", "decide"])
        receipt, people = self.random.choice(["", "SKG0000001"]), self.random.choice([(1,), (1, 2)])
        since = at - timedelta(hours=self.random.choice([1, 60]))
        self.note(f"{act} {payout.ref} {receipt} {people}")
        real: Callable[[], Any]
        pure: Callable[[], Any]
        match act:
            case "retry":
                real = lambda: actions.retry(transaction_id=pk, by=audit.MACHINE, at=at)  # noqa: E731
                pure = lambda: operations.retry(self.machine, payout, at=at)  # noqa: E731
            case "retry all":
                retry = partial(bulk_retries.start, since=since, by=audit.MACHINE, at=at)
                real = lambda: len(retry().retried)  # noqa: E731
                pure = lambda: operations.retry_failed(self.machine, since=since, at=at)  # noqa: E731
            case "to the wallet":
                real = lambda: actions.redirect_to_wallet(transaction_id=pk, by=audit.MACHINE, at=at)  # noqa: E731
                pure = lambda: operations.redirect(self.machine, payout, at=at)  # noqa: E731
            case _:
                people_here, until = self.staff[: len(people)], self.random.choice([None, at])
                finding = decisions.Finding(receipt, "The statement.", until)
                real = lambda: decisions.decide(  # noqa: E731
                    transaction_id=pk, finding=finding, by=people_here, at=at, policy=self.policy
                )
                pure = lambda: operations.decide(  # noqa: E731
                    self.machine, payout, receipt=receipt, people=len(people), at=at, statement_until=until
                )
        refusals = (actions.PayoutNotRetryable, decisions.NotToBeDecided)
        ours, machine = _allowed(real, refusals), _allowed(pure, (Refused,))
        if ours != machine and (act == "retry all" or "refused" in (ours, machine)):
            raise Disagreement(f"{act}: {ours}, the machine {machine}")

    # --- comparing ---------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compare the states of both sides. Raises: Disagreement, with the lines that differ."""
        real, pure = self._services_state(), self._machine_state()
        if real != pure:
            raise Disagreement(f"services {sorted(real - pure, key=str)}, machine {sorted(pure - real, key=str)}")

    def _services_state(self) -> set[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(STATE)
            return set(cursor.fetchall())

    def _machine_state(self) -> set[tuple[Any, ...]]:
        nothing = (*(None,) * 4, "", False, None)
        rows: set[tuple[Any, ...]] = set()
        book = self.machine.book
        for payout in self.machine.payouts:
            due_at = payout.due_at.timestamp() if payout.status == "PENDING" else None
            rows.add(("payout", payout.ref, payout.status, due_at, *nothing))
            for a in payout.attempts:
                times = (a.posted_at, a.first_sent_at, a.doubted_at, a.ask_at, a.resend_at)
                *seconds, known = (time and time.timestamp() for time in (*times, a.known_at))
                rows.add(("attempt", a.ocid, a.state, *seconds, a.receipt, a.acknowledged, known))
                for number, question in enumerate(a.questions, start=1):
                    rows.add(("question", a.ocid, question.verdict, number, *nothing))
        held = {account: sum_ for account, sum_ in book.held.items() if account.startswith(("wallet", "receivable"))}
        held |= {kind: book.total[kind] for kind in ("payable", "in_flight")}
        held["mpesa_utility"] = book.held["utility"]
        rows.update(("balance", account, "", sum_, *nothing) for account, sum_ in held.items() if sum_)
        return rows

    def _real(self, payout: Payout) -> Transaction:
        return Transaction.objects.get(external_ref=payout.ref)

    def _token(self, about: Attempt | Question) -> str:
        return payout_steps.ADDRESSES.token(self._label(about))

    def _label(self, about: Attempt | Question) -> str:
        """Return the text from which the token of an address is made."""
        if isinstance(about, Attempt):
            return about.ocid
        return f"{about.attempt.ocid}?{about.attempt.questions.index(about) + 1}"


def _close_breakers() -> None:
    Breaker.objects.filter(opened_at__isnull=False).update(opened_at=None, probe_at=None, probes=0)


def _allowed(act: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> Any:
    try:
        return act()
    except refusals:
        return "refused"


def _found_by(error: Exception) -> Literal["judge", "database", "crash"]:
    if isinstance(error, Disagreement):
        return "judge"
    return "database" if isinstance(error, Forbidden | IntegrityError | InternalError) else "crash"


def _as_real(attempt: Attempt) -> Any:
    return SimpleNamespace(
        originator_conversation_id=attempt.ocid, amount=attempt.payout.amount, phone_number=attempt.payout.phone
    )


def run(seed: int, *, keep_trace: bool = False, machine: type[Machine] = Machine) -> SeedResult:
    """Give one seed's sequence of events to both sides, in a transaction that is rolled back.

    Needs a connection to a migrated, empty database.
    """
    pair = Pair(seed, machine=machine)
    violations: list[Violation] = []
    logging.disable(logging.CRITICAL)
    try:
        with rolled_back():
            pair.begin()
            for number in range(EVENTS):
                try:
                    pair.step()
                    pair.compare()
                except Exception as error:  # Either side may raise it.
                    evidence = pair.named(f"{type(error).__name__}: {error} [{pair.trace[-1].strip()}]")
                    violations.append(Violation("Services and machine agree", evidence, number, _found_by(error)))
                    break
    finally:
        logging.disable(logging.NOTSET)
    pair.stats.update(payout.status for payout in pair.machine.payouts)
    pair.stats["steps"] = len(pair.trace)
    trace_hash = hashlib.sha256("\n".join(pair.trace).encode()).hexdigest()
    return SeedResult(seed, trace_hash, tuple(violations), pair.stats, tuple(pair.trace) if keep_trace else ())
