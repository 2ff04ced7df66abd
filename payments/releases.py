"""Releasing a settlement's payouts: a canary first (one, then ten), then the rest.

What is wrong for everyone then shows on one payout, not on a million. The canary widens by acknowledgements, so that a
lost callback cannot stall it, and by payments, so that a lost acknowledgement cannot either. A request that ended in
anything else gives its place to another; the breakers decide when that must stop.
"""

from django.db.models import F

from payments.models import Attempt, Settlement
from payments.policy import Policy


def begin(settlement: Settlement, policy: Policy) -> None:
    """Set a settlement that is being finished to its first stage; the caller saves it."""
    settlement.release_stage = 0
    settlement.release_allowance = policy.canary[0] if policy.canary else None


def take(settlement_id: int | None) -> bool:
    """Take a place for one payout to be claimed, in the caller's transaction; False where none is left."""
    if settlement_id is None:
        return True
    run = Settlement.objects.filter(pk=settlement_id)
    if run.filter(release_allowance=None).exists():
        return True
    return bool(run.filter(release_allowance__gt=0).update(release_allowance=F("release_allowance") - 1))


def give_back(settlement_id: int | None) -> None:
    """A claimed payout came back, or its fate is open: another may take its place in the canary."""
    if settlement_id is not None:
        run = Settlement.objects.filter(pk=settlement_id, release_allowance__isnull=False)
        run.update(release_allowance=F("release_allowance") + 1)


def widen(settlement_id: int | None, policy: Policy) -> None:
    """A request was acknowledged or paid: go to the next stage where enough of them were, in the caller's transaction.

    Locks: Settlement, after the Transaction and the Attempt; nothing waits for those while it holds this one.
    """
    if settlement_id is None:
        return
    run = Settlement.objects.filter(pk=settlement_id, release_allowance__isnull=False)
    settlement = run.select_for_update(no_key=True, of=("self",)).first()
    if settlement is None:
        return
    good = Attempt.objects.filter(transaction__settlement=settlement)
    taken = good.exclude(conversation_id="").count() + good.filter(conversation_id="", state=Attempt.State.PAID).count()
    stage, allowance = settlement.release_stage, settlement.release_allowance or 0
    while stage < len(policy.canary) and taken >= sum(policy.canary[: stage + 1]):
        stage += 1
        allowance += policy.canary[stage] if stage < len(policy.canary) else 0
    settlement.release_stage = stage
    settlement.release_allowance = allowance if stage < len(policy.canary) else None
    settlement.save(update_fields=["release_stage", "release_allowance"])
