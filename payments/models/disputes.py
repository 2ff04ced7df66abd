"""Members' disputes of results and payouts, and their history."""

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q


class Dispute(models.Model):
    """A member's complaint about a bet's result or a payout. An operator answers it, and upholds or rejects it.

    Its texts are in its events. `remedy` was promised when the dispute was upheld. The remedy is DUE until the books
    show that it is done.
    """

    class State(models.TextChoices):
        OPEN = "OPEN"
        ANSWERED = "ANSWERED"
        UPHELD = "UPHELD"
        REJECTED = "REJECTED"

    class Remedy(models.TextChoices):
        RE_RESOLVE = "re_resolve"
        PAY_TO_WALLET = "pay_to_wallet"
        RESEND = "resend"
        NONE = "none"

    class RemedyState(models.TextChoices):
        DUE = "DUE"
        DONE = "DONE"

    LIVE: ClassVar = [State.OPEN, State.ANSWERED]
    # ANSWERED → OPEN is the member's reply. A dispute can be rejected only after an answer, so that the member had a
    # chance to reply.
    TRANSITIONS: ClassVar = {
        State.OPEN: {State.ANSWERED, State.UPHELD},
        State.ANSWERED: {State.OPEN, State.UPHELD, State.REJECTED},
        State.UPHELD: set(),
        State.REJECTED: set(),
    }

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="disputes")
    bet = models.ForeignKey("markets.Bet", on_delete=models.PROTECT, null=True, blank=True)
    transaction = models.ForeignKey("payments.Transaction", on_delete=models.PROTECT, null=True, blank=True)
    settlement = models.ForeignKey(
        "payments.Settlement", on_delete=models.PROTECT, null=True, blank=True, help_text="The disputed settlement."
    )
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    opened_at = models.DateTimeField()
    due_at = models.DateTimeField(help_text="The deadline for an operator's answer.")
    alarmed_at = models.DateTimeField(
        null=True, blank=True, help_text="When its last deadline passed without a decision, and was looked at."
    )
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    remedy = models.CharField(max_length=15, choices=Remedy.choices, blank=True)
    remedy_state = models.CharField(max_length=5, choices=RemedyState.choices, blank=True)
    remedied_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(bet__isnull=False, transaction__isnull=True)
                | Q(bet__isnull=True, transaction__isnull=False),
                name="dispute_has_one_subject",
            ),
            models.CheckConstraint(
                condition=Q(closed_by__isnull=True) | ~Q(closed_by=F("user")), name="nobody_decides_their_own_dispute"
            ),
            models.UniqueConstraint(
                fields=["bet"], condition=Q(state__in=["OPEN", "ANSWERED"]), name="one_live_dispute_a_bet"
            ),
            models.UniqueConstraint(
                fields=["transaction"],
                condition=Q(state__in=["OPEN", "ANSWERED"]),
                name="one_live_dispute_a_transaction",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["state", "due_at"], name="dispute_queue"),
            models.Index(fields=["id"], condition=Q(remedy_state="DUE"), name="dispute_remedy_due"),
        ]

    def __str__(self) -> str:
        subject = f"bet {self.bet_id}" if self.bet_id else f"transaction {self.transaction_id}"
        return f"Dispute of {subject} ({self.state})"


class DisputeEvent(models.Model):
    """One step in the history of a dispute. Triggers refuse any change or removal."""

    class Kind(models.TextChoices):
        OPENED = "opened"
        ANSWERED = "answered"
        REPLIED = "replied"
        UPHELD = "upheld"
        REJECTED = "rejected"
        REMEDIED = "remedied"

    dispute = models.ForeignKey(Dispute, on_delete=models.PROTECT, related_name="events")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    text = models.TextField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.kind}, {self.dispute_id}"
