"""Pure payout machine: the rules of payouts written a second time, in memory.

Each method is one transaction of the real system. A transaction happens completely or not at all, so a crash can only
happen between two methods. The machine holds the same rows as PostgreSQL. It sends nothing: `claim` and `resends`
return the requests that the caller must POST, and `ask` returns the questions. `record` and `apply` learn from
responses and messages. Breakers, the canary and the daily limit are left out, because they only delay a payout. The
callback without a token is left out too. conformance.py compares the machine with the services.
Units: whole shillings.
"""

from datetime import datetime, timedelta

from soak.simulation.pure.attempts import OURS
from soak.simulation.pure.rows import OPEN, PAID, PERHAPS, UNDECIDED, Answer, Attempt, Message, Question, Result
from soak.simulation.pure.sending import Sending

# Codes of a definite failure: no money moved. Every other code proves nothing.
DEFINITE = frozenset(("1", "2", "3", "4", "8", "11", "21", "2001", "2006", "2028", "2040", "8006", "SFC_IC0003"))
DUPLICATE = frozenset(("15", "41"))
LONGEST_GAP = timedelta(hours=1)


class Machine(Sending):
    """The payout machine: it claims, records responses, asks, and applies messages."""

    # --- questions ---------------------------------------------------------------------------------------------------

    def ask(self, *, at: datetime, limit: int) -> list[Question]:
        """Record the due questions, and return them.

        A payout becomes HELD, for a person to decide, if its request is open for `review_after` since its first POST.
        """
        due = [a for a in self._attempts() if a.ask_at is not None and a.ask_at <= at and a.is_askable]
        questions = []
        for attempt in sorted(due, key=lambda attempt: attempt.ask_at or at)[:limit]:
            payout, asked = attempt.payout, sum(question.is_put for question in attempt.questions)
            self.touched.add(payout)
            if (attempt.state == "FAILED" or attempt.second) and self._asked_enough(attempt, at):
                attempt.ask_at = None
                continue
            if attempt.state in UNDECIDED:
                attempt.move("IN_DOUBT")
                attempt.doubted_at = attempt.doubted_at or at
            gap = min(self.policy.query_gap * 2 ** min(asked, 10), LONGEST_GAP)
            is_retry = attempt.state == "FAILED" and attempt.report not in (PAID, PERHAPS)
            gap = self.policy.query_after if is_retry else gap
            attempt.ask_at = at + min(gap, self.policy.query_after)
            last = attempt.questions[-1] if attempt.questions else None
            by_receipt = attempt.decision == "paid" and not (last and last.receipt)
            receipt = attempt.second or (attempt.receipt if by_receipt else "")
            attempt.questions.append(Question(attempt, len(attempt.questions) + 1, at, receipt, gap=gap))
            questions.append(attempt.questions[-1])
            since = attempt.first_sent_at or attempt.opened_at
            if attempt.state in OPEN and payout.status == "PROCESSING" and at - since >= self.policy.review_after:
                payout.move("HELD")
        return questions

    def _asked_enough(self, attempt: Attempt, at: datetime) -> bool:
        """Return True if a failed request needs no more questions.

        If a payment was reported, we ask for `review_after` from the last message. Otherwise one question is enough,
        asked after the payout's retry.
        """
        if attempt.second or attempt.report in (PAID, PERHAPS) or attempt.is_found:
            return at - (attempt.heard_at or attempt.closed_at or at) >= self.policy.review_after
        return any(question.is_put and question.asked_at >= attempt.payout.due_at for question in attempt.questions)

    def put(self, question: Question) -> None:
        """Record that a question was POSTed. If its worker dies before, the next one is due `query_after` later."""
        question.is_put = True
        if question.attempt.ask_at == question.asked_at + min(question.gap, self.policy.query_after):
            question.attempt.ask_at = question.asked_at + question.gap

    # --- messages ----------------------------------------------------------------------------------------------------

    def store(
        self, about: Attempt | Question, content: Result | Answer | None, *, trusted: bool, at: datetime
    ) -> Message | None:
        """Store a message that came to one of our addresses.

        Returns None if the same message with the same trust came before.
        """
        if isinstance(about, Attempt):
            about.heard_at = at
        self.touched.add(about.payout if isinstance(about, Attempt) else about.attempt.payout)
        if (id(about), content, trusted) in self.stored:
            return None
        self.stored.add((id(about), content, trusted))
        self.unapplied.append(Message(about, content, trusted or not self.policy.production))
        return self.unapplied[-1]

    def apply(self, message: Message, *, at: datetime) -> None:
        """Apply one stored message. Idempotent: an applied message is skipped."""
        if message.applied:
            return
        about, content = message.about, message.content
        if isinstance(about, Attempt) and isinstance(content, Result):
            self.apply_result(about, content, trusted=message.trusted, at=at)
        elif isinstance(about, Question) and isinstance(content, Answer):
            self.apply_answer(about, content, trusted=message.trusted, at=at)
        elif isinstance(about, Attempt):
            self.apply_timeout(about, at=at)
        message.applied = True
        self.unapplied.remove(message)

    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        """Apply a result that came to the request's address. It can prove a payment, but it cannot prove a failure."""
        self.touched.add(attempt.payout)
        says_paid = result.code == "0"
        if attempt.state == "REVERSED" and not (says_paid and _names_another_receipt(attempt, result.receipt)):
            return
        if result.ocid != attempt.ocid or (says_paid and not _fits(result, attempt)):
            self._ask_about_mismatch(attempt, at)
        elif says_paid:
            complete = None not in (result.amount, result.phone, result.receipt)
            believed = trusted and complete
            small = attempt.payout.amount < self.policy.confirm_above
            if attempt.state in ("PAID", "REVERSED"):
                self._apply_paid_again(attempt, result.receipt or "", trusted, believed and small, at)
            elif believed and small:
                self.pay(attempt, receipt=result.receipt or "", at=at)
            else:
                report = PAID if trusted and complete else PERHAPS
                self.keep_report(attempt, report, receipt=result.receipt or "", at=at)
        elif attempt.state == "PAID" and attempt.decision and trusted and result.code in DEFINITE:
            self.take_back(attempt, report=result.code, at=at)
        elif attempt.state in ("PAID", "FAILED") or attempt.never_left:
            return
        elif result.code in DEFINITE:
            self.keep_report(attempt, result.code, at=at)
        else:
            if trusted and result.code in DUPLICATE:
                self.mark_known(attempt, at=at)
            if result.code in OURS and attempt.report not in (PAID, PERHAPS, *DEFINITE):
                attempt.report = result.code
            self.doubt(attempt, ask_at=at + self.policy.query_after, at=at)

    def _apply_paid_again(self, attempt: Attempt, receipt: str, trusted: bool, proves: bool, at: datetime) -> None:
        """Apply a further report that a booked payment was paid.

        Another receipt is a second payment. It needs the same proof as the first one.
        """
        if attempt.decision:
            if proves:
                self.pay(attempt, receipt=receipt, at=at)
            else:
                attempt.ask_at = at
        elif proves:
            self.pay(attempt, receipt=receipt, at=at)
        elif not attempt.receipt or not _names_another_receipt(attempt, receipt):
            self.pay(attempt, receipt=receipt if trusted or attempt.receipt else "", at=at)
        elif trusted and self.needs_booking(attempt, receipt) and attempt.second.upper() in ("", receipt.upper()):
            attempt.second, attempt.ask_at = receipt, at

    def apply_timeout(self, attempt: Attempt, *, at: datetime) -> None:
        """Apply a queue timeout. It proves nothing."""
        self.touched.add(attempt.payout)
        if attempt.state in OPEN and not attempt.never_left:
            self.doubt(attempt, ask_at=at + self.policy.query_after, at=at)

    def apply_answer(self, question: Question, answer: Answer, *, trusted: bool, at: datetime) -> None:
        """Apply an answer that came to the question's address.

        An answer of an untrusted caller counts only if it reports a payment that a second source also reports.
        """
        attempt = question.attempt
        self.touched.add(attempt.payout)
        if attempt.second and question.receipt.upper() == attempt.second.upper():
            if trusted:
                self._apply_second_answer(question, answer, at)
            return
        if attempt.state == "REVERSED" and not _proves_second_payment(attempt, answer, trusted):
            question.keep(answer.verdict)
            return
        if question.receipt:
            if attempt.decision == "paid" and attempt.receipt.upper() == question.receipt.upper() and trusted:
                self._apply_receipt_answer(question, answer, at)
            return
        completed = answer.verdict == "completed"
        if trusted and completed and _paid_another_amount(answer, attempt):
            question.keep(answer.verdict)
            self.pay(attempt, receipt=answer.receipt or "", at=at, amount=answer.amount)
            return
        if answer.ocid not in (None, attempt.ocid) or (completed and not _fits(answer, attempt)):
            self._ask_about_mismatch(attempt, at)
            return
        about_id = [other for other in attempt.questions if other is not question and not other.receipt]
        second = any(other.verdict == "completed" for other in about_id) or attempt.report in (PAID, PERHAPS)
        believed = trusted or (completed and second and attempt.state != "PAID")
        if completed or believed:
            question.keep(answer.verdict)
        if not believed:
            if attempt.state in UNDECIDED:
                self.doubt(attempt, ask_at=at + self.policy.query_gap, at=at)
        elif completed:
            self.pay(attempt, receipt=answer.receipt or attempt.receipt, at=at)
        else:
            self._apply_no_payment(question, answer.verdict, at)

    def _apply_receipt_answer(self, question: Question, answer: Answer, at: datetime) -> None:
        """Apply M-Pesa's answer about the receipt that people typed. Only our own id in the answer confirms it."""
        attempt, found = question.attempt, answer.verdict in ("completed", "reversed")
        question.keep(answer.verdict)
        another = answer.ocid not in (None, attempt.ocid) or not _fits(answer, attempt)
        if answer.verdict == "failed" or (found and another):
            self.take_back(attempt, report="", at=at)
        elif found and answer.ocid == attempt.ocid:
            if answer.verdict == "completed":
                self.pay(attempt, receipt=attempt.receipt, at=at)
            else:
                self.reverse(attempt)

    def _apply_second_answer(self, question: Question, answer: Answer, at: datetime) -> None:
        """Apply M-Pesa's answer about a second receipt: it is booked, dropped, or asked about again."""
        attempt = question.attempt
        question.keep(answer.verdict)
        another = answer.ocid not in (None, attempt.ocid) or not _fits(answer, attempt)
        same = answer.receipt is None or answer.receipt.upper() == attempt.second.upper()
        if answer.verdict in ("failed", "reversed") or (answer.verdict == "completed" and another):
            attempt.second, attempt.ask_at = "", None
        elif answer.verdict == "completed" and answer.ocid == attempt.ocid and same:
            self.pay(attempt, receipt=attempt.second, at=at)

    def _apply_no_payment(self, question: Question, verdict: str, at: datetime) -> None:
        """Apply an answer that we believe and that does not report a payment."""
        attempt = question.attempt
        if verdict == "reversed":
            if attempt.state == "PAID":
                self.reverse(attempt)
            else:
                self.hold(attempt.payout)
        elif attempt.state == "PAID" and attempt.decision and verdict == "failed":
            if question.asked_at >= attempt.posted_at:
                self.take_back(attempt, report="", at=at)
        elif attempt.state == "FAILED":
            reported_paid = attempt.report in (PAID, PERHAPS)
            if verdict == "failed" and attempt.report == PAID and not attempt.is_found:
                self._weigh_contradiction(attempt)
            elif not attempt.is_found and (verdict == "failed" or (verdict == "not_found" and not reported_paid)):
                attempt.ask_at = None
        elif attempt.state != "PAID" and question.asked_at >= attempt.posted_at:
            # The answer to a question that is older than the latest POST says nothing about that POST.
            if verdict == "failed":
                self.weigh_failure(attempt, at=at)
            elif verdict == "not_found":
                self.apply_not_found(attempt, at=at)

    def _weigh_contradiction(self, attempt: Attempt) -> None:
        """Hold the payout of a failed request if a result says paid and an answer says failed. We ask further."""
        if attempt.payout.status in ("COMPLETED", "CANCELLED"):
            attempt.ask_at = None
        elif attempt.ask_at is not None:
            self.hold(attempt.payout)

    def apply_not_found(self, attempt: Attempt, *, at: datetime) -> None:
        """Allow the same id to be sent again within `resend_horizon`.

        The id is kept because the answer "not found" does not prove a failure. The id is not sent again if the kept
        report is PAID, or if M-Pesa has said that it knows the id.
        """
        if attempt.known_at is not None or attempt.report == PAID:
            return
        if attempt.state == "IN_DOUBT" and self.within_horizon(attempt, at):
            attempt.resend_at = at

    def weigh_failure(self, attempt: Attempt, *, at: datetime) -> None:
        """Mark a request as failed if two sources report the failure.

        The sources are a result and this answer, or two answers to questions that are at least `query_gap` apart. If
        the kept report is PAID, two answers do not overrule it: the payout becomes HELD.
        """
        if attempt.report in DEFINITE:
            self.fail(attempt, code=attempt.report, at=at)
            return
        gap, since = self.policy.query_gap, attempt.posted_at
        failed = [q for q in attempt.questions if q.verdict == "failed" and not q.receipt]
        asked = [q.asked_at for q in failed if q.asked_at >= since]
        if not asked or asked[-1] - asked[0] < gap:
            self.doubt(attempt, ask_at=max(asked[0] + gap, at) if asked else at + gap, at=at)
        elif attempt.report != PAID:
            self.fail(attempt, code=attempt.report if attempt.report in OURS else "", at=at)
        elif attempt.payout.status == "PROCESSING":
            attempt.payout.move("HELD")

    def keep_report(self, attempt: Attempt, report: str, *, receipt: str = "", at: datetime) -> None:
        """Keep the report of a result, and ask about it at once. Later reports do not replace PAID."""
        if attempt.report != PAID:
            attempt.report, attempt.receipt = report, receipt
        if attempt.state == "FAILED":
            attempt.ask_at = at
        else:
            attempt.resend_at = None
            self.doubt(attempt, ask_at=at, at=at)

    def _ask_about_mismatch(self, attempt: Attempt, at: datetime) -> None:
        if attempt.state in UNDECIDED:
            attempt.ask_at = at


def _paid_another_amount(answer: Answer, attempt: Attempt) -> bool:
    """Return True if M-Pesa had this id before we sent it, and paid another amount under it."""
    return (
        (attempt.known_at is not None or attempt.asked_first)
        and attempt.state != "PAID"
        and answer.ocid == attempt.ocid
        and answer.amount not in (None, attempt.payout.amount)
        and answer.phone == attempt.payout.phone
        and answer.receipt is not None
    )


def _fits(report: Result | Answer, attempt: Attempt) -> bool:
    return report.amount in (None, attempt.payout.amount) and report.phone in (None, attempt.payout.phone)


def _names_another_receipt(attempt: Attempt, receipt: str | None) -> bool:
    return bool(attempt.receipt and receipt) and (receipt or "").upper() != attempt.receipt.upper()


def _proves_second_payment(attempt: Attempt, answer: Answer, trusted: bool) -> bool:
    """Return True if M-Pesa also paid, with another receipt, a request whose payment it reversed."""
    other = _names_another_receipt(attempt, answer.receipt)
    return trusted and answer.verdict == "completed" and answer.ocid == attempt.ocid and other
