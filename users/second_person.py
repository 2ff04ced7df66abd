"""The rule that decides if an act of staff takes a second person.

An act takes two people if users.authority says so, or if its amount is above the threshold of the act. One person's
amounts of the last 24 hours count together, so that many small acts are not a way around the threshold.
"""

import hashlib
import logging
from datetime import datetime, timedelta
from decimal import Decimal

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.models import Q, Sum

from users import audit, authority, figures
from users.decision_models import SingleHandedAct

alarm = logging.getLogger("kasoko.alarm")

WINDOW = timedelta(hours=24)
_ZERO = Decimal("0.00")


def needed(act_name: str, *, amount: Decimal, by: audit.Actor, at: datetime, otherwise: Decimal | None = None) -> bool:
    """Return True if an act of this amount takes a second person. If not, count it among the actor's acts.

    An API key only proposes, whatever the amount.
    `otherwise` is the threshold that holds while the table of figures has none; None: one person is enough.
    Runs in the caller's transaction, which carries the act out, or proposes it.
    Units: shillings.
    Locks: one person's acts of this kind, until the transaction ends. The caller has locked the subject before.
    """
    people = authority.ACTS[act_name].people
    if by.key_id is not None:
        return True
    if people != "two by amount":
        return people == "two"
    if limit(act_name, at=at, otherwise=otherwise) is None:
        return False
    counted = authority.threshold_of(act_name)
    _lock(counted, by)
    if would_be_needed(act_name, amount=amount, by=by, at=at, otherwise=otherwise):
        return True
    SingleHandedAct.objects.create(act=counted, actor_id=by.user_id, amount=amount, at=at)
    return False


def would_be_needed(
    act_name: str, *, amount: Decimal, by: audit.Actor, at: datetime, otherwise: Decimal | None = None
) -> bool:
    """Return what `needed` would return now, for a page that shows it before the act. Locks and writes nothing."""
    people = authority.ACTS[act_name].people
    if people != "two by amount":
        return people == "two"
    most = limit(act_name, at=at, otherwise=otherwise)
    if most is None:
        return False
    counted = authority.threshold_of(act_name)
    acts = SingleHandedAct.objects.filter(act=counted, actor=by.user_id, at__gt=at - WINDOW)
    so_far = acts.aggregate(total=Sum("amount"))["total"] or _ZERO
    return so_far + amount > most


def limit(act_name: str, *, at: datetime, otherwise: Decimal | None = None) -> Decimal | None:
    """Return the amount above which an act takes two people, or None if one person is enough for any amount.

    `otherwise` is as in `needed`. Units: shillings.
    """
    threshold = figures.threshold(authority.threshold_of(act_name), at)
    if threshold is None:
        return otherwise
    return threshold if isinstance(threshold, Decimal) else None


def missing(act_name: str, by: audit.Actor) -> bool:
    """Return True, and log it, if nobody but this person may approve the act. So one person must do for the first time.

    Only acts that set the system up ask this. An act that moves money waits for its second person.
    A suspended approver counts, because one person alone may suspend all the others. A role ends only by two people.
    """
    codename = authority.ACTS[act_name].approval
    holders = Permission.objects.filter(content_type__app_label="users", codename=codename)
    may_approve = Q(is_superuser=True) | Q(groups__permissions__in=holders) | Q(user_permissions__in=holders)
    approvers = get_user_model().objects.filter(may_approve, is_staff=True).distinct()
    if approvers.exclude(pk=by.user_id or 0).exists():
        return False
    alarm.warning("%s by user %s alone: nobody else may approve it", act_name, by.user_id)
    return True


def acts_lock(act_name: str, user_id: int | None) -> int:
    """Return the number of the lock on one person's acts of one kind. markets/locks.py has all such numbers."""
    return (12 << 56) + int.from_bytes(hashlib.sha256(f"{user_id}:{act_name}".encode()).digest()[:7])


def _lock(act_name: str, by: audit.Actor) -> None:
    """Let only one transaction at a time count this person's acts of one kind."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [acts_lock(act_name, by.user_id)])
