"""Judge of the simulated world: rules about our books and M-Pesa's book."""

from collections import Counter
from collections.abc import Callable

from soak.simulation.daraja import DarajaProvider
from soak.simulation.provider import OUR_CODES, OUR_FIELDS, payout_of
from soak.simulation.snapshot import Payout, Snapshot
from testing import builders

# Parts of reasons: M-Pesa contradicts itself, a held payout's request failed for a fault of ours, or the limit of
# requests is reached.
CONTRADICTION = "M-Pesa's result says paid, its records say failed."
WAITS_FOR_RETRY = "Its request failed, and the member's number is not at fault."
LIMIT_REACHED = "requests of this payout failed."
CONFIRM_ABOVE = builders.policy().confirm_above
FINAL = ("COMPLETED", "FAILED", "HELD", "CANCELLED")


class Judge:
    """Checks the rules, and calls `accuse` with each broken rule and its evidence."""

    def __init__(self, provider: DarajaProvider, accuse: Callable[[str, str], None]) -> None:
        self.provider, self.accuse = provider, accuse

    def check(self, seen: Snapshot) -> None:
        """Check every rule that holds after each step."""
        for rule, evidence in seen.broken:
            self.accuse(rule, evidence)
        known = {attempt.ocid for attempt in seen.attempts}
        for ocid in [*self.provider.requests, *self.provider.on_the_way]:
            if ocid not in known:
                self.accuse("An attempt is committed before its request is made", f"{ocid} is not in the books")
        paid = {payment.ocid for payment in self.provider.book}
        for attempt in seen.attempts:
            if attempt.state == "PAID" and attempt.ocid not in paid:
                self.accuse("An attempt is PAID in the books only if M-Pesa paid it", attempt.ocid)
        for payout in seen.payouts:
            if payout.status == "FAILED" and _names_our_fault(payout.reason):
                self.accuse("No payout is FAILED for a fault of ours", f"{payout.ref}: {payout.reason}")
        if self.provider.answers_wrongly:
            # We believe a failure that two sources report, even if both lie. The rules below may then be broken.
            return
        self._check_payments(seen)

    def _check_payments(self, seen: Snapshot) -> None:
        payments = Counter(payout_of(payment.ocid) for payment in self.provider.book)
        for ref, times in payments.items():
            if times > 1:
                self.accuse("Nobody is paid twice", f"{ref} was paid {times} times")
        for attempt in seen.attempts:
            if attempt.state == "FAILED" and self.provider.may_still_pay(attempt.ocid):
                self.accuse("An attempt is FAILED in the books only if M-Pesa can no longer pay it", attempt.ocid)
        for payout in seen.payouts:
            if payout.status == "COMPLETED" and payout.redirected == bool(payments[payout.ref]):
                where = "and to the wallet" if payout.redirected else "but nowhere"
                self.accuse(
                    "A completed payout is paid exactly once: by M-Pesa or to the wallet",
                    f"{payout.ref} is completed {where}",
                )

    def check_end(self, seen: Snapshot, *, forged_paid: set[str], stats: Counter[str]) -> None:
        """Check that everything became final and that both books agree. Count the held payouts in `stats`."""
        if not seen.payouts:
            self.accuse("Every market settles", "nothing was settled")
        self._compare_books(seen)
        latest = {attempt.ref: attempt.ocid for attempt in seen.attempts}
        denied = {attempt.ref for attempt in seen.attempts if attempt.ocid in self.provider.false_sources}
        for payout in seen.payouts:
            ocid = latest.get(payout.ref, "")
            if CONTRADICTION in payout.reason:  # It may be about an earlier request than the latest one.
                told = (other for other in (*forged_paid, *self.provider.told) if payout_of(other) == payout.ref)
                ocid = next(told, ocid)
            if payout.status == "HELD":
                forged = ocid in forged_paid or ocid in self.provider.false_sources
                stats["held after a forgery" if forged else "held, lost for too long"] += 1
            if payout.status in FINAL and self.provider.answers_wrongly and payout.ref in denied:
                stats["payouts of a lying M-Pesa"] += 1
                self._check_contradicted(payout, ocid, forged_paid)
            else:
                self._check_final(payout, ocid, forged_paid)
        if seen.has_unsettled_market or seen.has_unapplied_callback:
            self.accuse("Everything becomes final after the faults stop", "a settlement or a callback is unfinished")

    def _compare_books(self, seen: Snapshot) -> None:
        """Compare M-Pesa's book with ours. Of a lying M-Pesa we must know each payment that one result proves."""
        ours = {(a.ocid, a.receipt) for a in seen.attempts if a.state == "PAID"}
        book = {(payment.ocid, payment.receipt) for payment in self.provider.book}
        known = {
            (payment.ocid, payment.receipt)
            for payment in self.provider.book
            if not self.provider.answers_wrongly
            or (payment.ocid in self.provider.told and payment.amount < CONFIRM_ABOVE)
        }
        for ocid, receipt in sorted((ours - book) | (known - ours)):
            self.accuse("M-Pesa's book and ours agree", f"{ocid} {receipt} is in one of the two books only")

    def _check_contradicted(self, payout: Payout, ocid: str, forged_paid: set[str]) -> None:
        """Check a final payout about which M-Pesa lied. It is HELD only if M-Pesa lost it or contradicts itself."""
        contradicts = CONTRADICTION in payout.reason and (ocid in self.provider.told or ocid in forged_paid)
        if payout.status == "HELD" and ocid in self.provider.requests and not contradicts:
            state = self.provider.requests[ocid].state
            self.accuse(
                "A payout is HELD only if we cannot know whether it was paid",
                f"{payout.ref}: {payout.reason} (M-Pesa lied about it, and knows it as {state})",
            )

    def _check_final(self, payout: Payout, ocid: str, forged_paid: set[str]) -> None:
        """Check that a payout is final, and that its final status is allowed."""
        request = self.provider.requests.get(ocid)
        if payout.status not in FINAL:
            self.accuse("Everything becomes final after the faults stop", f"{payout.ref} is {payout.status}")
        elif payout.status == "FAILED" and not (request and request.phone in self.provider.unregistered):
            self.accuse(
                "A payout stays FAILED only if the member's phone cannot be paid", f"{payout.ref}: {payout.reason}"
            )
        elif payout.status == "HELD" and (payout.reason.startswith(WAITS_FOR_RETRY) or LIMIT_REACHED in payout.reason):
            if self.provider.may_still_pay(ocid):
                self.accuse("A payout that waits for a retry is proven unpaid", f"{payout.ref}: {payout.reason}")
        elif payout.status == "HELD" and (not payout.reason or (request and ocid not in forged_paid)):
            # A payout may be HELD for two reasons: M-Pesa never got the request, or a proof of payment was forged.
            known = f"M-Pesa knows it as {request.state}" if request else "without a reason"
            self.accuse(
                "A payout is HELD only if we cannot know whether it was paid",
                f"{payout.ref}: {payout.reason} ({known})",
            )


def _names_our_fault(reason: str) -> bool:
    """Return True if the reason of a failed payout is a fault of ours: no float, credentials, or a field of ours."""
    return reason.partition(" ")[0] in ("1", *OUR_CODES) or any(field in reason for field in OUR_FIELDS)
