"""What must hold of the pure machine's payouts after every step, by the book and by M-Pesa's own; and at the end."""

from collections import Counter
from collections.abc import Callable

from soak.simulation.machine import Machine
from soak.simulation.provider import Provider, payout_of
from soak.simulation.rows import OPEN, Payout


class Judge:
    """Accuses what breaks a rule: (rule, what). `proven` are the ids of which proof of payment reached us."""

    def __init__(self, machine: Machine, provider: Provider, accuse: Callable[[str, str], None]) -> None:
        self.machine, self.provider, self.accuse = machine, provider, accuse
        self.proven: set[str] = set()
        self._booked: Counter[str] = Counter()
        self._read = 0

    def payout(self, payout: Payout) -> None:
        """The books' own rules of one payout, and what M-Pesa's book says of it."""
        held, ref, status = self.machine.book.held, payout.ref, payout.status
        open_ones = [attempt for attempt in payout.attempts if attempt.state in OPEN]
        paid = [attempt for attempt in payout.attempts if attempt.state == "PAID"]
        unfinished = status not in ("COMPLETED", "CANCELLED")
        if len(open_ones) > 1:
            self.accuse("At most one request of a payout is open", ref)
        if any(attempt.state in OPEN for attempt in payout.attempts[:-1]):
            self.accuse("A new id only after a proven failure", ref)
        if held[f"in_flight:{ref}"] != payout.amount * len(open_ones):
            self.accuse("In flight is what has an open request", f"{ref}: {held[f'in_flight:{ref}']}")
        if held[f"payable:{ref}"] != (payout.amount if unfinished and not open_ones else 0):
            self.accuse("Payable is what is unfinished without one", f"{ref}: {held[f'payable:{ref}']}")
        if held[f"wallet:{payout.member}"] < 0:
            self.accuse("A wallet is never below zero", payout.member)
        waits = bool(open_ones) and open_ones[0].state == "WAITING"
        if open_ones and (status not in ("PROCESSING", "HELD") and not (status == "PENDING" and waits)):
            self.accuse("What has an open request is neither sendable nor final", f"{ref} is {status}")
        if status == "PROCESSING" and not open_ones:
            self.accuse("What is being paid has an open request", ref)
        if status == "COMPLETED" and not (paid or payout.redirected):
            self.accuse("What is completed was paid or went to the wallet", ref)
        self._by_statement(payout)

    def _by_statement(self, payout: Payout) -> None:
        provider, ref = self.provider, payout.ref
        while self._read < len(provider.book):
            self._booked[payout_of(provider.book[self._read].ocid)] += 1
            self._read += 1
        for attempt in payout.attempts:
            request = provider.requests.get(attempt.ocid)
            if attempt.state == "PAID" and (request is None or request.state != "paid"):
                self.accuse("What the books call paid is paid", attempt.ocid)
            if attempt.state == "FAILED" and not provider.lies_at_will and provider.may_still_pay(attempt.ocid):
                self.accuse("What the books call failed is not paid and cannot be any more", attempt.ocid)
        if provider.lies_at_will:
            return  # Two voices that wrongly agree on a failure are believed; what is left to judge is what follows.
        booked = self._booked[ref]
        if booked > 1:
            self.accuse("Nobody is paid twice", f"{ref} was paid {booked} times")
        if payout.status == "COMPLETED" and payout.redirected == bool(booked):
            where = "and to the wallet" if booked else "but nowhere"
            self.accuse("A completed payout is paid in one place", f"{ref} is completed {where}")

    def the_end(self) -> None:
        """That nothing is left over, and M-Pesa's book is ours."""
        machine, provider = self.machine, self.provider
        ours = {(a.ocid, a.receipt) for payout in machine.payouts for a in payout.attempts if a.state == "PAID"}
        theirs = {
            (payment.ocid, payment.receipt)
            for payment in provider.book
            if payment.ocid in self.proven or not provider.lies_at_will
        }
        if provider.lies_at_will:
            ours &= theirs
        for ocid, receipt in sorted(ours ^ theirs):
            self.accuse("M-Pesa's book is ours", f"{ocid} {receipt} is in one only")
        for payout in machine.payouts:
            self.payout(payout)
            if payout.status != "COMPLETED":
                self.accuse("Everything becomes final once the faults stop", f"{payout.ref} is {payout.status}")
        if machine.unapplied:
            self.accuse("Everything becomes final once the faults stop", "a callback is left over")
