"""Sending of the pure payout machine: claims, requests that are sent again, and responses."""

from datetime import datetime, timedelta

from payments.mpesa import client, gateway_errors
from soak.simulation.pure.attempts import Attempts
from soak.simulation.pure.rows import Attempt, Payout

LONGEST_WAIT = timedelta(minutes=5)


def _precedence(payout: Payout) -> tuple[bool, bool, float, float, int]:
    """Return the sort key of a due payout. Payouts whose request waits for its next POST come first.

    Among these payouts, the payout whose request was sent earliest comes first. A request that was never sent comes
    later, in the order of opening.
    """
    attempt = payout.open
    if attempt is None:
        return (True, True, 0.0, 0.0, 0)
    first = attempt.first_sent_at
    seconds = first.timestamp() if first else 0.0
    return (False, first is None, seconds, attempt.opened_at.timestamp(), attempt.serial)


class Sending(Attempts):
    """The part of the payout machine that sends."""

    def sendable(self, payout: Payout) -> bool:
        """Return True if only `due_at` keeps a payout from being sent.

        A payout is not sent while a question about one of its failed requests is open.
        """
        if payout.status != "PENDING":
            return False
        if any(o.ref == payout.ref and o.state in ("WAITING", "SUSPENSE") for o in self.orphans.values()):
            return False
        return not any(attempt.state == "FAILED" and attempt.ask_at is not None for attempt in payout.attempts)

    def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
        """Claim due payouts, and record a request for each. Return the requests that the caller must POST.

        A request that never left keeps its id and is sent first. A payout without an open request gets a request with
        a new id. In this model each settlement has one payout. Settlements are served in the order of their creation.
        """
        candidates = self.payouts if only is None else [only]
        due = [payout for payout in candidates if payout.due_at <= at and self.sendable(payout)]
        claimed = []
        for payout in sorted(due, key=_precedence)[:limit]:
            self.touched.add(payout)
            payout.move("PROCESSING")
            attempt = payout.open
            if self.survived_at is not None and self.must_ask_first(payout):
                self.ask_first(payout, self.survived_at, at)
            elif attempt is None:
                claimed.append(self.new_attempt(payout, at))
            elif self.within_horizon(attempt, at):
                claimed.append(self.post_again(attempt, at))
            else:
                self.doubt(attempt, ask_at=at, at=at)
        return claimed

    def resends(self, *, at: datetime, limit: int) -> list[Attempt]:
        """Claim requests that M-Pesa did not find. Return those that the caller must POST again with the same id."""
        due = [a for a in self._attempts() if a.state == "IN_DOUBT" and a.resend_at is not None and a.resend_at <= at]
        due = [attempt for attempt in due if self.later_ruled_out(attempt.payout)]
        claimed = []
        for attempt in sorted(due, key=lambda attempt: attempt.resend_at or at)[:limit]:
            self.touched.add(attempt.payout)
            attempt.resend_at = None
            if attempt.payout.status == "PROCESSING" and self.within_horizon(attempt, at):
                claimed.append(self.post_again(attempt, at))
                self.asked_first.add(attempt.payout.ref)
        return claimed

    def record(
        self, attempt: Attempt, response: client.Accepted | gateway_errors.GatewayError, *, at: datetime
    ) -> None:
        """Record the response to a POST. If a message came before the response, the state does not change."""
        payout, policy = attempt.payout, self.policy
        self.touched.add(payout)
        accepted = isinstance(response, client.Accepted)
        attempt.acknowledged |= accepted
        if isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate:
            self.mark_known(attempt, at=at)
        sure = attempt.doubted_at is None
        if attempt.state != "SENDING":
            return
        if accepted:
            attempt.move("ACCEPTED")
        elif sure and isinstance(response, gateway_errors.NotSent):
            if payout.status == "HELD":  # An earlier request was paid in the meantime.
                self.fail(attempt, code="", at=at, ours=True)
            else:
                self._wait(attempt, response, at)
        elif sure and isinstance(response, gateway_errors.Rejected):
            self._refuse(attempt, response, at)
        else:
            self.doubt(attempt, ask_at=at + policy.query_after, at=at)

    def _refuse(self, attempt: Attempt, response: gateway_errors.Rejected, at: datetime) -> None:
        """Fail the request if M-Pesa refuses the member's number. Every other field is ours, and the payout waits."""
        if response.message.endswith("PartyB"):
            self.fail(attempt, code=response.code, at=at)
        elif attempt.payout.status == "HELD":
            self.fail(attempt, code="", at=at, ours=True)
        else:
            self._wait(attempt, response, at)

    def _wait(self, attempt: Attempt, response: gateway_errors.NotSent | gateway_errors.Rejected, at: datetime) -> None:
        """Schedule the next POST of a request that was not executed."""
        payout, asked, throttled = attempt.payout, timedelta(0), False
        attempt.move("WAITING")
        attempt.ask_at = None
        if isinstance(response, gateway_errors.NotSent):
            asked, throttled = timedelta(seconds=response.retry_after_seconds or 0), response.reason == "throttle"
        if not throttled and attempt.first_sent_at == attempt.posted_at:
            attempt.first_sent_at = None
        longest = max(self.policy.retry_after, self.policy.breaker_longest_pause)
        own = min(max(self.policy.retry_after, at - attempt.opened_at), longest)
        payout.due_at = at + max(own, min(asked, LONGEST_WAIT))
        payout.move("PENDING")

    def next_due(self, payout: Payout) -> tuple[datetime | None, datetime | None]:
        """Return the next time to send a request of the payout, and the next time to ask. None means never."""
        send = payout.due_at if self.sendable(payout) else None
        ask = None
        for attempt in payout.attempts:
            if attempt.ask_at is not None and attempt.is_askable:
                ask = attempt.ask_at if ask is None else min(ask, attempt.ask_at)
            if attempt.resend_at is not None and attempt.state == "IN_DOUBT":
                send = attempt.resend_at  # While this request is open, no other request can be due.
        return send, ask
