"""Judge of the pure world: rules about our book and M-Pesa's book."""

from collections import Counter
from collections.abc import Callable

from soak.simulation.provider import OUR_CODES, payout_of
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.provider import PureProvider
from soak.simulation.pure.rows import OPEN, Payout


class Judge:
    """Checks the rules, and calls `accuse` with each broken rule and its evidence."""

    def __init__(self, machine: Machine, provider: PureProvider, accuse: Callable[[str, str], None]) -> None:
        self.machine, self.provider, self.accuse = machine, provider, accuse
        self._payments: Counter[str] = Counter()
        self._read = 0

    def check(self, payout: Payout) -> None:
        """Check one payout against the rules about our book and M-Pesa's book."""
        open_attempts = [attempt for attempt in payout.attempts if attempt.state in OPEN]
        if len(open_attempts) > 1:
            self.accuse("At most one request of a payout is open", payout.ref)
        sent = [attempt for attempt in payout.attempts if not attempt.is_found]
        if any(attempt.state in OPEN for attempt in sent[:-1]):
            self.accuse("A new id only after a proven failure", payout.ref)
        self._check_balances(payout, len(open_attempts))
        self._check_status(payout)
        self._check_statement(payout)

    def _check_balances(self, payout: Payout, open_count: int) -> None:
        held, ref = self.machine.book.held, payout.ref
        unfinished = payout.status not in ("COMPLETED", "CANCELLED")
        if held[f"in_flight:{ref}"] != payout.amount * open_count:
            self.accuse("The money in flight equals the open requests", f"{ref}: {held[f'in_flight:{ref}']}")
        if held[f"payable:{ref}"] != (payout.amount if unfinished and not open_count else 0):
            evidence = f"{ref}: {held[f'payable:{ref}']}"
            self.accuse("The payable money equals the unfinished payouts without an open request", evidence)
        if held[f"wallet:{payout.member}"] < 0:
            self.accuse("A wallet is never below zero", payout.member)

    def _check_status(self, payout: Payout) -> None:
        status, attempt = payout.status, payout.open
        waits = attempt is not None and attempt.state == "WAITING"
        if attempt is not None and status not in ("PROCESSING", "HELD") and not (status == "PENDING" and waits):
            evidence = f"{payout.ref} is {status}"
            self.accuse("A payout with an open request is neither sendable nor final", evidence)
        if status == "PROCESSING" and attempt is None:
            self.accuse("A payout in PROCESSING has an open request", payout.ref)
        paid = any(attempt.state == "PAID" for attempt in payout.attempts)
        if status == "FAILED" and payout.attempts and payout.attempts[-1].report in ("1", *OUR_CODES):
            self.accuse("No payout is FAILED for a fault of ours", f"{payout.ref}: {payout.attempts[-1].report}")
        if status == "COMPLETED" and not (paid or payout.redirected):
            self.accuse("A completed payout was paid or went to the wallet", payout.ref)

    def _check_statement(self, payout: Payout) -> None:
        provider, ref = self.provider, payout.ref
        while self._read < len(provider.book):
            self._payments[payout_of(provider.book[self._read].ocid).partition("x")[0]] += 1
            self._read += 1
        for attempt in payout.attempts:
            request = provider.requests.get(attempt.ocid)
            # A person may decide wrongly. M-Pesa is asked about it, and must then confirm or contradict the decision.
            unconfirmed = attempt.decision == "paid"
            if attempt.state == "PAID" and not unconfirmed and (request is None or request.state != "paid"):
                self.accuse("An attempt is PAID in the books only if M-Pesa paid it", attempt.ocid)
            # A request that was found beside another open request begins FAILED, and is asked about.
            proven = attempt.state == "FAILED" and not (attempt.is_found and attempt.ask_at is not None)
            if proven and not provider.answers_wrongly and provider.may_still_pay(attempt.ocid):
                self.accuse("An attempt is FAILED in the books only if M-Pesa can no longer pay it", attempt.ocid)
        if provider.answers_wrongly:
            # We believe a failure that two sources report, even if both lie. The rules below may then be broken.
            return
        times = self._payments[ref.partition("x")[0]]
        if times > 1:
            self.accuse("Nobody is paid twice", f"{ref} was paid {times} times")
        unconfirmed = any(attempt.decision == "paid" for attempt in payout.attempts)
        if payout.status == "COMPLETED" and not unconfirmed and payout.redirected == bool(times):
            where = "and to the wallet" if times else "but nowhere"
            self.accuse(
                "A completed payout is paid exactly once: by M-Pesa or to the wallet", f"{ref} is completed {where}"
            )

    def check_end(self) -> None:
        """Check that everything is final, and that M-Pesa's book and our book agree."""
        machine, provider = self.machine, self.provider
        ours = {(a.ocid, a.receipt) for payout in machine.payouts for a in payout.attempts if a.state == "PAID"}
        ours |= {(orphan.ocid, orphan.receipt) for orphan in machine.orphans.values() if orphan.state == "SUSPENSE"}
        book = {(payment.ocid, payment.receipt) for payment in provider.book}
        known = {
            (payment.ocid, payment.receipt)
            for payment in provider.book
            if not provider.answers_wrongly
            or (payment.ocid in provider.told and payment.amount < machine.policy.confirm_above)
        }
        for ocid, receipt in sorted((ours - book) | (known - ours)):
            self.accuse("M-Pesa's book and ours agree", f"{ocid} {receipt} is in one of the two books only")
        second = {key.partition(":")[2] for key in machine.book.keys if key.startswith("second:")}
        for receipt in sorted(second - {payment.receipt for payment in provider.book}):
            self.accuse("A second payment is booked only if M-Pesa made it", receipt)
        for payout in machine.payouts:
            self.check(payout)
            if payout.status != "COMPLETED":
                self.accuse("Everything becomes final after the faults stop", f"{payout.ref} is {payout.status}")
        if machine.unapplied:
            self.accuse("Everything becomes final after the faults stop", "a callback is unfinished")
