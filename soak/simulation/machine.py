"""The payout machine stated a second time: from the rules, in memory, with no database and none of the services.

Each method is one transaction of the real thing: it happens whole or not at all, so a crash falls between two of them.
Whatever it holds is what PostgreSQL would hold. It sends nothing: `claim` and `resends` say what to POST, `ask` what to
ask, `record` and `apply` learn what came of it. Not stated here: breakers, the canary and the limit of the day, which
only delay, and the guide's plain callback. Amounts are whole shillings. conformance.py holds it and the services to one
another.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from payments.mpesa import client, gateway_errors
from payments.policy import Policy
from soak.simulation.rows import OPEN, UNDECIDED, Answer, Attempt, Book, Message, Payout, Question, Result

# The codes that say that no money moved; every other code, however it sounds, says nothing. Of these, ours to mend:
DEFINITE = frozenset("1 2 3 4 8 11 21 2001 2006 2028 2040 8006 SFC_IC0003".split())
OURS = frozenset("1 11 21 2001 2006 2028 8006".split())
DUPLICATE = frozenset(("15", "41"))
ASKABLE = frozenset(("FAILED", *UNDECIDED))
LONGEST_WAIT = timedelta(minutes=5)
LONGEST_GAP = timedelta(hours=1)
# What a result claims beside a code: paid, and a question is to confirm it; or perhaps paid, and questions alone count.
PAID, PERHAPS = "says paid", "perhaps says paid"


class Refused(Exception):
    """An operator asked for what could pay twice, or decide what is not theirs to decide; nothing moved."""


def _precedence(payout: Payout) -> tuple[bool, bool, float, float]:
    """What was turned away before all others, and of that what M-Pesa may have had for longest."""
    attempt = payout.open
    if attempt is None:
        return (True, True, 0.0, 0.0)
    first = attempt.first_sent_at
    return (False, first is None, first.timestamp() if first else 0.0, attempt.opened_at.timestamp())


class Machine:
    """Payouts, their requests, the questions about them, the messages that came in, and the book of the money.

    `touched` are the payouts that anything was done about since it was last emptied.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.payouts: list[Payout] = []
        self.book = Book()
        self.unapplied: list[Message] = []
        self.touched: set[Payout] = set()
        self._stored: set[tuple[int, Result | Answer | None, bool]] = set()

    # --- sending -----------------------------------------------------------------------------------------------------

    def owe(self, ref: str, *, member: str, phone: str, amount: int, at: datetime) -> Payout:
        """A settlement's debt is born: due at once."""
        payout = Payout(ref, member, phone, amount, due_at=at)
        self.payouts.append(payout)
        self.book.post(f"payout:{ref}", "pool", f"payable:{ref}", amount)
        self.touched.add(payout)
        return payout

    def sendable(self, payout: Payout) -> bool:
        """Whether only its time has to come: a retry, or a claim that it was paid after all, first has its answer."""
        if payout.status != "PENDING":
            return False
        return not any(attempt.state == "FAILED" and attempt.ask_at is not None for attempt in payout.attempts)

    def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
        """What to POST now: under the id of a request that never left, or else under a new one, written down first.

        The former go first. Each payout is the only one of its settlement, and settlements have their turns in the
        order they were made.
        """
        mine = self.payouts if only is None else [only]
        due = [one for one in mine if one.due_at <= at and self.sendable(one)]
        claimed = []
        for payout in sorted(due, key=_precedence)[:limit]:
            self.touched.add(payout)
            payout.move("PROCESSING")
            attempt = payout.open
            if attempt is None:
                claimed.append(self.new_attempt(payout, at))
            elif self.within_horizon(attempt, at):
                claimed.append(self._post_again(attempt, at))
            else:
                self.doubt(attempt, ask_at=at, at=at)
        return claimed

    def resends(self, *, at: datetime, limit: int) -> list[Attempt]:
        """What to POST again under its own id, for M-Pesa did not find it."""
        due = [a for a in self._attempts() if a.state == "IN_DOUBT" and a.resend_at is not None and a.resend_at <= at]
        claimed = []
        for attempt in sorted(due, key=lambda one: one.resend_at)[:limit]:
            self.touched.add(attempt.payout)
            attempt.resend_at = None
            if attempt.payout.status == "PROCESSING" and self.within_horizon(attempt, at):
                claimed.append(self._post_again(attempt, at))
        return claimed

    def new_attempt(self, payout: Payout, at: datetime) -> Attempt:
        number = len(payout.attempts) + 1
        ocid = f"{payout.ref}-{number}"
        attempt = Attempt(payout, number, ocid, at, at, at, ask_at=at + self.policy.query_after)
        payout.attempts.append(attempt)
        self.book.post(f"send:{ocid}", f"payable:{payout.ref}", f"in_flight:{payout.ref}", payout.amount)
        return attempt

    def _post_again(self, attempt: Attempt, at: datetime) -> Attempt:
        attempt.move("SENDING")
        attempt.posted_at, attempt.first_sent_at = at, attempt.first_sent_at or at
        attempt.ask_at = at + self.policy.query_after
        return attempt

    def within_horizon(self, attempt: Attempt, at: datetime) -> bool:
        return attempt.first_sent_at is None or at < attempt.first_sent_at + self.policy.resend_horizon

    def record(self, attempt: Attempt, said: client.Accepted | gateway_errors.GatewayError, *, at: datetime) -> None:
        """What a POST left us knowing; whoever was faster has the last word."""
        payout, policy = attempt.payout, self.policy
        self.touched.add(payout)
        accepted = isinstance(said, client.Accepted)
        attempt.acknowledged |= accepted
        if isinstance(said, gateway_errors.OutcomeUnknown) and said.duplicate:
            self.is_known(attempt, at=at)
        sure = attempt.doubted_at is None
        if attempt.state != "SENDING":
            return
        if accepted:
            attempt.move("ACCEPTED")
            attempt.ask_at = at + policy.query_after
        elif sure and isinstance(said, gateway_errors.NotSent):
            if payout.status == "HELD":  # An earlier request was paid meanwhile.
                self.fail(attempt, code="", at=at)
                return
            attempt.move("WAITING")
            attempt.ask_at = None
            if said.reason != "throttle" and attempt.first_sent_at == attempt.posted_at:
                attempt.first_sent_at = None
            pause = max(policy.retry_after, timedelta(seconds=said.retry_after_seconds or 0), at - attempt.opened_at)
            payout.due_at = at + min(pause, LONGEST_WAIT)
            payout.move("PENDING")
        elif sure and isinstance(said, gateway_errors.Rejected):
            self.fail(attempt, code=said.code, at=at)
        else:
            self.doubt(attempt, ask_at=at + policy.query_after, at=at)

    # --- doubt -------------------------------------------------------------------------------------------------------

    def doubt(self, attempt: Attempt, *, ask_at: datetime, at: datetime) -> None:
        """We do not know, and ask at `ask_at` at the latest; nothing else of the payout may leave."""
        attempt.move("IN_DOUBT")
        attempt.doubted_at = attempt.doubted_at or at
        attempt.ask_at = min(attempt.ask_at or ask_at, ask_at)
        if attempt.payout.status == "PENDING":
            attempt.payout.move("PROCESSING")

    def ask(self, *, at: datetime, limit: int) -> list[Question]:
        """What to ask now, each written down; what is in doubt for too long is for a person as well."""
        due = [
            a for a in self._attempts() if a.ask_at is not None and a.ask_at <= at and a.state in ("FAILED", *UNDECIDED)
        ]
        questions = []
        for attempt in sorted(due, key=lambda one: one.ask_at)[:limit]:
            payout, asked = attempt.payout, len(attempt.questions)
            self.touched.add(payout)
            if attempt.state == "FAILED" and self._asked_enough(attempt, at):
                attempt.ask_at = None
                continue
            if attempt.state != "FAILED":
                attempt.move("IN_DOUBT")
                attempt.doubted_at = attempt.doubted_at or at
            attempt.ask_at = at + min(self.policy.query_gap * 2 ** min(asked, 10), LONGEST_GAP)
            attempt.questions.append(Question(attempt, at))
            questions.append(attempt.questions[-1])
            since = attempt.first_sent_at or attempt.opened_at
            if attempt.state in OPEN and payout.status == "PROCESSING" and at - since >= self.policy.review_after:
                payout.move("HELD")
        return questions

    def _asked_enough(self, attempt: Attempt, at: datetime) -> bool:
        """Of a proven failure: a claim that it was paid is asked about for a day, a retry asks once."""
        if attempt.claim in (PAID, PERHAPS):
            return at - (attempt.heard_at or attempt.closed_at or at) >= self.policy.review_after
        return any(question.asked_at >= attempt.payout.due_at for question in attempt.questions)

    # --- what comes in -----------------------------------------------------------------------------------------------

    def store(
        self, about: Attempt | Question, content: Result | Answer | None, *, trusted: bool, at: datetime
    ) -> Message | None:
        """Keep a message that came to one of our addresses; None where the very same came before, as trusted as now."""
        if isinstance(about, Attempt):
            about.heard_at = at
        self.touched.add(about.payout if isinstance(about, Attempt) else about.attempt.payout)
        if (id(about), content, trusted) in self._stored:
            return None
        self._stored.add((id(about), content, trusted))
        self.unapplied.append(Message(about, content, trusted or not self.policy.production))
        return self.unapplied[-1]

    def apply(self, message: Message, *, at: datetime) -> None:
        """Learn from one stored message, once."""
        if message.applied:
            return
        about, content = message.about, message.content
        if isinstance(content, Result):
            self.hear_result(about, content, trusted=message.trusted, at=at)
        elif isinstance(content, Answer):
            self.hear_answer(about, content, trusted=message.trusted, at=at)
        elif isinstance(about, Attempt):
            self.hear_timeout(about, at=at)
        message.applied = True
        self.unapplied.remove(message)

    def hear_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        """A result came to the request's own address: a match may prove a payment; a failure is only claimed."""
        self.touched.add(attempt.payout)
        says_paid = result.code == "0"
        if result.ocid != attempt.ocid or (says_paid and not _fits(result, attempt)):
            self._ask_about_mismatch(attempt, at)
        elif says_paid:
            whole = None not in (result.amount, result.phone, result.receipt)
            small = attempt.payout.amount < self.policy.confirm_above
            if attempt.state == "PAID" or (trusted and whole and small):
                self.pay(attempt, receipt=result.receipt or "", at=at)
            else:
                claim = PAID if trusted and whole else PERHAPS
                self.keep_claim(attempt, claim, receipt=result.receipt or "", at=at)
        elif attempt.state in ("PAID", "FAILED") or attempt.never_left:
            return
        elif result.code in DEFINITE:
            self.keep_claim(attempt, result.code, at=at)
        else:
            if trusted and result.code in DUPLICATE:
                self.is_known(attempt, at=at)
            self.doubt(attempt, ask_at=at + self.policy.query_after, at=at)

    def hear_timeout(self, attempt: Attempt, *, at: datetime) -> None:
        """A queue timeout proves nothing."""
        self.touched.add(attempt.payout)
        if attempt.state in OPEN and not attempt.never_left:
            self.doubt(attempt, ask_at=at + self.policy.query_after, at=at)

    def hear_answer(self, question: Question, answer: Answer, *, trusted: bool, at: datetime) -> None:
        """An answer came to the question's own address; a stranger's counts for a payment only, beside another."""
        attempt = question.attempt
        self.touched.add(attempt.payout)
        completed = answer.verdict == "completed"
        if answer.ocid not in (None, attempt.ocid) or (completed and not _fits(answer, attempt)):
            self._ask_about_mismatch(attempt, at)
            return
        others = any(other.said == "completed" for other in attempt.questions if other is not question)
        believed = trusted or (completed and (others or attempt.claim in (PAID, PERHAPS)))
        if question.said not in ("completed", "failed") and (completed or believed):
            question.said = answer.verdict
        if not believed:
            if attempt.state in UNDECIDED:
                self.doubt(attempt, ask_at=at + self.policy.query_gap, at=at)
        elif completed:
            self.pay(attempt, receipt=answer.receipt or attempt.receipt, at=at)
        elif attempt.state == "FAILED":
            claims_paid = attempt.claim in (PAID, PERHAPS)
            if answer.verdict == "failed" or (answer.verdict == "not_found" and not claims_paid):
                attempt.ask_at = None
        elif attempt.state != "PAID" and question.asked_at >= attempt.posted_at:
            # A question older than the latest POST says nothing of that POST.
            if answer.verdict == "failed":
                self.weigh_failure(attempt, at=at)
            elif answer.verdict == "not_found":
                self.hear_not_found(attempt, at=at)

    def hear_not_found(self, attempt: Attempt, *, at: datetime) -> None:
        """Not found never means failed: within the horizon the same id may go again, unless it claims to be paid, or
        M-Pesa has said that it has had it.
        """
        if attempt.known_at is not None or attempt.claim == PAID:
            return
        if attempt.state == "IN_DOUBT" and self.within_horizon(attempt, at):
            attempt.resend_at = at

    def is_known(self, attempt: Attempt, *, at: datetime) -> None:
        """M-Pesa has had this id: it is only asked about from now on."""
        attempt.known_at, attempt.resend_at = attempt.known_at or at, None

    def weigh_failure(self, attempt: Attempt, *, at: datetime) -> None:
        """It takes two voices: a refusal claimed by a result, or two questions a gap apart; never against a payment."""
        if attempt.claim in DEFINITE:
            self.fail(attempt, code=attempt.claim, at=at)
            return
        gap, since = self.policy.query_gap, attempt.posted_at
        voices = [one.asked_at for one in attempt.questions if one.said == "failed" and one.asked_at >= since]
        if not voices or voices[-1] - voices[0] < gap:
            self.doubt(attempt, ask_at=max(voices[0] + gap, at) if voices else at + gap, at=at)
        elif attempt.claim != PAID:
            self.fail(attempt, code="", at=at)
        elif attempt.payout.status == "PROCESSING":
            attempt.payout.move("HELD")

    def keep_claim(self, attempt: Attempt, claim: str, *, receipt: str = "", at: datetime) -> None:
        """Keep what a result claims and ask at once. That it was paid is not overruled by what comes after."""
        if attempt.claim != PAID:
            attempt.claim, attempt.receipt = claim, receipt
        if attempt.state == "FAILED":
            attempt.ask_at = at
        else:
            attempt.resend_at = None
            self.doubt(attempt, ask_at=at, at=at)

    def _ask_about_mismatch(self, attempt: Attempt, at: datetime) -> None:
        if attempt.state in UNDECIDED:
            attempt.ask_at = at

    # --- proof -------------------------------------------------------------------------------------------------------

    def pay(self, attempt: Attempt, *, receipt: str, at: datetime) -> None:
        """Proof of payment is booked whatever we thought before; a debt settled otherwise is owed back."""
        payout, ocid = attempt.payout, attempt.ocid
        self.touched.add(payout)
        if attempt.state == "PAID":
            attempt.receipt = attempt.receipt or receipt
            return
        late = attempt.state == "FAILED"
        payable, in_flight, wallet = f"payable:{payout.ref}", f"in_flight:{payout.ref}", f"wallet:{payout.member}"
        still_owed = not late or (payout.open is None and self.book.held[payable] == payout.amount)
        attempt.move("PAID")
        attempt.receipt, attempt.closed_at, attempt.ask_at, attempt.resend_at = receipt, at, None, None
        if still_owed:
            if late:
                self.book.post(f"reopen:{ocid}", payable, in_flight, payout.amount)
            self.book.post(f"won:{ocid}", in_flight, wallet, payout.amount)
            self.book.post(f"paid:{ocid}", wallet, "utility", payout.amount)
            payout.move("COMPLETED")
            return
        self.book.post(f"late:{ocid}", f"receivable:{payout.member}", "utility", payout.amount)
        other = payout.open
        if other is not None and other.never_left:
            self.fail(other, code="", at=at)
        elif payout.status in ("PENDING", "PROCESSING"):
            payout.move("HELD")

    def fail(self, attempt: Attempt, *, code: str, at: datetime) -> None:
        """Proof that a request was not executed: the debt is open again, or set off against an earlier payment."""
        payout = attempt.payout
        self.touched.add(payout)
        attempt.move("FAILED")
        attempt.claim, attempt.closed_at, attempt.ask_at, attempt.resend_at = code, at, None, None
        payable, wallet = f"payable:{payout.ref}", f"wallet:{payout.member}"
        self.book.post(f"return:{attempt.ocid}", f"in_flight:{payout.ref}", payable, payout.amount)
        if payout.status == "PENDING":
            payout.move("PROCESSING")
        paid = [one for one in payout.attempts if one.state == "PAID"]
        if paid:
            self.book.post(f"redirect:{payout.ref}", payable, wallet, payout.amount)
            self.book.post(f"setoff:{paid[-1].ocid}", wallet, f"receivable:{payout.member}", payout.amount)
            payout.move("COMPLETED")
        elif code in OURS and payout.status == "PROCESSING":
            payout.due_at = at + min(self.policy.retry_after * 2 ** min(attempt.number, 10), LONGEST_WAIT)
            payout.move("PENDING")
        else:
            payout.failed_at = at
            payout.move("FAILED")

    # --- what an operator may do -------------------------------------------------------------------------------------

    def retry(self, payout: Payout, *, at: datetime) -> None:
        """Send what failed again, once M-Pesa was asked about the last request that it had taken. Raises: Refused."""
        self._must_be_owed(payout)
        self.touched.add(payout)
        payout.due_at, payout.failed_at = at, None
        payout.move("PENDING")
        taken = [one for one in payout.attempts if one.acknowledged or one.doubted_at is not None]
        if taken:
            taken[-1].ask_at = at

    def retry_failed(self, *, since: datetime, at: datetime) -> int:
        """Retry all that failed since; how many it could."""
        retried = 0
        for payout in self.payouts:
            if payout.status == "FAILED" and payout.failed_at is not None and payout.failed_at >= since:
                try:
                    self.retry(payout, at=at)
                except Refused:
                    continue
                retried += 1
        return retried

    def redirect(self, payout: Payout, *, at: datetime) -> None:
        """Pay what failed into the wallet instead. Raises: Refused."""
        self._must_be_owed(payout)
        self.touched.add(payout)
        self.book.post(f"redirect:{payout.ref}", f"payable:{payout.ref}", f"wallet:{payout.member}", payout.amount)
        payout.redirected = True
        payout.move("COMPLETED")

    def decide(self, payout: Payout, *, receipt: str, people: int, at: datetime) -> None:
        """What the statement says of a held payout's request: its receipt, or not paid (""). Raises: Refused."""
        attempt = payout.open
        if payout.status != "HELD" or attempt is None:
            raise Refused("not held with an open request")
        if people < (2 if payout.amount >= self.policy.confirm_above else 1):
            raise Refused("too few people")
        if receipt:
            self.pay(attempt, receipt=receipt, at=at)
        else:
            self.fail(attempt, code="", at=at)

    def _must_be_owed(self, payout: Payout) -> None:
        if payout.status not in ("FAILED", "HELD") or payout.open is not None:
            raise Refused(f"{payout.status}, or a request is open")
        if any(attempt.ask_at is not None for attempt in payout.attempts):
            raise Refused("we are asking whether it was paid")
        if self.book.held[f"payable:{payout.ref}"] != payout.amount:
            raise Refused("the books do not owe it")

    # --- what a sweep would find -------------------------------------------------------------------------------------

    def next_due(self, payout: Payout) -> tuple[datetime | None, datetime | None]:
        """When there is next something of it to send, and something to ask; None where there is nothing."""
        send = payout.due_at if self.sendable(payout) else None
        ask = None
        for attempt in payout.attempts:
            if attempt.ask_at is not None and attempt.state in ASKABLE:
                ask = attempt.ask_at if ask is None else min(ask, attempt.ask_at)
            if attempt.resend_at is not None and attempt.state == "IN_DOUBT":
                send = attempt.resend_at  # Its request is open, so no other one is due.
        return send, ask

    def _attempts(self) -> Iterable[Attempt]:
        return (attempt for payout in self.payouts for attempt in payout.attempts)


def _fits(said: Result | Answer, attempt: Attempt) -> bool:
    return said.amount in (None, attempt.payout.amount) and said.phone in (None, attempt.payout.phone)
