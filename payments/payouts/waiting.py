"""Causes for which payouts wait, in words for pages: switch, breakers, hold, stop, canary, limit of the day.

`eligibility` decides if a payout may leave. This module explains its answer to people, and decides nothing.
"""

from dataclasses import dataclass
from datetime import datetime

from payments.models import AskFirst, Attempt, Breaker, Settlement, Transaction
from payments.policy import Policy

# Each completes the sentence "It waits for …".
CAUSES = {
    Breaker.Cause.SWITCH: "a person, who stopped all sending",
    Breaker.Cause.NO_FLOAT: "a higher M-Pesa float",
    Breaker.Cause.CREDENTIALS: "M-Pesa to accept our API credentials",
    Breaker.Cause.THROTTLE: "M-Pesa, which asks us to slow down",
    Breaker.Cause.NETWORK: "a connection to M-Pesa",
    Breaker.Cause.DOUBT: "M-Pesa's results, because too many requests are in doubt",
    Breaker.Cause.FAILURES: "a test payout to succeed, because too many requests failed",
    Breaker.Cause.SETTINGS: "a correction of our settings, because M-Pesa refuses one of them",
    Breaker.Cause.PRODUCT: "Safaricom, because M-Pesa refuses our account or product",
    Breaker.Cause.SILENCE: "M-Pesa, which does not answer our requests",
    Breaker.Cause.ORPHAN: "a person, because M-Pesa reported a request that we do not have",
    Breaker.Cause.RESTORE: "a person, because the database may have lost its last minutes",
}


@dataclass(frozen=True)
class Wait:
    """One cause for which payouts wait. `words` complete the sentence "It waits for …".

    `until` is the time at which this cause ends; None if that time is not known.
    """

    words: str
    until: datetime | None = None


def of_all(*, policy: Policy) -> list[Wait]:
    """Return the causes for which every payout waits now."""
    waits = [Wait("the setting PAYOUTS_PAUSED to be switched off")] if policy.paused else []
    opened = Breaker.objects.filter(opened_at__isnull=False).order_by("opened_at").values_list("cause", flat=True)
    return waits + [Wait(CAUSES.get(Breaker.Cause(cause), "a breaker to close")) for cause in opened]


def of_settlement(settlement: Settlement, *, at: datetime, policy: Policy) -> list[Wait]:
    """Return the causes for which every payout of a settlement waits at `at`."""
    waits = []
    if settlement.state in (Settlement.State.PENDING, Settlement.State.DIVIDING):
        waits.append(Wait("the division of the pool"))
    if settlement.stopped_at is not None:
        waits.append(Wait("a second person, who must approve or reject the proposed undo"))
    if settlement.sending_suspended_at is not None:
        waits.append(Wait("a person, who suspended the sending of its market"))
    if settlement.canary_stopped_at is not None and not settlement.release_open:
        waits.append(Wait("a person, because the first payouts of its market ended badly"))
    if settlement.release_at is not None and settlement.release_at > at:
        waits.append(Wait("the end of the market's hold", settlement.release_at))
    return waits + of_all(policy=policy)


def of_payout(payout: Transaction, *, at: datetime, policy: Policy) -> list[Wait]:
    """Return the causes for which one pending payout waits at `at`. Returns none for a payout in another state."""
    if payout.status != Transaction.Status.PENDING or payout.destination != Transaction.Destination.MPESA:
        return []
    waits = []
    if payout.due_at > at:
        waits.append(Wait("the time at which it is due", payout.due_at))
    if payout.attempts.filter(state=Attempt.State.FAILED, next_query_at__isnull=False).exists():
        waits.append(Wait("M-Pesa's answer about its earlier request"))
    if AskFirst.objects.filter(transaction=payout, ended_at=None).exists():
        waits.append(Wait("M-Pesa's answer, because it may have left before a restore of the database"))
    settlement = payout.settlement
    if settlement is None:
        return waits + of_all(policy=policy)
    return waits + of_settlement(settlement, at=at, policy=policy)
