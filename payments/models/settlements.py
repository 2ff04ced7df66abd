"""Settlements, which divide or refund the pools of markets."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from markets.models import Market
from payments.models.columns import shillings


class Settlement(models.Model):
    """One division of a market's pool. Its totals are frozen before the first bet gets a result.

    Amounts are shillings. `weights` maps an outcome to a percentage as text. `funds` maps an outcome to integer cents
    and the cutoff for the left-over cents (see division.py). `pool` is the money to divide. Stakes of bets placed after
    `effective_close_at` are in `late_refund` instead. A SCRATCH refunds the stakes on one outcome, `scratched`, and the
    market continues. Every other rule decides the market.
    """

    class Rule(models.TextChoices):
        WINNER = "WINNER"
        JOINT = "JOINT"
        SPLIT = "SPLIT"
        VOID = "VOID"
        SCRATCH = "SCRATCH"

    class State(models.TextChoices):
        PENDING = "PENDING"
        DIVIDING = "DIVIDING"
        SETTLED = "SETTLED"
        UNDOING = "UNDOING"
        WITHDRAWN = "WITHDRAWN"
        UNDONE = "UNDONE"

    class StoredResult(models.TextChoices):
        NONE = ""
        SUCCESS = "SUCCESS"
        FAILURE = "FAILURE"

    TRANSITIONS: ClassVar = {
        State.PENDING: {State.DIVIDING, State.WITHDRAWN},
        # DIVIDING → UNDOING: the books did not agree, and an operator withdrew the division.
        State.DIVIDING: {State.SETTLED, State.UNDOING},
        State.SETTLED: {State.UNDOING},
        State.UNDOING: {State.UNDONE},
        State.WITHDRAWN: set(),
        State.UNDONE: set(),
    }

    market = models.ForeignKey(Market, on_delete=models.PROTECT, related_name="settlements")
    number = models.PositiveSmallIntegerField()
    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    rule = models.CharField(max_length=10, choices=Rule.choices)
    weights = models.JSONField(default=dict)
    reason = models.CharField(max_length=20, blank=True)
    scratched = models.CharField(max_length=120, blank=True)
    effective_close_at = models.DateTimeField(null=True, blank=True)
    evidence_url = models.CharField(max_length=500, blank=True)
    evidence_note = models.CharField(max_length=1000, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    resolved_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)
    resolved_at = models.DateTimeField()
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    fee_pct = models.DecimalField(max_digits=5, decimal_places=2)
    protect_stake = models.BooleanField()
    bet_count = models.PositiveBigIntegerField(null=True)
    pool = shillings(null=True)
    winning_pool = shillings(null=True)
    fee = shillings(null=True)
    net = shillings(null=True)
    late_refund = shillings(null=True)
    refund = models.BooleanField(null=True)
    funds = models.JSONField(default=dict)
    last_bet_id = models.BigIntegerField(default=0)
    last_user_id = models.BigIntegerField(default=0)
    bets_divided = models.BooleanField(default=False)
    bets_done = models.PositiveBigIntegerField(default=0, help_text="Bets that have their result.")
    members_done = models.PositiveBigIntegerField(default=0, help_text="Members whose dividend is booked.")
    failure = models.CharField(
        max_length=300,
        blank=True,
        default="",
        db_default="",
        help_text="Why its last step failed. Empty once a later step has completed the settlement.",
    )
    settled_at = models.DateTimeField(null=True)
    release_at = models.DateTimeField(null=True)
    release_open = models.BooleanField(default=False, help_text="The canary passed, so all payouts may be sent.")
    canary_stopped_at = models.DateTimeField(
        null=True, blank=True, help_text="Its first payouts ended badly, so the others wait for a person."
    )
    canary_stop_reason = models.CharField(max_length=300, blank=True, db_default="")
    stopped_at = models.DateTimeField(null=True, blank=True, help_text="An undo is proposed, so no payout is sent.")
    sending_suspended_at = models.DateTimeField(
        null=True, blank=True, help_text="Since then a person suspends the sending of its payouts."
    )
    stored_result = models.CharField(
        max_length=7,
        choices=StoredResult.choices,
        blank=True,
        default="",
        db_default="",
        help_text="The result that Celery's result backend has for this settlement's task.",
    )
    undone_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    undone_at = models.DateTimeField(null=True, blank=True)
    undone_reason = models.CharField(max_length=300, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["market", "number"], name="settlement_number_once_a_market"),
            models.UniqueConstraint(
                fields=["market"],
                condition=Q(state__in=["PENDING", "DIVIDING", "SETTLED", "UNDOING"]) & ~Q(rule="SCRATCH"),
                name="one_live_settlement_a_market",
            ),
            models.UniqueConstraint(
                fields=["market", "scratched"],
                condition=Q(rule="SCRATCH") & ~Q(state__in=["WITHDRAWN", "UNDONE"]),
                name="outcome_scratched_once",
            ),
            models.CheckConstraint(
                condition=Q(rule="SCRATCH", scratched__gt="") | (~Q(rule="SCRATCH") & Q(scratched="")),
                name="a_scratch_names_its_outcome",
            ),
            models.CheckConstraint(condition=Q(pool=F("fee") + F("net")), name="pool_is_fee_and_net"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["id"], condition=Q(state__in=["PENDING", "DIVIDING", "UNDOING"]), name="settlement_to_do"
            ),
            models.Index(fields=["id"], condition=Q(state="SETTLED", release_open=False), name="settlement_in_canary"),
            models.Index(
                fields=["settled_at"], condition=~Q(stored_result="SUCCESS"), name="settlement_result_unstored"
            ),
        ]

    def __str__(self) -> str:
        return f"Settlement {self.number} of market {self.market_id}"
