"""Orphans: requests that M-Pesa reports under our own tokens, but that our books do not have."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from payments.models.columns import shillings


class Orphan(models.Model):
    """A request that we sent and no longer have, because the server lost its last commits or an old backup runs.

    - WAITING: we ask M-Pesa about it. The payout of its reference does not leave meanwhile.
    - CLAIMED: a payout of ours has its reference and took it over.
    - SUSPENSE: M-Pesa paid it, and no payout has its reference. The amount is in the account `suspense`.
    - NOT_PAID: M-Pesa did not pay it, by two sources. A supposed request: M-Pesa does not know it.

    `is_supposed`: no message about it came. It may have left before a restore, so we ask M-Pesa about it.

    `amount`, `receipt` and `phone_visible` are as M-Pesa reports them. `token_hash` is of the address to which M-Pesa
    answers our queries about it.
    """

    class State(models.TextChoices):
        WAITING = "WAITING"
        CLAIMED = "CLAIMED"
        SUSPENSE = "SUSPENSE"
        NOT_PAID = "NOT_PAID"

    TRANSITIONS: ClassVar = {
        State.WAITING: {State.CLAIMED, State.SUSPENSE, State.NOT_PAID},
        State.SUSPENSE: {State.CLAIMED},
        State.NOT_PAID: {State.WAITING},
        State.CLAIMED: set(),
    }
    # A payout with the reference of such an orphan does not leave.
    UNRESOLVED: ClassVar = [State.WAITING, State.SUSPENSE]

    originator_conversation_id = models.CharField(max_length=36)
    external_ref = models.CharField(max_length=36, help_text="The reference of the payout that the request paid.")
    token_hash = models.CharField(max_length=64)
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    is_supposed = models.BooleanField(default=False, db_default=False)
    amount = shillings(null=True)
    receipt = models.CharField(max_length=64, blank=True)
    phone_visible = models.CharField(max_length=20, blank=True)
    first_seen_at = models.DateTimeField()
    next_query_at = models.DateTimeField(null=True, help_text="When the next status query is due.")
    queries = models.PositiveIntegerField(default=0, help_text="Status queries asked so far.")
    stopped_at = models.DateTimeField(null=True, help_text="When it stopped the sending. It does so once only.")
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["originator_conversation_id"], name="orphan_once_an_id"),
            models.UniqueConstraint(fields=["token_hash"], name="orphan_token_once"),
            models.CheckConstraint(
                condition=~Q(state="SUSPENSE") | (Q(amount__gt=0) & ~Q(receipt="")),
                name="orphan_in_suspense_has_amount_and_receipt",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["external_ref"], condition=Q(state__in=["WAITING", "SUSPENSE"]), name="orphan_by_reference"
            ),
        ]

    def __str__(self) -> str:
        return self.originator_conversation_id
