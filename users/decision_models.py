"""Tables of decisions: figures, proposals and single-handed acts. `users.models` re-exports them."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q


class Figure(models.Model):
    """A value of one figure of law, limit or threshold, from a moment on; see users/figures.py.

    Rows are never changed: a later row replaces an earlier one. `set_by` is empty for first values and for commands.
    """

    class Certainty(models.TextChoices):
        HIGH = "high"
        MEDIUM = "medium"
        UNVERIFIED = "unverified"

    name = models.CharField(max_length=80)
    value = models.CharField(max_length=500)
    valid_from = models.DateTimeField()
    source = models.CharField(max_length=500, help_text="The law, form or decision that this value comes from.")
    certainty = models.CharField(max_length=10, choices=Certainty.choices, blank=True)
    set_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    set_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["name", "valid_from", "id"], name="figure_by_name")]

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"


class Proposal(models.Model):
    """An act of staff that waits for another person; see users/proposals.py.

    `act` is a name of users/authority.py, and `subject` names the row that it is about, as in the audit trail. `hash`
    identifies the figures that the proposer saw: the approval holds for exactly these. `proposed_by` is empty if the
    machine proposed it. Then two people approve it, `first_approved_by` first.
    """

    class State(models.TextChoices):
        OPEN = "OPEN"
        APPROVED = "APPROVED"
        REJECTED = "REJECTED"
        WITHDRAWN = "WITHDRAWN"
        STALE = "STALE"
        EXPIRED = "EXPIRED"

    # STALE: the figures changed, or people decided otherwise. WITHDRAWN: the proposer took it back.
    TRANSITIONS: ClassVar = {
        State.OPEN: {State.APPROVED, State.REJECTED, State.WITHDRAWN, State.STALE, State.EXPIRED},
        State.APPROVED: set(),
        State.REJECTED: set(),
        State.WITHDRAWN: set(),
        State.STALE: set(),
        State.EXPIRED: set(),
    }

    act = models.CharField(max_length=60)
    subject = models.CharField(max_length=80)
    payload = models.JSONField(default=dict)
    hash = models.CharField(max_length=64)
    amount = models.DecimalField(max_digits=14, decimal_places=2, null=True)
    reason = models.CharField(max_length=300, blank=True)
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    proposed_from = models.CharField(max_length=64)
    proposed_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    first_approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    first_approved_at = models.DateTimeField(null=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)
    words = models.CharField(max_length=300, blank=True, help_text="The reason why it was not carried out.")

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["subject", "id"], name="proposal_by_subject"),
            models.Index(fields=["expires_at"], condition=Q(state="OPEN"), name="open_proposal_by_end"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["subject"],
                condition=Q(state="OPEN", proposed_by__isnull=False),
                name="one_open_proposal_a_subject",
            ),
            models.CheckConstraint(
                condition=~Q(state="APPROVED")
                | Q(decided_by__isnull=False, proposed_by__isnull=False) & ~Q(decided_by=F("proposed_by"))
                | Q(decided_by__isnull=False, first_approved_by__isnull=False) & ~Q(decided_by=F("first_approved_by")),
                name="two_people_approve_a_proposal",
            ),
        ]

    def __str__(self) -> str:
        return f"Proposal {self.pk}: {self.act} of {self.subject}"

    @property
    def subject_id(self) -> int:
        """The id of the row that the proposal is about."""
        return int(self.subject.rpartition(":")[2])


class SingleHandedAct(models.Model):
    """An act with an amount that one person carried out alone; see users/second_person.py."""

    act = models.CharField(max_length=60)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["actor", "act", "at"], name="single_handed_by_actor")]

    def __str__(self) -> str:
        return f"{self.act}, {self.amount}"
