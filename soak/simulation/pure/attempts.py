"""Attempts of the pure payout machine: changes of state, with their transfers.

Units: whole shillings.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from payments.policy import Policy
from soak.simulation.pure.rows import PAID, PERHAPS, Answer, Attempt, Book, Message, Orphan, Payout, Result

# Codes of failures with a cause on our side. Once the failure is proven, the payout is sent again without a person.
OURS = frozenset(("1", "11", "21", "2001", "2006", "2028", "8006", "TP40153"))
# The member's limit of the day at M-Pesa. The payout is sent again on the next day.
DAY_LIMIT = "4"
LARGEST_NUMBER = 999
# After a loss, so many ids beyond the next one are asked about too.
NUMBERS_BEYOND = 2
NAIROBI = ZoneInfo("Africa/Nairobi")


def next_day(at: datetime) -> datetime:
    """Return five minutes after the next midnight in Nairobi."""
    midnight = at.astimezone(NAIROBI).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=1, minutes=5)


class Refused(Exception):
    """An operator asked for an action that could pay twice, or that is not allowed. No money moved."""


class Attempts:
    """Payouts, requests, questions about requests, stored messages, and the ledger.

    `touched` are the payouts that may have changed since this set was last emptied.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.payouts: list[Payout] = []
        self.book = Book()
        self.unapplied: list[Message] = []
        self.orphans: dict[str, Orphan] = {}
        # The last moment that survived a loss of commits, and the payouts that left since then.
        self.survived_at: datetime | None = None
        self.asked_first: set[str] = set()
        self.touched: set[Payout] = set()
        self.paid_late: dict[str, int] = {}
        self.stored: set[tuple[int, Result | Answer | None, bool]] = set()

    def owe(self, ref: str, *, member: str, phone: str, amount: int, at: datetime) -> Payout:
        """Create a payout of a settlement, due at once."""
        payout = Payout(ref, member, phone, amount, due_at=at)
        self.payouts.append(payout)
        self.book.post(f"payout:{ref}", "pool", f"payable:{ref}", amount)
        self.touched.add(payout)
        return payout

    def new_attempt(self, payout: Payout, at: datetime) -> Attempt:
        """Open a request under a new id, and book its amount from payable to in flight."""
        number = max((attempt.number for attempt in payout.attempts), default=0) + 1
        ocid = f"{payout.ref}-{number}"
        attempt = Attempt(payout, number, ocid, at, at, at, ask_at=at + self.policy.query_after)
        payout.attempts.append(attempt)
        self.book.post(f"send:{ocid}", f"payable:{payout.ref}", f"in_flight:{payout.ref}", payout.amount)
        return attempt

    def ask_first(self, payout: Payout, survived_at: datetime, at: datetime) -> None:
        """Ask about a payout's next request before it leaves, because it may have left before commits were lost.

        The request counts as POSTed at the last moment that survived. "Not found" sends it within the horizon.
        """
        attempt = payout.open or self.new_attempt(payout, at)
        attempt.first_sent_at, attempt.asked_first = attempt.first_sent_at or survived_at, True
        if attempt.state == "SENDING":
            attempt.posted_at = attempt.first_sent_at = survived_at
        self.doubt(attempt, ask_at=at, at=at)
        self.seek_later(attempt, at)

    def seek_later(self, attempt: Attempt, at: datetime) -> None:
        """Ask about the next ids of a payout too.

        M-Pesa keeps no request that it refuses at once. If such a request and its retry are lost, the first id is not
        found, although a next one was paid.
        """
        for number in range(attempt.number + 1, attempt.number + NUMBERS_BEYOND + 1):
            ocid = f"{attempt.payout.ref}-{number}"
            orphan = self.orphans.setdefault(ocid, Orphan(ocid, attempt.payout.ref, at, at, state="SOUGHT"))
            if orphan.state in ("SOUGHT", "ABSENT", "NOT_PAID"):
                orphan.state, orphan.sought_at, orphan.ask_at = "SOUGHT", at, at

    def seek_after_loss(self, at: datetime) -> None:
        """Ask about the next ids of each payout that had a request before the loss and is not paid."""
        for payout in self.payouts:
            if payout.attempts and payout.status in ("PENDING", "PROCESSING", "HELD", "FAILED"):
                self.seek_later(payout.attempts[-1], at)

    def later_ruled_out(self, payout: Payout) -> bool:
        """Return True if M-Pesa has no request of the payout that is not in the books."""
        states = ("WAITING", "SUSPENSE", "SOUGHT")
        return not any(orphan.ref == payout.ref and orphan.state in states for orphan in self.orphans.values())

    def open_found(self, payout: Payout, orphan: Orphan, at: datetime) -> Attempt:
        """Open the request of an orphan, and ask about it at once. M-Pesa has the id, so it is never sent again.

        The request is in doubt if the payout is owed and none of its requests is open. Otherwise it begins FAILED.
        An earlier open request is proven failed, because another number followed it.
        """
        number = int(orphan.ocid.rpartition("-")[2])
        other = payout.open
        if other is not None and other.number < number and other.report not in (PAID, PERHAPS):
            self.fail(other, code="", at=at)
        attempt = Attempt(payout, number, orphan.ocid, at, orphan.first_seen_at, orphan.first_seen_at, ask_at=at)
        attempt.is_found, attempt.known_at, attempt.heard_at = True, at, at
        payable = f"payable:{payout.ref}"
        if payout.open is None and self.book.held[payable] == payout.amount:
            attempt.state, attempt.doubted_at = "IN_DOUBT", at
            self.book.post(f"send:{attempt.ocid}", payable, f"in_flight:{payout.ref}", payout.amount)
            if payout.status == "FAILED":
                payout.move("PENDING")
            if payout.status == "PENDING":
                payout.move("PROCESSING")
        else:
            attempt.state, attempt.closed_at = "FAILED", at
            if payout.status in ("PENDING", "PROCESSING"):
                payout.move("HELD")
        payout.attempts.append(attempt)
        payout.attempts.sort(key=lambda attempt: attempt.number)
        return attempt

    def post_again(self, attempt: Attempt, at: datetime) -> Attempt:
        """Mark a request as SENDING, so that the caller POSTs the same id again."""
        attempt.move("SENDING")
        attempt.posted_at, attempt.first_sent_at = at, attempt.first_sent_at or at
        attempt.ask_at = at + self.policy.query_after
        return attempt

    def within_horizon(self, attempt: Attempt, at: datetime) -> bool:
        """Return True if the id may still be POSTed again."""
        return attempt.first_sent_at is None or at < attempt.first_sent_at + self.policy.resend_horizon

    def doubt(self, attempt: Attempt, *, ask_at: datetime, at: datetime) -> None:
        """Mark a request as in doubt, and ask about it at `ask_at` at the latest. No other request may be sent."""
        attempt.move("IN_DOUBT")
        attempt.doubted_at = attempt.doubted_at or at
        attempt.ask_at = min(attempt.ask_at or ask_at, ask_at)
        if attempt.payout.status == "PENDING":
            attempt.payout.move("PROCESSING")

    def mark_known(self, attempt: Attempt, *, at: datetime) -> None:
        """Record that M-Pesa knows this id. From now on we only ask about it and do not send it again."""
        attempt.known_at, attempt.resend_at = attempt.known_at or at, None

    def pay(self, attempt: Attempt, *, receipt: str, at: datetime, amount: int | None = None) -> None:
        """Book a proof of payment, even if the request was believed to have failed.

        If we no longer owe the payout, the payment becomes a receivable from the member. `amount` is what M-Pesa paid,
        if it is another amount. A shortfall goes to the wallet, and an excess becomes a receivable.
        """
        payout, ocid = attempt.payout, attempt.ocid
        self.touched.add(payout)
        if attempt.state in ("PAID", "REVERSED"):
            self._pay_again(attempt, receipt)
            return
        source, orphan = "utility", self.orphans.get(ocid)
        if attempt.is_found and orphan is not None and f"foreign:{orphan.receipt}" in self.book.keys:
            source, receipt, amount = "suspense", orphan.receipt, orphan.amount
        late = attempt.state == "FAILED"
        payable, in_flight, wallet = f"payable:{payout.ref}", f"in_flight:{payout.ref}", f"wallet:{payout.member}"
        still_owed = not late or (payout.open is None and self.book.held[payable] == payout.amount)
        attempt.move("PAID")
        attempt.receipt, attempt.closed_at, attempt.ask_at, attempt.resend_at = receipt, at, None, None
        attempt.decision = ""
        attempt.paid_amount = None if amount == payout.amount else amount
        paid, receivable = amount or payout.amount, f"receivable:{payout.member}"
        if still_owed:
            if late:
                self.book.post(f"reopen:{attempt.booking}", payable, in_flight, payout.amount)
            part = min(paid, payout.amount)
            if source == "suspense":
                self.book.post(f"claimed:{receipt}", in_flight, source, part)
            else:
                self.book.post(f"won:{attempt.booking}", in_flight, wallet, part)
                self.book.post(f"paid:{attempt.booking}", wallet, source, part)
            if paid < payout.amount:
                self.book.post(f"short:{ocid}", in_flight, wallet, payout.amount - paid)
            elif paid > payout.amount:
                self.book.post(f"excess:{ocid}", receivable, source, paid - payout.amount)
            payout.move("COMPLETED")
            return
        self.book.post(f"late:{ocid}", receivable, source, paid)
        self.paid_late[ocid] = paid
        other = payout.open
        if other is not None and other.never_left:
            self.fail(other, code="", at=at)
        elif payout.status in ("PENDING", "PROCESSING"):
            payout.move("HELD")

    def _pay_again(self, attempt: Attempt, receipt: str) -> None:
        """Weigh a further proof of payment. It confirms people's decision, or it is a second payment under one id."""
        other = bool(receipt) and receipt.upper() != attempt.receipt.upper()
        if other and attempt.receipt and attempt.decision != "paid":
            if receipt.upper() == attempt.second.upper():
                attempt.second, attempt.ask_at = "", None
            if self.needs_booking(attempt, receipt):
                owes = f"receivable:{attempt.payout.member}"
                self.book.post(f"second:{receipt.upper()}", owes, "utility", attempt.payout.amount)
            return
        if attempt.decision == "paid":
            attempt.decision, attempt.ask_at = "", None
        if other:
            attempt.receipt = receipt

    def needs_booking(self, attempt: Attempt, receipt: str) -> bool:
        """Return True if a second receipt is neither booked nor another request's."""
        return f"second:{receipt.upper()}" not in self.book.keys and not self.receipt_taken(receipt, by=attempt)

    def receipt_taken(self, receipt: str, *, by: Attempt) -> bool:
        """Return True if another request than `by` has this receipt."""
        return any(a is not by and a.receipt.upper() == receipt.upper() for a in self._attempts())

    def take_back(self, attempt: Attempt, *, report: str, at: datetime) -> None:
        """Take back a payment that people decided, because M-Pesa contradicts it. The request is in doubt again."""
        payout = attempt.payout
        wallet, in_flight = f"wallet:{payout.member}", f"in_flight:{payout.ref}"
        self.book.post(f"reverse:won:{attempt.booking}", wallet, in_flight, payout.amount)
        self.book.post(f"reverse:paid:{attempt.booking}", "utility", wallet, payout.amount)
        attempt.move("IN_DOUBT")
        attempt.doubted_at = attempt.doubted_at or at
        attempt.decision, attempt.receipt, attempt.report, attempt.closed_at = "", "", report, None
        attempt.corrections += 1
        attempt.ask_at, attempt.resend_at = at, None
        payout.move("HELD")

    def reverse(self, attempt: Attempt) -> None:
        """Book that M-Pesa took a payment back, so that we owe it again. A person decides how it goes on.

        A late payment was the member's debt. Its debt ends, and what the member has paid back goes to the wallet.
        """
        payout = attempt.payout
        if f"late:{attempt.ocid}" in self.book.keys:
            amount, receivable = self.paid_late[attempt.ocid], f"receivable:{payout.member}"
            owed = min(amount, -self.book.held[receivable])
            for key, account, part in (("", receivable, owed), (":wallet", f"wallet:{payout.member}", amount - owed)):
                if part:
                    self.book.post(f"regained:{attempt.ocid}{key}", "utility", account, part)
            attempt.move("REVERSED")
            attempt.decision, attempt.ask_at = "", attempt.ask_at if attempt.second else None
        if payout.status == "COMPLETED" and f"paid:{attempt.booking}" in self.book.keys:
            self.book.post(f"returned:{attempt.ocid}", "utility", f"payable:{payout.ref}", payout.amount)
            attempt.move("REVERSED")
            attempt.decision, attempt.ask_at = "", attempt.ask_at if attempt.second else None
            payout.move("HELD")

    def fail(self, attempt: Attempt, *, code: str, at: datetime, ours: bool = False) -> None:
        """Book a proof that a request was not executed. Its amount returns from in-flight to payable.

        A held payout stays HELD if the failure is a fault of `ours`, or the member's limit of the day.
        If an earlier request of the payout was paid, the amount is set off against the member's receivable.
        """
        payout = attempt.payout
        self.touched.add(payout)
        attempt.move("FAILED")
        attempt.report, attempt.closed_at, attempt.ask_at, attempt.resend_at = code, at, None, None
        payable, wallet = f"payable:{payout.ref}", f"wallet:{payout.member}"
        self.book.post(f"return:{attempt.booking}", f"in_flight:{payout.ref}", payable, payout.amount)
        if payout.status == "PENDING":
            payout.move("PROCESSING")
        paid = [attempt for attempt in payout.attempts if attempt.state == "PAID"]
        if paid:
            self.book.post(f"redirect:{payout.ref}", payable, wallet, payout.amount)
            self.book.post(f"setoff:{paid[-1].ocid}", wallet, f"receivable:{payout.member}", payout.amount)
            payout.move("COMPLETED")
        elif payout.status == "PROCESSING" and self.too_many(payout, attempt):
            payout.move("HELD")
        elif code == DAY_LIMIT and payout.status == "PROCESSING":
            payout.due_at = next_day(at)
            payout.move("PENDING")
        elif code in OURS and payout.status == "PROCESSING":
            wait = self.policy.retry_after * 2 ** min(attempt.number, 10)
            payout.due_at = at + min(wait, self.policy.breaker_longest_pause)
            payout.move("PENDING")
        elif not (payout.status == "HELD" and (ours or code in OURS or code == DAY_LIMIT)):
            payout.failed_at = at
            payout.move("FAILED")

    def too_many(self, payout: Payout, attempt: Attempt) -> bool:
        """Return True if too many requests of the payout failed, so that a person must look at it."""
        failed = [
            other
            for other in payout.attempts
            if other.state == "FAILED" and other.first_sent_at is not None and other.report not in OURS
        ]
        return len(failed) >= self.policy.max_attempts or attempt.number >= LARGEST_NUMBER

    def hold(self, payout: Payout) -> None:
        """Hold a payout that is pending, under way or failed, until a person acts on it."""
        if payout.status == "FAILED":
            payout.failed_at = None
            payout.move("PENDING")
        if payout.status in ("PENDING", "PROCESSING"):
            payout.move("HELD")

    def must_ask_first(self, payout: Payout) -> bool:
        """Return True if a request of the payout may have left before commits were lost, and none left since."""
        return self.survived_at is not None and payout.ref not in self.asked_first

    def check_owed(self, payout: Payout) -> None:
        """Check that an operator may act on a payout: we owe it, and none of its requests may still pay.

        Raises: Refused.
        """
        if payout.status not in ("FAILED", "HELD") or payout.open is not None:
            raise Refused(f"{payout.status}, or a request is open")
        if any(attempt.ask_at is not None for attempt in payout.attempts):
            raise Refused("we are asking whether it was paid")
        if self.book.held[f"payable:{payout.ref}"] != payout.amount:
            raise Refused("the books do not owe it")

    def _attempts(self) -> Iterable[Attempt]:
        return (attempt for payout in self.payouts for attempt in payout.attempts)
