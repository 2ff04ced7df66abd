"""The guards, each of which can be switched off in one simulated world: what the simulation is for is to notice.

A guard is switched off by putting the code that lacks it in its place, for one run; where PostgreSQL holds the same
guard, that one is dropped too, inside the transaction that the run rolls back.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from django.db import connection, transaction

from payments.ledger import journal
from payments.models import Attempt, StatusQuery, Transaction
from payments.mpesa import client, gateway_errors, message_fields, messages, result_codes
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts
from payments.payouts.evidence import booking, callbacks, rules
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy
from soak.simulation import world
from soak.simulation.world import World

State = Attempt.State
Said = client.Accepted | gateway_errors.GatewayError
Result = messages.Result


@dataclass(frozen=True)
class Bug:
    """A guard switched off by `plant`, the rule that is broken by it, and the faults that the guard is there for.

    `seed` is one that notices.
    """

    rule: str
    plant: Callable[[World], AbstractContextManager[None]]
    likely: dict[str, float]
    seed: int

    def run(self, seed: int, *, planted: bool = True, keep_trace: bool = False) -> world.Outcome:
        """Live one seed where those faults are likely, with the guard switched off or, to compare, in place."""
        return world.run(seed, plant=self.plant if planted else None, likely=self.likely, keep_trace=keep_trace)


BUGS: dict[str, Bug] = {}
RESENT = {"answer lost": 0.4, "not found, untruly": 0.6, "slow": 0.3}
FORGED = {"forger": 0.8}
DYING = {"worker dies inside": 0.3}


def bug(
    name: str, rule: str, likely: dict[str, float] | None = None, *, seed: int = 0
) -> Callable[[Callable[[World], Iterator[None]]], None]:
    def register(plant: Callable[[World], Iterator[None]]) -> None:
        BUGS[name] = Bug(rule, contextmanager(plant), likely or {}, seed)

    return register


@contextmanager
def instead_of(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Have `owner` use `other` under this name."""
    original = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, original)


def without(*guards: str) -> None:
    """Drop guards of the database until this transaction is rolled back."""
    with connection.cursor() as cursor:
        for guard in guards:
            cursor.execute(guard)


NO_ATTEMPT_GUARD = "ALTER TABLE payments_attempt DISABLE TRIGGER attempt_moves"
NO_PAYOUT_GUARD = "ALTER TABLE payments_transaction DISABLE TRIGGER transaction_moves"


def failing_on_answer(reads_as_failure: Callable[[Said], bool]) -> AbstractContextManager[None]:
    """Answers of which `reads_as_failure` says so fail the attempt."""
    original = responses.record

    def record(claim: sending_claims.Claim, said: Said, *, at: datetime, policy: Policy) -> None:
        original(claim, said, at=at, policy=policy)
        if reads_as_failure(said):
            fail_if_open(claim.attempt_id, str(said), at, policy)

    return instead_of(responses, "record", record)


def failing_on_result(reads_as_failure: Callable[[Result], bool]) -> AbstractContextManager[None]:
    """Results of which `reads_as_failure` says so fail the attempt at once."""
    original = rules.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        verdict = original(attempt_id, result, trusted=trusted, at=at, policy=policy)
        if reads_as_failure(result):
            fail_if_open(attempt_id, result.result_desc, at, policy)
        return verdict

    return instead_of(rules, "apply_result", apply_result)


def failing_on_status(verdict: str) -> AbstractContextManager[None]:
    """One status answer with this verdict fails the attempt."""
    original = rules.apply_status_answer

    def apply_status_answer(
        query_id: int, answer: messages.StatusAnswer, *, trusted: bool, at: datetime, policy: Policy
    ) -> str:
        said = original(query_id, answer, trusted=trusted, at=at, policy=policy)
        if answer.payment_status == verdict:
            fail_if_open(StatusQuery.objects.get(pk=query_id).attempt_id, verdict, at, policy)
        return said

    return instead_of(rules, "apply_status_answer", apply_status_answer)


def fail_if_open(attempt_id: int, words: str, at: datetime, policy: Policy) -> None:
    with transaction.atomic():
        payout, attempt = attempts.locked(attempt_id)
        if attempt.state in Attempt.OPEN:
            attempts.fail(payout, attempt, code="", words=words, at=at, policy=policy)


def means_failure(result: Result) -> bool:
    return result_codes.meaning(result.result_code).definite


# --- what the call left us knowing -----------------------------------------------------------------------------------


@bug("timeout read as failure", "D4: a timeout leaves the money in doubt")
def _(here: World) -> Iterator[None]:
    with failing_on_answer(lambda said: isinstance(said, gateway_errors.OutcomeUnknown) and not said.duplicate):
        yield


@bug(
    "duplicate 500 as failure",
    "D4: a duplicate answer says nothing of the first request",
    RESENT | {"duplicate by result": 0.0},
)
def _(here: World) -> Iterator[None]:
    with failing_on_answer(lambda said: isinstance(said, gateway_errors.OutcomeUnknown) and said.duplicate):
        yield


@bug(
    "rejection believed after doubt",
    "D4: a rejection is proof only where no POST of the id ended in doubt",
    RESENT | {"rejected": 0.4},
    seed=22,
)
def _(here: World) -> Iterator[None]:
    with failing_on_answer(lambda said: isinstance(said, gateway_errors.Rejected)):
        yield


@bug("unguarded transition", "D3: an answer that comes after the result changes nothing", seed=1)
def _(here: World) -> Iterator[None]:
    original = responses.record

    def record(claim: sending_claims.Claim, said: Said, *, at: datetime, policy: Policy) -> None:
        original(claim, said, at=at, policy=policy)
        if isinstance(said, client.Accepted):
            Attempt.objects.filter(pk=claim.attempt_id).update(state=State.ACCEPTED)

    without(NO_ATTEMPT_GUARD)
    with instead_of(responses, "record", record):
        yield


# --- what a callback proves ------------------------------------------------------------------------------------------


@bug("code 15 as failure", "D4: result 15 says nothing of the first request", RESENT | {"duplicate by result": 1.0})
def _(here: World) -> Iterator[None]:
    with failing_on_result(lambda result: result.result_code == "15"):
        yield


@bug("unknown code as failure", "D4: the definite codes are an allow-list", {"unknown code": 0.4})
def _(here: World) -> Iterator[None]:
    doubtful = ("0", "15")
    with failing_on_result(lambda result: not means_failure(result) and result.result_code not in doubtful):
        yield


@bug("unconfirmed failure", "D4: never the word of one callback", FORGED)
def _(here: World) -> Iterator[None]:
    with failing_on_result(means_failure):
        yield


@bug("queue timeout as failure", "D4: a queue timeout proves nothing", {"queue timeout, executed": 0.4})
def _(here: World) -> Iterator[None]:
    original = rules.apply_timeout

    def apply_timeout(attempt_id: int, *, at: datetime, policy: Policy) -> str:
        verdict = original(attempt_id, at=at, policy=policy)
        fail_if_open(attempt_id, "queue timeout", at, policy)
        return verdict

    with instead_of(rules, "apply_timeout", apply_timeout):
        yield


@bug("a paid payout failed by a late callback", "D4: paid evidence beats failure evidence, always", FORGED)
def _(here: World) -> Iterator[None]:
    original = rules.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        verdict = original(attempt_id, result, trusted=trusted, at=at, policy=policy)
        if not result.says_paid and Attempt.objects.filter(pk=attempt_id, state=State.PAID).update(state=State.FAILED):
            Transaction.objects.filter(attempts=attempt_id).update(status=Transaction.Status.FAILED)
        return verdict

    without(NO_ATTEMPT_GUARD, NO_PAYOUT_GUARD)
    with instead_of(rules, "apply_result", apply_result):
        yield


@bug(
    "late success dropped",
    "D4: a late success is booked, never dropped",
    {"failed, untruly": 1.0, "result late": 0.5},
    seed=4,
)
def _(here: World) -> Iterator[None]:
    original = booking.pay

    def pay(payout: Transaction, attempt: Attempt, **more: Any) -> str:
        return "failed already" if attempt.state == State.FAILED else original(payout, attempt, **more)

    with instead_of(booking, "pay", pay):
        yield


@bug("callback trusted without token", "D4: each request has an address of its own", FORGED)
def _(here: World) -> Iterator[None]:
    original = callbacks.store

    def store(*, kind: str, token: str, body: bytes, addresses: Addresses, **more: Any) -> None:
        if kind == "result":
            token = addresses.token(messages.parse_result(body).originator_conversation_id or "")
        original(kind=kind, token=token, body=body, addresses=addresses, **more)

    with instead_of(callbacks, "store", store):
        yield


@bug("amount not compared", "D4: a result pays only what it matches", FORGED)
def _(here: World) -> Iterator[None]:
    original = rules.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        amount = Attempt.objects.get(pk=attempt_id).amount
        pairs = tuple((key, amount if key == "TransactionAmount" else value) for key, value in result.parameters.pairs)
        matching = replace(result, parameters=message_fields.Parameters(pairs))
        return original(attempt_id, matching, trusted=trusted, at=at, policy=policy)

    with instead_of(rules, "apply_result", apply_result):
        yield


@bug("large success not confirmed", "D4: from MPESA_CONFIRM_ABOVE on a status query must agree", FORGED, seed=7)
def _(here: World) -> Iterator[None]:
    # The forger still aims above the amount that the operator set.
    here.policy = replace(here.policy, confirm_above=Decimal(10**9))
    yield


@bug(
    "foreign address trusted",
    "D4: a result from an address that is not M-Pesa's is confirmed by a status query",
    FORGED,
    seed=1,
)
def _(here: World) -> Iterator[None]:
    original = rules.apply_result

    def apply_result(attempt_id: int, result: Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
        return original(attempt_id, result, trusted=True, at=at, policy=policy)

    with instead_of(rules, "apply_result", apply_result):
        yield


@bug("paid together without a look", "D4: only what plainly matches is booked together", FORGED)
def _(here: World) -> Iterator[None]:
    def is_plainly_paid(payout: Transaction, attempt: Attempt, result: Result, **_: Any) -> bool:
        return result.says_paid and attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT)

    with instead_of(rules, "is_plainly_paid", is_plainly_paid):
        yield


@bug("paid together while another request is open", "D3: what is not under way is weighed by itself", RESENT)
def _(here: World) -> Iterator[None]:
    original = rules.is_plainly_paid

    def is_plainly_paid(payout: Transaction, attempt: Attempt, result: Result, **more: Any) -> bool:
        if attempt.state in (State.FAILED, State.PAID):
            attempt.state, payout.status = State.SENDING, Transaction.Status.PROCESSING
        return original(payout, attempt, result, **more)

    without(NO_PAYOUT_GUARD, NO_ATTEMPT_GUARD)
    with instead_of(rules, "is_plainly_paid", is_plainly_paid):
        yield


@bug("acknowledged together whatever came first", "D3: an answer that comes after the result changes nothing", seed=10)
def _(here: World) -> Iterator[None]:
    without(NO_ATTEMPT_GUARD)
    unguarded = responses._ACCEPT.replace("AND a.state = 'SENDING' ", "")
    with instead_of(responses, "_ACCEPT", unguarded):
        yield


# --- what a question proves ------------------------------------------------------------------------------------------


@bug("not-found as failure", "D4: not found never means failed", {"not found, untruly": 0.6})
def _(here: World) -> Iterator[None]:
    with failing_on_status("not_found"):
        yield


@bug("one status answer as failure", "D4: it takes two voices", {"failed, untruly": 0.8})
def _(here: World) -> Iterator[None]:
    with failing_on_status("failed"):
        yield


@bug("shared query token", "D4: each query has an address of its own", FORGED, seed=2)
def _(here: World) -> Iterator[None]:
    original = Addresses.token

    def token(self: Addresses, subject: str) -> str:
        return original(self, subject.partition("?")[0])

    without("ALTER TABLE payments_statusquery DROP CONSTRAINT query_token_once")
    with instead_of(Addresses, "token", token):
        yield


# --- claiming and sending --------------------------------------------------------------------------------------------


@bug("new id per resend", "D3: while we do not know, the same id", RESENT)
def _(here: World) -> Iterator[None]:
    def claim_resends(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[sending_claims.Claim]:
        with transaction.atomic(durable=True):
            lost = Attempt.objects.filter(state=State.IN_DOUBT, resend_at__lte=at).order_by("pk")
            for pk in list(lost.values_list("pk", flat=True)[:limit]):
                payout, attempt = attempts.locked(pk)
                attempts.fail(payout, attempt, code="", words="sent again", at=at, policy=policy)
                payout.status, payout.due_at = Transaction.Status.PENDING, at
                payout.save()
        return []

    with instead_of(sending_claims, "claim_resends", claim_resends):
        yield


@bug(
    "resend without horizon",
    "D3: the same id only within the resend horizon of its first POST",
    {"answer lost": 0.6, "not found, untruly": 0.9, "result lost": 0.8},
    seed=26,
)
def _(here: World) -> Iterator[None]:
    with instead_of(attempts, "within_horizon", lambda attempt, at, policy: True):
        yield


@bug("HTTP inside the transaction with a fresh id", "D3: row and id are committed before the call", DYING)
def _(here: World) -> Iterator[None]:
    original, new_attempt = sending_claims.claim, attempts.new_attempt

    def with_fresh_id(payout: Transaction, *arguments: Any, **more: Any) -> Attempt:
        attempt = new_attempt(payout, *arguments, **more)
        attempt.originator_conversation_id = f"{payout.external_ref}-{here.random.randrange(10_000)}"
        return attempt

    def claim(*, at: datetime, policy: Policy, **more: Any) -> list[sending_claims.Claim]:
        block = transaction.atomic()
        block._from_testcase = True
        with block:
            for claimed in original(at=at, policy=policy, **more):
                said = sending_claims.call(claimed, gateway=here.provider, addresses=here.addresses)
                responses.record(claimed, said, at=at, policy=policy)
        return []

    with instead_of(sending_claims, "claim", claim), instead_of(attempts, "new_attempt", with_fresh_id):
        yield


@bug("enqueue before commit", "D5: what a message speaks of is committed first", DYING)
def _(here: World) -> Iterator[None]:
    original = sending_claims._claim_of

    def claim_of(
        attempt: Attempt, payout: Transaction, addresses: Addresses, *, skips_queue: bool
    ) -> sending_claims.Claim:
        claimed = original(attempt, payout, addresses, skips_queue=skips_queue)
        post = partial(sending_claims.call, claimed, gateway=here.provider, addresses=addresses)
        here.schedule(0.01, "message sent before the commit", post)
        return claimed

    with instead_of(sending_claims, "_claim_of", claim_of):
        yield


@bug("double beat", "D5: of two sweeps at once one claims a payout")
def _(here: World) -> Iterator[None]:
    original = sending_claims.claim

    def claim(*, at: datetime, policy: Policy, addresses: Addresses, **more: Any) -> list[sending_claims.Claim]:
        claims = original(at=at, policy=policy, addresses=addresses, **more)
        for first in list(claims):
            payout = Transaction.objects.get(pk=first.transaction_id)
            second = attempts.new_attempt(payout, payout.attempts.count() + 1, at, policy, addresses)
            second.save()
            send = journal.Entry(f"send:{second.pk}", journal.PAYABLE, journal.IN_FLIGHT, second.amount, payout.pk)
            journal.post([send], at=at)
            claims.append(sending_claims._claim_of(second, payout, addresses, skips_queue=False))
        return claims

    without("DROP INDEX one_open_attempt_a_transaction")
    with instead_of(sending_claims, "claim", claim):
        yield


@bug("operator acts on what is in doubt", "D3: retry and redirect only where no attempt is open", {"operator": 1.0})
def _(here: World) -> Iterator[None]:
    def owing(transaction_id: int, statuses: tuple[str, ...], rule: str) -> Transaction:
        payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).get(pk=transaction_id)
        if payout.status not in (Transaction.Status.PROCESSING, *statuses):
            raise actions.PayoutNotRetryable(rule)
        return payout

    with instead_of(actions, "_owing", owing):
        yield


@bug("no sweep", "D5: losing any message is harmless", {"message lost": 0.5})
def _(here: World) -> Iterator[None]:
    here.has_beat = False
    yield
