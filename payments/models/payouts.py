"""Payouts, their requests to M-Pesa, and the messages about them.

Each state machine has one table of transitions. Triggers in the database enforce the same tables.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce, Floor, Upper
from django.utils import timezone

from payments.models.columns import shillings
from payments.models.settlements import Settlement

# An attempt is in doubt if we do not know its result. It stays in doubt while its request is sent again.
IN_DOUBT = Q(state="IN_DOUBT") | Q(state__in=["SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"], doubted_at__isnull=False)


class Transaction(models.Model):
    """A move of money between us and one member: a deposit, a withdrawal, a payout or a refund.

    A payout goes to one `destination`. An M-Pesa payout is in whole shillings. It leaves after `due_at`, if its
    settlement is released. `phone_number` is the member's number when the transaction was created, and never changes.
    The money goes to `receiver`: two people may decide to send it to the member's new number instead.
    """

    class Type(models.TextChoices):
        DEPOSIT = "DEPOSIT"
        WITHDRAWAL = "WITHDRAWAL"
        PAYOUT = "PAYOUT"
        REFUND = "REFUND"

    class Status(models.TextChoices):
        PENDING = "PENDING"
        PROCESSING = "PROCESSING"
        HELD = "HELD"
        FAILED = "FAILED"
        COMPLETED = "COMPLETED"
        CANCELLED = "CANCELLED"

    class Destination(models.TextChoices):
        MPESA = "mpesa"
        WALLET = "wallet"

    TRANSITIONS: ClassVar = {
        Status.PENDING: {Status.PROCESSING, Status.HELD, Status.COMPLETED, Status.CANCELLED},
        Status.PROCESSING: {Status.COMPLETED, Status.FAILED, Status.HELD, Status.PENDING},
        Status.HELD: {Status.PENDING, Status.FAILED, Status.COMPLETED, Status.CANCELLED},
        Status.FAILED: {Status.PENDING, Status.COMPLETED, Status.CANCELLED},
        Status.COMPLETED: {Status.HELD},  # Only together with the transfers that take the payment back.
        Status.CANCELLED: set(),
    }

    public_id = models.UUIDField(default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="transactions")
    # A trigger that checks the rows once per statement replaces the foreign key. It can, because settlements are never
    # deleted.
    settlement = models.ForeignKey(
        Settlement, on_delete=models.PROTECT, null=True, blank=True, db_index=False, db_constraint=False
    )
    type = models.CharField(max_length=10, choices=Type.choices)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    amount = shillings()
    destination = models.CharField(max_length=6, choices=Destination.choices)
    tranche = models.PositiveSmallIntegerField(default=1)
    external_ref = models.CharField(max_length=64)
    phone_number = models.CharField(max_length=12)
    reissued_to = models.CharField(
        max_length=12, blank=True, default="", db_default="", help_text="The new number that two people confirmed."
    )
    due_at = models.DateTimeField(help_text="It is not sent before this time.")
    reason = models.CharField(max_length=300, blank=True, help_text="Why it failed, is held or waits.")
    held_by_person = models.BooleanField(
        default=False, db_default=False, help_text="A person holds it. Only a release or a decision ends the hold."
    )
    receipt = models.CharField(max_length=64, blank=True, help_text="M-Pesa's receipt of the payment.")
    created_at = models.DateTimeField(default=timezone.now)
    completed_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)
    redirected_at = models.DateTimeField(
        null=True, blank=True, help_text="When it was paid into the wallet instead of over M-Pesa."
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["external_ref"], name="external_ref_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="transaction_amount_is_positive"),
            # The id of a request is the reference, a hyphen and up to three digits. M-Pesa takes at most 36 characters.
            models.CheckConstraint(
                condition=Q(external_ref__regex=r"^[A-Za-z0-9-]{1,32}$"), name="reference_fits_mpesa"
            ),
            models.CheckConstraint(
                condition=~Q(type="PAYOUT", destination="mpesa") | Q(amount=Floor("amount")),
                name="mpesa_carries_whole_shillings",
            ),
            models.UniqueConstraint(
                fields=["settlement", "user", "type", "destination", "tranche"],
                name="one_transaction_a_member_and_tranche",
            ),
        ]
        indexes: ClassVar = [
            # By settlement first, because the fair queue skips from one settlement with due payouts to the next.
            models.Index(fields=["settlement", "due_at", "id"], condition=Q(status="PENDING"), name="transaction_due"),
            models.Index(fields=["failed_at"], condition=Q(status="FAILED"), name="transaction_failed"),
            models.Index(fields=["id"], condition=Q(status__in=["PROCESSING", "HELD"]), name="transaction_open"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.external_ref} {self.amount}"

    @property
    def goes_to(self) -> str:
        """Return the present destination: the wallet, if an M-Pesa payout was paid into the wallet instead."""
        return self.Destination.WALLET if self.redirected_at is not None else self.Destination(self.destination)

    @property
    def receiver(self) -> str:
        """Return the number to which the next request goes."""
        return self.reissued_to or self.phone_number


class AttemptQuerySet(models.QuerySet["Attempt"]):
    """Filters on attempts."""

    def in_doubt(self) -> AttemptQuerySet:
        """Return the open attempts in doubt, including attempts in doubt whose request is being sent again."""
        return self.filter(IN_DOUBT)

    def unconfirmed(self) -> AttemptQuerySet:
        """Return the attempts that staff decided as paid, and that M-Pesa has not confirmed yet."""
        return self.filter(decision="paid")


class Attempt(models.Model):
    """One B2C request for one payout, committed before it is sent. A transaction has at most one open attempt.

    - SENDING: a POST may be in progress.
    - WAITING: the request will be sent again with the same id.
    - ACCEPTED: Daraja queued the request, which is not paid yet.
    - IN_DOUBT: we do not know the result.
    - PAID, FAILED: the result is proven, or a person decided it (`decision`).
    - REVERSED: M-Pesa paid and then took the payment back.
    Kind FOUND: our books had lost the request (payouts/found.py). It begins IN_DOUBT or FAILED.
    """

    class Kind(models.TextChoices):
        B2C = "b2c"
        MANUAL = "manual"
        FOUND = "found"

    class State(models.TextChoices):
        SENDING = "SENDING"
        WAITING = "WAITING"
        ACCEPTED = "ACCEPTED"
        IN_DOUBT = "IN_DOUBT"
        PAID = "PAID"
        FAILED = "FAILED"
        REVERSED = "REVERSED"

    class Decision(models.TextChoices):
        NONE = "", "none"
        PAID = "paid"
        NOT_PAID = "not_paid"

    class PaidReport(models.TextChoices):
        NONE = "", "none"
        UNTRUSTED = "untrusted"
        TRUSTED = "trusted"

    OPEN: ClassVar = [State.SENDING, State.WAITING, State.ACCEPTED, State.IN_DOUBT]
    # FAILED → PAID: late evidence shows that M-Pesa paid a request that was recorded as failed. The payment is booked.
    TRANSITIONS: ClassVar = {
        State.SENDING: {State.WAITING, State.ACCEPTED, State.IN_DOUBT, State.PAID, State.FAILED},
        State.WAITING: {State.SENDING, State.IN_DOUBT, State.PAID, State.FAILED},
        State.ACCEPTED: {State.IN_DOUBT, State.PAID, State.FAILED},
        State.IN_DOUBT: {State.SENDING, State.PAID, State.FAILED},
        State.FAILED: {State.PAID},
        # PAID → IN_DOUBT: M-Pesa contradicts a person who decided that the request was paid.
        State.PAID: {State.IN_DOUBT, State.REVERSED},
        State.REVERSED: set(),
    }

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="attempts")
    settlement = models.ForeignKey(
        Settlement,
        on_delete=models.PROTECT,
        null=True,
        db_index=False,
        db_constraint=False,
        help_text="The settlement of its transaction, stored here to count a release without reading transactions.",
    )
    number = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=6, choices=Kind.choices, default=Kind.B2C)
    originator_conversation_id = models.CharField(max_length=36)
    conversation_id = models.CharField(max_length=64, blank=True)
    token_hash = models.CharField(max_length=64)
    amount = shillings()
    phone_number = models.CharField(max_length=12)  # The number that was paid, if a lost request paid another one.
    state = models.CharField(max_length=10, choices=State.choices, default=State.SENDING)
    opened_at = models.DateTimeField()
    posted_at = models.DateTimeField(null=True, help_text="When it was last POSTed.")
    first_sent_at = models.DateTimeField(null=True, help_text="When a POST that may have left us was first made.")
    doubted_at = models.DateTimeField(null=True, help_text="When the result of a POST was first in doubt.")
    next_query_at = models.DateTimeField(null=True, help_text="When the next status query is due.")
    resend_at = models.DateTimeField(null=True, help_text="When the same id is sent again although it is in doubt.")
    known_at = models.DateTimeField(
        null=True, help_text="When M-Pesa said that it already has this id, which is then never sent again."
    )
    counted_on = models.DateField(null=True, help_text="The Nairobi day on which it counts for the member's limit.")
    asked_first_at = models.DateTimeField(
        null=True, help_text="When we began to ask about it before it left, because a restore may have lost its row."
    )
    cleared_at = models.DateTimeField(
        null=True,
        help_text="When two people decided that it may leave after a restore, if M-Pesa does not know its id.",
    )
    result_code = models.CharField(max_length=20, blank=True)
    paid_report = models.CharField(
        max_length=9,
        choices=PaidReport.choices,
        blank=True,
        default=PaidReport.NONE,
        db_default=PaidReport.NONE,
        help_text="Whether a callback reported a payment, and whether we trust its sender.",
    )
    result_words = models.CharField(max_length=300, blank=True)
    receipt = models.CharField(max_length=64, blank=True)
    second_receipt = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        help_text="A further receipt that M-Pesa reported, while a status query must confirm it.",
    )
    paid_amount = shillings(null=True, help_text="What M-Pesa paid, if it is not the amount.")
    closed_at = models.DateTimeField(null=True)
    decision = models.CharField(
        max_length=8,
        choices=Decision.choices,
        blank=True,
        default=Decision.NONE,
        db_default=Decision.NONE,
        help_text="The result that staff decided. Empty once M-Pesa has confirmed or contradicted it.",
    )
    corrections = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="How often a payment of this request was taken back."
    )

    objects = AttemptQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["originator_conversation_id"], name="originator_conversation_id_once"),
            models.UniqueConstraint(fields=["token_hash"], name="attempt_token_once"),
            models.UniqueConstraint(fields=["transaction", "number"], name="attempt_number_once_a_transaction"),
            models.UniqueConstraint(
                fields=["transaction"],
                condition=Q(state__in=["SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"]),
                name="one_open_attempt_a_transaction",
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="attempt_amount_is_positive"),
            models.CheckConstraint(condition=Q(number__gte=1, number__lte=999), name="attempt_number_fits_its_id"),
            models.CheckConstraint(
                condition=Q(originator_conversation_id__regex=r"^[A-Za-z0-9-]{1,36}$"), name="request_id_fits_mpesa"
            ),
            models.UniqueConstraint(Upper("receipt"), condition=Q(decision="paid"), name="decided_receipt_once"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["next_query_at"],
                condition=Q(next_query_at__isnull=False),
                name="attempt_to_ask_about",
            ),
            models.Index(fields=["resend_at"], condition=Q(resend_at__isnull=False), name="attempt_to_resend"),
            # The latest outcomes, which open breakers (payouts/outcomes.py).
            models.Index(
                Coalesce("closed_at", "doubted_at"),
                condition=Q(closed_at__isnull=False) | Q(doubted_at__isnull=False),
                name="attempt_outcome",
            ),
            models.Index(fields=["first_sent_at", "id"], condition=IN_DOUBT, name="attempt_in_doubt"),
            models.Index(
                fields=["first_sent_at", "opened_at", "id"], condition=Q(state="WAITING"), name="attempt_waiting"
            ),
            models.Index(fields=["receipt"], condition=~Q(receipt=""), name="attempt_by_receipt"),
            models.Index(fields=["settlement"], condition=Q(settlement__isnull=False), name="attempt_by_settlement"),
        ]

    def __str__(self) -> str:
        return self.originator_conversation_id

    @property
    def booking(self) -> str:
        """The last part of the keys of its transfers. A payment that was taken back gets new keys."""
        return f"{self.pk}:{self.corrections + 1}" if self.corrections else str(self.pk)

    @property
    def is_in_doubt(self) -> bool:
        """Return True if `AttemptQuerySet.in_doubt` selects this attempt."""
        return self.state == self.State.IN_DOUBT or (self.state in self.OPEN and self.doubted_at is not None)


class Breaker(models.Model):
    """A reason to pause sending, open from `opened_at` until evidence shows that the cause is gone.

    While a breaker is open, one payout is sent as a probe each time `probe_at` has passed. The pause doubles with
    each probe, up to a limit. A cause of ENDED_BY_A_PERSON sends no probes, and no evidence closes it.
    """

    class Cause(models.TextChoices):
        SWITCH = "switch"
        NO_FLOAT = "no_float"
        CREDENTIALS = "credentials"
        THROTTLE = "throttle"
        NETWORK = "network"
        DOUBT = "doubt"
        FAILURES = "failures"
        SETTINGS = "settings"
        PRODUCT = "product"
        SILENCE = "silence"
        ORPHAN = "orphan"
        RESTORE = "restore"

    ENDED_BY_A_PERSON: ClassVar = [Cause.SWITCH, Cause.ORPHAN, Cause.RESTORE]

    cause = models.CharField(max_length=12, choices=Cause.choices, unique=True)
    opened_at = models.DateTimeField(null=True, blank=True)
    probe_at = models.DateTimeField(null=True, blank=True)
    probes = models.PositiveIntegerField(default=0, help_text="Probes sent since it opened.")
    reason = models.CharField(max_length=300, blank=True)
    opened_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)
    closed_at = models.DateTimeField(
        null=True, blank=True, help_text="When it was last closed. Requests POSTed before do not open it again."
    )

    def __str__(self) -> str:
        return f"{self.cause} ({'open' if self.opened_at else 'closed'})"


class StatusQuery(models.Model):
    """A question to Daraja about the result of an attempt. Each query has a token, which its answer carries."""

    class Verdict(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        REVERSED = "reversed"
        NOT_FOUND = "not_found"
        UNKNOWN = "unknown"

    attempt = models.ForeignKey(Attempt, on_delete=models.PROTECT, related_name="queries")
    number = models.PositiveSmallIntegerField()
    token_hash = models.CharField(max_length=64)
    asked_at = models.DateTimeField()
    conversation_id = models.CharField(max_length=64, blank=True)
    receipt = models.CharField(
        max_length=64, blank=True, default="", db_default="", help_text="The receipt asked about. Else our own id was."
    )
    is_put = models.BooleanField(
        default=True, db_default=True, help_text="Whether its POST was made. A worker may die before it."
    )
    verdict = models.CharField(max_length=10, choices=Verdict.choices, blank=True)
    answered_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "status queries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["token_hash"], name="query_token_once"),
            models.UniqueConstraint(fields=["attempt", "number"], name="query_number_once_an_attempt"),
        ]

    def __str__(self) -> str:
        return f"Query {self.number} about {self.attempt}"
