"""Restores of the database: the heartbeat that detects them, and the payouts that are asked about before they leave."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from payments.models.payouts import Transaction


class DatabaseHeartbeat(models.Model):
    """A counter that only grows, and the server that wrote it. The table has one row.

    Copies of the counter are kept outside the database. A copy that is ahead of the row proves that the database lost
    commits. `database` tells this database from another one that uses the same Redis or the same directory.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    database = models.UUIDField(default=uuid.uuid4, editable=False)
    beats = models.PositiveBigIntegerField(default=0)
    at = models.DateTimeField()
    system = models.CharField(max_length=32, blank=True, help_text="PostgreSQL's system identifier, if we may read it.")
    timeline = models.CharField(max_length=16, blank=True, help_text="PostgreSQL's timeline, if we may read it.")

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(id=1), name="one_database_heartbeat")]

    def __str__(self) -> str:
        return f"Heartbeat {self.beats} at {self.at:%Y-%m-%d %H:%M:%S}"


class Restore(models.Model):
    """A moment at which the database lost its last commits, by a failover or by a restore from a backup.

    Every commit up to `survived_at` is still there. Requests may have left between `survived_at` and `noticed_at`
    without a row in the database.
    - LISTING: we list the payouts that may have left.
    - ASKING: we ask M-Pesa about the listed payouts before they leave. All other payouts leave as usual.
    - STOPPED: as ASKING, but no payout leaves until two people have decided.
    - DECIDED: two people have decided. A listed payout leaves as soon as M-Pesa says that it does not know its id.
    """

    class State(models.TextChoices):
        LISTING = "LISTING"
        ASKING = "ASKING"
        STOPPED = "STOPPED"
        DECIDED = "DECIDED"

    TRANSITIONS: ClassVar = {
        State.LISTING: {State.ASKING, State.STOPPED},
        State.ASKING: {State.DECIDED},
        State.STOPPED: {State.DECIDED},
        State.DECIDED: set(),
    }

    survived_at = models.DateTimeField(help_text="The newest heartbeat that survived. All older commits survived too.")
    noticed_at = models.DateTimeField()
    sign = models.CharField(max_length=300, help_text="How the loss was noticed.")
    state = models.CharField(max_length=8, choices=State.choices, default=State.LISTING)
    needs_decision = models.BooleanField(help_text="The lost time is longer than the time to send the same id again.")
    payouts_a_settlement = models.PositiveIntegerField(
        help_text="The most payouts of one settlement that can have left without a row."
    )
    last_market_id = models.PositiveBigIntegerField(help_text="Markets up to this id existed when it was noticed.")
    last_settlement_id = models.BigIntegerField(default=-1, help_text="The last settlement whose payouts are listed.")
    decided_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"Restore {self.pk} to {self.survived_at:%Y-%m-%d %H:%M:%S}"

    @property
    def stops_sending(self) -> bool:
        """True while no payout leaves because of this restore."""
        return self.state in (self.State.LISTING, self.State.STOPPED)


class AskFirst(models.Model):
    """A payout that may have left without a row. Its next request is asked about before it leaves.

    It ends when the payout leaves or is final. Until then every new request of the payout is asked about first.
    """

    restore = models.ForeignKey(Restore, on_delete=models.PROTECT, related_name="ask_first")
    transaction = models.OneToOneField(Transaction, on_delete=models.PROTECT, related_name="ask_first")
    ended_at = models.DateTimeField(null=True, blank=True)
    later_asked_at = models.DateTimeField(
        null=True, blank=True, help_text="When M-Pesa began to be asked about its further requests."
    )
    last_number = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="The highest number that a lost request of this payout may have."
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["transaction"], condition=Q(ended_at__isnull=True), name="ask_first_open"),
        ]

    def __str__(self) -> str:
        return f"Ask first about transaction {self.transaction_id}"


class RestoreDecision(models.Model):
    """One person's decision that listed payouts did not leave, for one payout or for all. A second person confirms it.

    Until then the decision is open. It is never deleted.
    """

    restore = models.ForeignKey(Restore, on_delete=models.PROTECT, related_name="decisions")
    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, null=True, related_name="+")
    grounds = models.CharField(max_length=300)
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    closed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    closed_at = models.DateTimeField(null=True)
    confirmed = models.BooleanField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                "restore",
                Coalesce("transaction", 0),
                condition=Q(closed_at__isnull=True),
                name="one_open_restore_decision",
            ),
            models.CheckConstraint(
                condition=~Q(confirmed=True) | ~Q(closed_by=F("proposed_by")), name="two_people_decide_a_restore"
            ),
        ]

    def __str__(self) -> str:
        return f"Decision {self.pk} on restore {self.restore_id}"
