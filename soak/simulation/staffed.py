"""Simulated world with people who hold, release and re-issue payouts, and an M-Pesa that pays an id a second time.

It is the world of `world`, with more people and more rules. Its draws have a random source of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from django.db.models import Sum

from payments.ledger import journal
from payments.models import Attempt, Callback, Transaction, Transfer
from payments.mpesa import result_codes
from payments.payouts.operations import actions, decisions, reissue
from soak.simulation import world
from soak.simulation.daraja import result_body
from soak.simulation.people import CONFIRM_ABOVE
from soak.simulation.provider import payout_of
from soak.simulation.seed_result import SeedResult
from soak.simulation.snapshot import Payout
from soak.simulation.world import Plant, World
from users.audit import MACHINE, Actor
from users.models import CustomUser
from users.refusal import Refusal

MAX_ATTEMPTS = 3
MOST_SECONDS = 3  # Payments that M-Pesa makes a second time, in one seed.
UNREGISTERED_SHARE = 0.4


class StaffedWorld(World):
    """The simulated world, with a staff of two people and the judge's rules about their acts."""

    def __init__(self, seed: int, *, fixed_rates: Mapping[str, float], keep_trace: bool) -> None:
        super().__init__(seed, fixed_rates={"forger": 0.0} | dict(fixed_rates), keep_trace=keep_trace)
        self.policy = replace(self.policy, max_attempts=MAX_ATTEMPTS)
        self.provider.answers_wrongly = False
        self._draw = Random(f"staff {seed}")
        # By payout: the number of its requests when a person held it, and the number to which two people re-issued it.
        self._held: dict[int, int] = {}
        self._reissued: dict[str, str] = {}
        self._read = 0
        self._seconds: dict[str, int] = {}

    def begin(self) -> None:
        super().begin()
        self._staff = [
            Actor(CustomUser.objects.create(phone_number=f"25470000001{n}", password="!", is_staff=True).pk, "desk")
            for n in (1, 2)
        ]
        members = CustomUser.objects.filter(is_staff=False).order_by("phone_number")
        self.provider.unregistered.update(m.phone_number for m in members if self._draw.random() < UNREGISTERED_SHARE)
        self.schedule(5, "staff", self._act)

    def _act(self) -> None:
        """Do one act of the staff, and schedule the next one. After the faults stop, only `final_pass` acts."""
        if self.provider.faults_stopped:
            return
        self.schedule(self._draw.uniform(3, 40), "staff", self._act)
        act: Callable[[], None] = self._draw.choice(
            [self._hold, self._hold, self._press_on, self._press_on, self._release, self._retry, self._retry,
             self._reissue, self._pay_second]
        )  # fmt: skip
        act()

    def _of(self, *statuses: str) -> list[Payout]:
        return [payout for payout in self.snapshot.payouts if payout.status in statuses]

    def _requests_of(self, payout: Payout) -> int:
        return sum(attempt.ref == payout.ref for attempt in self.snapshot.attempts)

    def _try(self, words: str, act: Callable[[], Any]) -> bool:
        self.state_changed = True
        try:
            act()
        except Refusal as refusal:
            self.note(f"    {words}: {type(refusal).__name__}")
            return False
        self.note(f"    {words}")
        return True

    # --- acts --------------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        if not (pending := self._of("PENDING")):
            return
        payout = self._draw.choice(pending)
        hold = partial(actions.hold, transaction_id=payout.id, reason="A question.", by=self._staff[0], at=self.now)
        if self._try(f"hold {payout.ref}", hold):
            self._held[payout.id] = self._requests_of(payout)

    def _press_on(self) -> None:
        """Try a road for a payout that a person holds: a retry, or the wallet."""
        held = [payout for payout in self.snapshot.payouts if payout.id in self._held]
        if not held:
            return
        payout = self._draw.choice(held)
        asked: dict[str, Any] = {"transaction_id": payout.id, "by": self._staff[1], "at": self.now}
        if self._draw.random() < 0.5:
            self._try(f"retry of a held payout {payout.ref}", lambda: actions.retry(**asked))
        else:
            self._try(f"to the wallet: a held payout {payout.ref}", lambda: actions.redirect_to_wallet(**asked))

    def _release(self, *, every: bool = False) -> None:
        """Release one held payout, or all. A release is refused while M-Pesa is asked about an earlier request."""
        held = [payout for payout in self.snapshot.payouts if payout.id in self._held]
        for payout in held if every else held[:1]:
            release = partial(actions.release, transaction_id=payout.id, by=self._staff[0], at=self.now)
            if payout.status != "HELD" or self._try(f"release {payout.ref}", release):
                del self._held[payout.id]

    def stop_faults(self) -> None:
        super().stop_faults()
        for minutes in (0, 1, 5, 20, 60, *range(120, 48 * 60, 120)):
            self.schedule(60 * minutes, "staff releases the held payouts", partial(self._release, every=True))

    def is_quiet(self) -> bool:
        return not self._held and super().is_quiet()

    def _retry(self) -> None:
        for payout in self._of("FAILED"):
            retry = partial(actions.retry, transaction_id=payout.id, by=MACHINE, at=self.now)
            self._try(f"retry {payout.ref}", retry)

    def _reissue(self) -> None:
        """Re-issue each failed payout to the member's new number, by two people."""
        for payout in self._unpayable():
            member = CustomUser.objects.get(transactions=payout.id)
            if member.phone_number in self.provider.unregistered:
                member.phone_number = f"25479{member.pk % 10_000_000:07d}"
                member.save(update_fields=["phone_number"])
            self._try(f"re-issue {payout.ref}", partial(self._reissue_by_two, payout, member.phone_number))

    def _unpayable(self) -> list[Payout]:
        """Return the failed and held payouts with a number that M-Pesa cannot pay, or that the member has replaced."""
        found = []
        for payout in self._of("FAILED", "HELD"):
            row = Transaction.objects.select_related("user").get(pk=payout.id)
            is_refused = row.receiver in self.provider.unregistered and self._requests_of(payout) > 0
            if payout.id not in self._held and (is_refused or row.user.phone_number != row.receiver):
                found.append(payout)
        return found

    def _reissue_by_two(self, payout: Payout, number: str) -> None:
        first, second = self._staff
        verdict = reissue.propose(transaction_id=payout.id, grounds="Their identity card.", by=first, at=self.now)
        try:
            reissue.confirm(verdict_id=verdict.pk, by=first, at=self.now)
            self.accuse("Two people re-issue a payout", f"{payout.ref} was re-issued by one person")
        except decisions.SamePerson:
            reissue.confirm(verdict_id=verdict.pk, by=second, at=self.now)
        self._reissued[payout.ref] = number
        self._read = len(self.provider.seen)

    def _pay_second(self) -> None:
        """Let M-Pesa pay a paid id a second time, with a receipt of its own."""
        requests = self.provider.requests
        paid = [a for a in self.snapshot.attempts if a.state == "PAID" and a.ocid in requests]
        paid = [a for a in paid if a.receipt == requests[a.ocid].receipt and requests[a.ocid].amount < CONFIRM_ABOVE]
        if not paid or len(self._seconds) >= MOST_SECONDS:
            return
        request, receipt = requests[self._draw.choice(paid).ocid], f"SKG2{len(self._seconds):06d}"
        self._seconds[receipt] = request.amount
        self.note(f"    M-Pesa pays {request.ocid} again")
        body = result_body(request, "0", conversation_id="AG_SECOND", receipt=receipt)
        self.receive(request.result_url, body, trusted=True)

    def final_pass(self) -> bool:
        """Let the staff re-issue what failed, once each. Then as in `World`."""
        if any(payout.ref not in self._reissued for payout in self._unpayable()):
            before = len(self._reissued)
            self.do_step("staff re-issues failed payouts", self._reissue)
            if len(self._reissued) > before:
                return True
        return super().final_pass()

    # --- the judge ---------------------------------------------------------------------------------------------------

    def do_step(self, label: str, step: Callable[[], None]) -> None:
        super().do_step(label, step)
        if self.violations:
            return
        for payout in self.snapshot.payouts:
            if payout.id in self._held and (payout.redirected or self._requests_of(payout) > self._held[payout.id]):
                self.accuse("Nothing of a payout leaves while a person holds it", f"{payout.ref} is {payout.status}")
        for request in self.provider.seen[self._read :]:
            number = self._reissued.get(payout_of(request.ocid))
            if number is not None and request.phone != number:
                self.accuse("A re-issued payout leaves to the new number only", f"{request.ocid} to {request.phone}")
        self._read = len(self.provider.seen)
        if failed := self._of("FAILED"):
            self._check_limit(failed)

    def _check_limit(self, failed: list[Payout]) -> None:
        """Check that no payout is FAILED after as many failed requests as PAYOUT_MAX_ATTEMPTS: a person must decide."""
        faults = Attempt.objects.filter(
            transaction__in=[payout.id for payout in failed], state="FAILED", kind="B2C", first_sent_at__isnull=False
        ).values_list("transaction__external_ref", "result_code")
        for payout in failed:
            codes = [code for ref, code in faults if ref == payout.ref]
            count = sum(result_codes.meaning(code).fault != "ours" for code in codes)
            if count >= MAX_ATTEMPTS:
                rule = "After PAYOUT_MAX_ATTEMPTS failed requests a payout is held for a person"
                self.accuse(rule, f"{payout.ref} failed {count} times")

    def judge_end(self) -> None:
        super().judge_end()
        # A process may die before it stores a message. Of such a second payment only M-Pesa's statement knows.
        bodies = [bytes(body) for body in Callback.objects.values_list("body", flat=True)]
        told = [amount for receipt, amount in self._seconds.items() if any(receipt.encode() in body for body in bodies)]
        book = sum(payment.amount for payment in self.provider.book) + sum(told)
        left = Transfer.objects.filter(credit__code=journal.MPESA_UTILITY).aggregate(total=Sum("amount"))["total"]
        returned = Transfer.objects.filter(debit__code=journal.MPESA_UTILITY).aggregate(total=Sum("amount"))["total"]
        ours = (left or 0) - (returned or 0)
        if ours != book:
            self.accuse("All that M-Pesa took is booked", f"M-Pesa took {book}, our books say {ours}")


def run(
    seed: int, *, plant: Plant | None = None, fixed_rates: Mapping[str, float] | None = None, keep_trace: bool = False
) -> SeedResult:
    """Run one seed of the world with staff. As `world.run`."""
    return world.run(seed, plant=plant, fixed_rates=fixed_rates, keep_trace=keep_trace, world=StaffedWorld)
