"""People of the simulated world: an operator and a forger of callbacks."""

from datetime import timedelta

from payments.payouts.evidence import callbacks
from payments.payouts.operations import actions, bulk_retries
from payments.payouts.sending import canary
from payments.settlement import market_sending
from soak.simulation.daraja import DarajaRequest, result_body, status_body
from soak.simulation.web import Web
from testing import builders
from users.audit import MACHINE

RECENT = timedelta(hours=60)
CONFIRM_ABOVE = builders.policy().confirm_above


class Operator:
    """Retries and redirects payouts at random."""

    def __init__(self, world: Web) -> None:
        self.world = world

    def act(self) -> None:
        """Do one random act, and schedule the next act. Does nothing after the faults stop."""
        world = self.world
        if world.provider.faults_stopped:
            return
        world.schedule(world.random.uniform(5, 60), "operator", self.act)
        if not world.snapshot.payouts or not world.strikes("operator"):
            return
        payout = world.random.choice(world.snapshot.payouts)
        act = world.random.choice(["retry", "retry all", "to the wallet"])
        world.note(f"    {act} {payout.ref}")
        world.state_changed = True
        try:
            if act == "retry":
                actions.retry(transaction_id=payout.id, by=MACHINE, at=world.now)
            elif act == "retry all":
                self.retry_failed()
            else:
                actions.redirect_to_wallet(transaction_id=payout.id, by=MACHINE, at=world.now)
        except actions.PayoutNotRetryable:
            world.note("    refused")

    def let_releases_go(self) -> None:
        """Let every release go on that its canary has stopped."""
        world = self.world
        for release in canary.stopped(at=world.now, policy=world.policy):
            world.state_changed = True
            market_sending.let_go(settlement_id=release.settlement.pk, by=MACHINE, reason=release.reason, at=world.now)

    def retry_failed(self) -> None:
        """Retry every payout that failed recently."""
        world = self.world
        world.state_changed = True
        outcome = bulk_retries.start(since=world.now - RECENT, by=MACHINE, at=world.now)
        world.note(f"    retried {len(outcome.retried)}, skipped {sum(outcome.skipped.values())}")


class Forger:
    """An untrusted caller who knows ids, amounts and phones, and some callback addresses that our log leaked.

    `forged_paid` are the ids for which a forged proof of payment came to the right address.
    """

    def __init__(self, world: Web) -> None:
        self.world = world
        self.forged_paid: set[str] = set()

    def act(self) -> None:
        """Forge one callback, and schedule the next one. Does nothing after the faults stop."""
        world = self.world
        if world.provider.faults_stopped:
            return
        world.schedule(world.random.uniform(3, 30), "forger", self.act)
        if not world.provider.seen or not world.strikes("forger"):
            return
        request = world.random.choice(world.provider.seen)
        kind = world.random.choice(["no token", "wrong amount", "failure", "status", "success"])
        world.note(f"    {kind} for {request.ocid}")
        self._forge(kind, request)

    def _forge(self, kind: str, request: DarajaRequest) -> None:
        world = self.world
        confirmed_first = request.amount >= CONFIRM_ABOVE
        body = result_body(request, "0", conversation_id="AG_FORGED", receipt="FORGED1234")
        if kind == "no token":
            self._expect_refusal(world.addresses.result("f" * 64), body)
        elif kind == "status":
            # The token of a request is not the token of a status query.
            token = request.result_url.rstrip("/").rpartition("/")[2]
            status = world.random.choice(["Completed", "Failed"])
            forged = status_body(request, status, receipt="FORGED1234")
            self._expect_refusal(world.addresses.status_result(token), forged)
        elif kind == "wrong amount":
            body = result_body(request, "0", conversation_id="AG_FORGED", amount=request.amount + 1, receipt="FORGED1")
            world.receive(request.result_url, body, trusted=True)
        elif kind == "failure" and world.provider.may_deny(request.ocid, "a forger"):
            code = world.random.choice(["2040", "4", "1"])
            forged = result_body(request, code, conversation_id="AG_FORGED")
            world.receive(request.result_url, forged, trusted=True)
        elif kind == "success" and (world.policy.production or confirmed_first):
            # In production the forgery comes from an address that is not M-Pesa's, so a status query must confirm it.
            # Otherwise its amount is so large that a status query must confirm it.
            self.forged_paid.add(request.ocid)
            world.receive(request.result_url, body, trusted=not world.policy.production)

    def _expect_refusal(self, url: str, body: bytes) -> None:
        try:
            self.world.receive(url, body, trusted=True)
        except callbacks.UnknownAddress:
            self.world.note("    unknown address")
