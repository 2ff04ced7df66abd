"""Canary of a settlement's payouts: one is sent, then ten, then the rest.

A fault that would affect every payout then shows on one payout, not on a million. A step of the canary has one slot for
each payout that it sends:
- An accepted or paid attempt fills a slot for good. Either message is enough, because one of them may be lost.
- An attempt under way or in doubt occupies a slot until it ends. Its slot is not handed on to the next winner.
- A request that M-Pesa turned away, or that failed by a fault of ours or of the member, frees its slot.

Any other failure stops the release, and so do many failures by faults of the members. A person then lets it go on
(`let_go`). A payout that a person sends again does not count as failed: a small market never completes its canary. The
slots are counted from the attempts, so no counter can be lost. `review` stores what the count shows.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from payments.models import Attempt, Settlement, Transaction
from payments.mpesa import result_codes
from payments.payouts import eligibility
from payments.policy import Policy
from users import audit

alarm = logging.getLogger("kasoko.alarm")

# A few members with unusable numbers stop no release.
FEWEST_MEMBER_FAULTS = 3
_State = Attempt.State
_FAULTS = {side: [code for code, m in result_codes.MEANING.items() if m.fault == side] for side in ("ours", "member")}
# A refused request fails only if M-Pesa refuses the payee's field (refusals.our_fault). Its code begins with 400.
_BY_MEMBER = Q(state=_State.FAILED) & (Q(result_code__in=_FAULTS["member"]) | Q(result_code__startswith="400."))
# A failure counts while its payout is failed or held. Later a person has decided about the payout, or it waits for the
# member's next day at M-Pesa.
_FAILED = Q(
    state=_State.FAILED,
    first_sent_at__isnull=False,
    transaction__status__in=[Transaction.Status.FAILED, Transaction.Status.HELD],
) & ~Q(result_code__in=_FAULTS["ours"])


@dataclass(frozen=True)
class _Members:
    """Counts of a canary's attempts. `ended` counts those accepted, paid or failed."""

    filled: int = 0
    occupied: int = 0
    in_doubt: int = 0
    ended: int = 0
    failed: int = 0
    failed_by_member: int = 0

    def free_slots(self, policy: Policy) -> int | None:
        """Return the free slots of the canary's current step, or None if every step is filled."""
        slots = 0
        for size in policy.canary:
            slots += size
            if self.filled < slots:
                return max(0, slots - self.filled - self.occupied)
        return None

    @property
    def stop_reason(self) -> str:
        """The reason for which the release stops, or an empty text."""
        if others := self.failed - self.failed_by_member:
            return f"{others} of its first {self.ended} payouts failed, and not by a fault of the members."
        if self.failed_by_member >= FEWEST_MEMBER_FAULTS and 2 * self.failed_by_member >= self.ended:
            return f"{self.failed_by_member} of its first {self.ended} payouts failed."
        return ""


@dataclass(frozen=True)
class StoppedRelease:
    """A release that does not go on by itself now, with the reason for people."""

    settlement: Settlement
    reason: str


# --- which payouts may leave -----------------------------------------------------------------------------------------


def in_canary(*, at: datetime, policy: Policy) -> list[int]:
    """Return ids of settlements whose hold is over, whose canary is not complete and has a free slot."""
    ids = list(_waiting(at).filter(canary_stopped_at=None).values_list("pk", flat=True))
    return [settlement_id for settlement_id, members in _count(ids).items() if members.free_slots(policy) != 0]


def with_free_slot(payouts: list[Transaction], policy: Policy) -> list[Transaction]:
    """Return the payouts that may leave now. The caller claims them in the same transaction.

    A settlement that was undone or stopped since the payouts were selected has no free slot.
    Locks: the Settlements whose canary is not complete, by id, FOR NO KEY UPDATE; then all Settlements that are neither
    undone nor stopped, by id, FOR SHARE. No transaction that holds a Settlement's row waits for a Transaction's row.
    """
    ids = {payout.settlement_id for payout in payouts if payout.settlement_id is not None}
    settlements = Settlement.objects.filter(pk__in=ids, release_open=False).order_by("pk")
    locked = dict(settlements.select_for_update(no_key=True, of=("self",)).values_list("pk", "canary_stopped_at"))
    active = eligibility.lock_active(ids)
    counted = _count(locked)
    free = {pk: counted[pk].free_slots(policy) if stopped_at is None else 0 for pk, stopped_at in locked.items()}
    allowed = []
    for payout in payouts:
        if payout.settlement_id is not None and payout.settlement_id not in active:
            continue
        slots = free.get(payout.settlement_id or 0)
        if slots is None or slots > 0:
            allowed.append(payout)
        if slots is not None and payout.settlement_id is not None:
            free[payout.settlement_id] = slots - 1
    return allowed


# --- changes of a release --------------------------------------------------------------------------------------------


def review(*, at: datetime, policy: Policy) -> None:
    """Open each release whose canary is complete, and stop each release whose canary ended badly. Idempotent.

    Locks: these Settlements by id, and nothing else, in a transaction of their own.
    """
    ids = list(_waiting(at).filter(canary_stopped_at=None).values_list("pk", flat=True))
    changed = [pk for pk, members in _count(ids).items() if _is_decided(members, policy)]
    if not changed:
        return
    with transaction.atomic(durable=True):
        rows = Settlement.objects.filter(pk__in=changed, release_open=False, canary_stopped_at=None).order_by("pk")
        locked = {row.pk: row for row in rows.select_for_update(no_key=True, of=("self",))}
        for pk, members in _count(locked).items():
            settlement = locked[pk]
            if reason := members.stop_reason:
                settlement.canary_stopped_at, settlement.canary_stop_reason = at, reason
                alarm.error("The release of %s is stopped: %s", settlement, reason)
            else:
                settlement.release_open = members.free_slots(policy) is None
            settlement.save(update_fields=["release_open", "canary_stopped_at", "canary_stop_reason"])


def locked(settlement_id: int) -> Settlement:
    """Lock and return the settlement of a release."""
    return Settlement.objects.select_for_update(no_key=True, of=("self",)).get(pk=settlement_id)


def let_go(settlement: Settlement, *, by: audit.Actor, reason: str, at: datetime) -> None:
    """Release all payouts of a locked settlement in the caller's transaction.

    settlement/market_sending asks for the second person. Idempotent: skips an open release.
    Locks: the end of the audit trail.
    """
    if settlement.release_open:
        return
    before = {"release_open": False, "stopped_because": settlement.canary_stop_reason}
    settlement.release_open, settlement.canary_stopped_at = True, None
    settlement.save(update_fields=["release_open", "canary_stopped_at"])
    audit.record(
        action="release.let_go",
        by=by,
        subject=f"settlement:{settlement.pk}",
        before=before,
        after={"release_open": True},
        at=at,
        reason=reason,
    )


def stopped(*, at: datetime, policy: Policy) -> list[StoppedRelease]:
    """Return the releases that wait: those that were stopped, and those whose canary is in doubt."""
    waiting = {settlement.pk: settlement for settlement in _waiting(at).select_related("market")}
    releases = []
    for pk, members in _count(waiting).items():
        settlement = waiting[pk]
        if settlement.canary_stopped_at is not None:
            releases.append(StoppedRelease(settlement, settlement.canary_stop_reason))
        elif members.in_doubt and members.free_slots(policy) == 0:
            words = f"{members.in_doubt} of its first payouts are in doubt. It goes on by itself once M-Pesa says paid."
            releases.append(StoppedRelease(settlement, words))
    return releases


# --- counts ----------------------------------------------------------------------------------------------------------


def _waiting(at: datetime) -> QuerySet[Settlement]:
    """Return the settlements whose hold is over, whose canary is not complete, and which have a pending payout.

    A settlement with few payouts never completes its canary, so settlements without a pending payout are left out.
    """
    pending = Transaction.objects.filter(settlement=OuterRef("pk"), status=Transaction.Status.PENDING)
    settlements = Settlement.objects.filter(eligibility.active(), release_open=False, release_at__lte=at)
    return settlements.filter(Exists(pending)).order_by("pk")


def _is_decided(members: _Members, policy: Policy) -> bool:
    return bool(members.stop_reason) or members.free_slots(policy) is None


def _count(settlement_ids: Iterable[int]) -> dict[int, _Members]:
    """Count the attempts of each settlement. Reads only."""
    ids = list(settlement_ids)
    if not ids:
        return {}
    filled = ~Q(conversation_id="") | Q(state=_State.PAID)
    rows = (
        Attempt.objects.filter(settlement__in=ids)
        .values_list("settlement")
        .annotate(
            filled=Count("pk", filter=filled),
            occupied=Count("pk", filter=Q(conversation_id="", state__in=[_State.SENDING, _State.IN_DOUBT])),
            in_doubt=Count("pk", filter=Q(conversation_id="", state=_State.IN_DOUBT)),
            ended=Count("pk", filter=filled | _FAILED),
            failed=Count("pk", filter=_FAILED),
            failed_by_member=Count("pk", filter=_FAILED & _BY_MEMBER),
        )
        .order_by()
    )
    return dict.fromkeys(ids, _Members()) | {pk: _Members(*counts) for pk, *counts in rows}
