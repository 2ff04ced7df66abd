"""What an operator decides with: proposals that wait for a second person, what members owe back, what the float is."""

from __future__ import annotations

from decimal import Decimal

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from payments.models.columns import shillings


class Proposal(models.Model):
    """A decision on a market that takes a second member of staff: to resolve it, void it, or undo its settlement.

    `preview_hash` is what the first one saw; the second one approves exactly that. `weights` as in Settlement.
    """

    class Kind(models.TextChoices):
        RESOLVE = "RESOLVE"
        UNDO = "UNDO"

    class State(models.TextChoices):
        OPEN = "OPEN"
        APPROVED = "APPROVED"
        REJECTED = "REJECTED"
        STALE = "STALE"

    # STALE: the numbers moved after it was made, so that what was proposed is not what would happen.
    TRANSITIONS = {
        State.OPEN: {State.APPROVED, State.REJECTED, State.STALE},
        State.APPROVED: set(),
        State.REJECTED: set(),
        State.STALE: set(),
    }

    market = models.ForeignKey("markets.Market", on_delete=models.PROTECT, related_name="proposals")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    rule = models.CharField(max_length=10, blank=True)
    weights = models.JSONField(default=dict)
    reason = models.CharField(max_length=300, blank=True)
    evidence_url = models.CharField(max_length=500, blank=True)
    evidence_note = models.CharField(max_length=1000, blank=True)
    effective_close_at = models.DateTimeField(null=True, blank=True)
    preview_hash = models.CharField(max_length=64)
    pool = shillings()
    closed_market = models.BooleanField(default=False, help_text="The market was open, and was closed by it.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)
    words = models.CharField(max_length=300, blank=True, help_text="Why it was rejected, or is stale.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["market"], condition=Q(state="OPEN"), name="one_open_proposal_a_market"),
            models.CheckConstraint(
                condition=~Q(state="APPROVED") | (Q(decided_by__isnull=False) & ~Q(decided_by=F("proposed_by"))),
                name="proposer_is_not_approver",
            ),
        ]

    def __str__(self) -> str:
        return f"Proposal {self.pk} on market {self.market_id}"


class Recovery(models.Model):
    """What one member owes back from one settlement: paid to them, and not theirs (an undo, or a payment twice).

    amount = outstanding + recovered + written_off, in shillings. The operator decides: nothing yet (OPEN), to keep up
    to `pct` % of each later dividend (SET_OFF), or to bear the loss (WRITTEN_OFF).
    """

    class Decision(models.TextChoices):
        OPEN = "OPEN"
        SET_OFF = "SET_OFF"
        WRITTEN_OFF = "WRITTEN_OFF"

    # WRITTEN_OFF → OPEN: more came to be owed after it, by a payment that was proven late.
    TRANSITIONS = {
        Decision.OPEN: {Decision.SET_OFF, Decision.WRITTEN_OFF},
        Decision.SET_OFF: {Decision.WRITTEN_OFF},
        Decision.WRITTEN_OFF: {Decision.OPEN},
    }

    settlement = models.ForeignKey(
        "payments.Settlement", on_delete=models.PROTECT, null=True, blank=True, related_name="recoveries"
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="recoveries")
    amount = shillings()
    recovered = shillings(default=Decimal("0.00"))
    written_off = shillings(default=Decimal("0.00"))
    decision = models.CharField(max_length=12, choices=Decision.choices, default=Decision.OPEN)
    pct = models.PositiveSmallIntegerField(null=True, blank=True, help_text="Of each later dividend, at most.")
    reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField()
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "recoveries"
        constraints = [
            models.UniqueConstraint(
                fields=["settlement", "user"], nulls_distinct=False, name="recovery_once_a_settlement_and_member"
            ),
            models.CheckConstraint(
                condition=Q(recovered__gte=0, written_off__gte=0, amount__gte=F("recovered") + F("written_off")),
                name="no_more_comes_back_than_is_owed",
            ),
            models.CheckConstraint(
                condition=(Q(decision="SET_OFF", pct__gte=1, pct__lte=100) | (~Q(decision="SET_OFF") & Q(pct=None))),
                name="a_set_off_has_a_percentage",
            ),
        ]
        indexes = [
            models.Index(fields=["user"], condition=Q(decision="SET_OFF"), name="recovery_to_set_off"),
        ]

    def __str__(self) -> str:
        return f"Recovery {self.pk} of {self.amount}"

    @property
    def outstanding(self) -> Decimal:
        return self.amount - self.recovered - self.written_off


class FloatReading(models.Model):
    """What the Utility account held at a moment, in shillings, as M-Pesa said: beside a payment, or when we asked.

    A question has the hash of the token in its address, and no amount until its answer comes.
    """

    class Source(models.TextChoices):
        RESULT = "result"
        BALANCE = "balance"

    source = models.CharField(max_length=8, choices=Source.choices)
    token_hash = models.CharField(max_length=64, null=True)  # noqa: DJ001 - absent where nothing was asked
    asked_at = models.DateTimeField(null=True)
    amount = shillings(null=True)
    read_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token_hash"], name="float_token_once")]
        indexes = [
            models.Index(fields=["-read_at"], condition=Q(read_at__isnull=False), name="float_latest"),
        ]

    def __str__(self) -> str:
        return f"Float {self.amount} at {self.read_at}"
