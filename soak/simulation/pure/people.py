"""People of the pure world: an operator, two deciding people, and a forger."""

from datetime import timedelta

from soak.simulation.provider import payout_of
from soak.simulation.pure import operations
from soak.simulation.pure.attempts import Refused
from soak.simulation.pure.provider import PureRequest
from soak.simulation.pure.rows import Answer, Payout, Result
from soak.simulation.pure.workers import Workers

RECENT = timedelta(hours=60)


class Operator:
    """Retries, redirects and decides payouts at random. `misread`: payouts decided once by the wrong line."""

    def __init__(self, world: Workers) -> None:
        self.world = world
        self.misread: set[Payout] = set()

    def act(self) -> None:
        """Do one random act, and schedule the next act. Does nothing after the faults stop."""
        world = self.world
        if world.provider.faults_stopped:
            return
        world.schedule(world.random.uniform(5, 60), "operator", self.act)
        if not world.machine.payouts or not world.strikes("operator"):
            return
        payout = world.random.choice(world.machine.payouts)
        act = world.random.choice(["retry", "retry all", "to the wallet", "decide"])
        world.note(f"    {act} {payout.ref}")
        try:
            if act == "retry":
                operations.retry(world.machine, payout, at=world.now)
            elif act == "retry all":
                self.retry_failed()
            elif act == "to the wallet":
                operations.redirect(world.machine, payout, at=world.now)
            else:
                self.decide(payout)
        except Refused:
            world.note("    refused")

    def retry_failed(self) -> None:
        """Retry every payout that failed recently."""
        world = self.world
        retried = operations.retry_failed(world.machine, since=world.now - RECENT, at=world.now)
        world.note(f"    retried {retried}")

    def decide(self, payout: Payout) -> None:
        """Decide a held payout's request by M-Pesa's statement, as two people.

        Sometimes they read the line of another payment. M-Pesa must then contradict the decision.
        Raises: Refused, if the request may still be paid or is not open.
        """
        world, attempt = self.world, payout.open
        request = world.provider.requests.get(attempt.ocid) if attempt else None
        if attempt is None or (request.state == "queued" if request else not world.provider.faults_stopped):
            raise Refused("nothing to decide, or too early")
        if not world.machine.later_ruled_out(payout):
            raise Refused("M-Pesa may have a later request of it")
        receipt = request.receipt if request is not None and request.state == "paid" else ""
        misreads = world.random.random() < world.rates["people read the wrong line"]
        if misreads and request is not None and payout not in self.misread:
            world.stats["people read the wrong line"] += 1
            self.misread.add(payout)
            receipt = f"WRONG{len(self.misread)}"
        operations.decide(world.machine, payout, receipt=receipt, people=2, at=world.now, statement_until=world.now)

    def decide_at_last(self, payout: Payout) -> None:
        """Decide a held payout once the faults have stopped. A payout that M-Pesa may still pay waits.

        A payout whose last request failed is retried. If M-Pesa paid a failed request, two people decide it as paid.
        """
        try:
            if payout.open is None:
                self._end_failed_hold(payout)
            else:
                self.decide(payout)
        except Refused as refusal:
            self.world.note(f"    refused: {refusal}")

    def _end_failed_hold(self, payout: Payout) -> None:
        world = self.world
        receipts = [payment.receipt for payment in world.provider.book if payout_of(payment.ocid) == payout.ref]
        if receipts:
            operations.decide(world.machine, payout, receipt=receipts[-1], people=2, at=world.now)
        else:
            operations.retry(world.machine, payout, at=world.now)

    def redirect_for_good(self, payout: Payout) -> None:
        """Pay into the wallet a payout that M-Pesa cannot pay to the member's phone."""
        world = self.world
        world.stats["to the wallet at last"] += 1
        if payout.phone not in world.provider.unregistered and not world.provider.answers_wrongly:
            world.accuse("A payout stays FAILED only if the member's phone cannot be paid", payout.ref)
        operations.redirect(world.machine, payout, at=world.now)


class Forger:
    """An untrusted caller who knows ids, amounts, phones, and callback addresses that our log leaked."""

    def __init__(self, world: Workers) -> None:
        self.world = world

    def act(self) -> None:
        """Forge one message, and schedule the next one. Does nothing after the faults stop."""
        world = self.world
        if world.provider.faults_stopped:
            return
        world.schedule(world.random.uniform(3, 30), "forger", self.act)
        if not world.provider.seen or not world.strikes("forger"):
            return
        request = world.random.choice(world.provider.seen)
        kind = world.random.choice(["wrong amount", "wrong phone", "failure", "success", "answer"])
        world.note(f"    {kind} for {request.ocid}")
        self._forge(kind, request)

    def _forge(self, kind: str, request: PureRequest) -> None:
        world, attempt = self.world, request.result_url
        production, confirm_above = world.machine.policy.production, world.machine.policy.confirm_above
        forged = Result(request.ocid, "0", "AG_FORGED", request.amount, request.phone, "FORGED1234")
        if kind == "wrong amount":
            world.receive(attempt, forged._replace(amount=request.amount + 1), trusted=True)
        elif kind == "wrong phone":
            world.receive(attempt, forged._replace(phone="254799999999"), trusted=True)
        elif kind == "failure" and world.provider.may_deny(request.ocid, "a forger"):
            code = world.random.choice(["2040", "4", "1"])
            world.receive(attempt, Result(request.ocid, code, "AG_FORGED"), trusted=True)
        elif kind == "success" and (production or request.amount >= confirm_above):
            # In production the forgery comes from an address that is not M-Pesa's, so a question must confirm it.
            # Otherwise its amount is so large that a question must confirm it.
            world.receive(attempt, forged, trusted=not production)
        elif kind == "answer" and production and attempt.questions:
            verdict = world.random.choice(["failed", "not_found", "unknown"])
            world.receive(attempt.questions[-1], Answer(verdict, request.ocid), trusted=False)
