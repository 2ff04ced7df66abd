"""Two-person decisions: proposals on markets, and decisions on held payouts."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from payments.models.columns import shillings
from payments.models.payouts import Transaction


class Proposal(models.Model):
    """A decision that needs a second member of staff. It resolves or voids a market, or undoes its settlement.

    `preview_hash` identifies the figures that the proposer saw. The approver approves exactly these figures. `weights`
    maps outcomes to percentages, as in Settlement.
    """

    class Kind(models.TextChoices):
        RESOLVE = "RESOLVE"
        UNDO = "UNDO"

    class State(models.TextChoices):
        OPEN = "OPEN"
        APPROVED = "APPROVED"
        REJECTED = "REJECTED"
        STALE = "STALE"

    # STALE: the figures changed after the proposal, so an approval would have other effects than the preview showed.
    TRANSITIONS: ClassVar = {
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
    closed_market = models.BooleanField(default=False, help_text="The market was open, and this proposal closed it.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)
    words = models.CharField(max_length=300, blank=True, help_text="The reason why it was rejected or became stale.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["market"], condition=Q(state="OPEN"), name="one_open_proposal_a_market"),
            models.CheckConstraint(
                condition=~Q(state="APPROVED") | (Q(decided_by__isnull=False) & ~Q(decided_by=F("proposed_by"))),
                name="proposer_is_not_approver",
            ),
        ]

    def __str__(self) -> str:
        return f"Proposal {self.pk} on market {self.market_id}"


class Verdict(models.Model):
    """One person's decision on a payout.

    - RESULT: a held payout was paid (then `receipt` is M-Pesa's), or was not paid.
    - REISSUE: the payout's next request goes to the member's new number, `phone_number`.

    A second person confirms or refuses the decision. Until then the decision is open. It is never deleted.
    """

    class Kind(models.TextChoices):
        RESULT = "RESULT"
        REISSUE = "REISSUE"

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="verdicts")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.RESULT, db_default=Kind.RESULT)
    phone_number = models.CharField(
        max_length=12, blank=True, default="", db_default="", help_text="The new number, if the kind is REISSUE."
    )
    receipt = models.CharField(max_length=64, blank=True, help_text="Empty if M-Pesa did not pay it.")
    grounds = models.CharField(max_length=300)
    statement_until = models.DateTimeField(
        null=True, blank=True, help_text="The end of the statement that was checked, for a decision as not paid."
    )
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_from = models.CharField(max_length=64)
    proposed_at = models.DateTimeField()
    closed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    closed_at = models.DateTimeField(null=True)
    confirmed = models.BooleanField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["transaction"], condition=Q(closed_at__isnull=True), name="one_open_verdict_a_transaction"
            ),
            models.CheckConstraint(
                condition=~Q(confirmed=True) | ~Q(closed_by=F("proposed_by")), name="two_people_confirm_a_verdict"
            ),
        ]

    def __str__(self) -> str:
        return f"Verdict {self.pk} on transaction {self.transaction_id}"
