"""Two-person decisions on held payouts."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from payments.models.payouts import Transaction


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
