"""Where the money is and how it leaves. Each state machine has one table of transitions; triggers hold the same."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Floor
from django.utils import timezone

from payments.models.columns import shillings
from payments.models.settlements import Settlement


class Transaction(models.Model):
    """A move of money between us and one member: a deposit, a withdrawal, a payout or a refund.

    A payout goes to one `destination`; over M-Pesa it is whole shillings, and leaves when `due_at` has come and its
    settlement is released. `phone_number` is the one the money goes to, frozen when the debt was born.
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

    TRANSITIONS = {
        Status.PENDING: {Status.PROCESSING, Status.HELD, Status.COMPLETED, Status.CANCELLED},
        Status.PROCESSING: {Status.COMPLETED, Status.FAILED, Status.HELD, Status.PENDING},
        Status.HELD: {Status.PENDING, Status.FAILED, Status.COMPLETED, Status.CANCELLED},
        Status.FAILED: {Status.PENDING, Status.COMPLETED, Status.CANCELLED},
        Status.COMPLETED: set(),
        Status.CANCELLED: set(),
    }

    public_id = models.UUIDField(default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="transactions")
    # A settlement is never removed, so a trigger's look at each statement's rows is enough; a member may be.
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
    due_at = models.DateTimeField(help_text="Not sent before this moment.")
    reason = models.CharField(max_length=300, blank=True, help_text="Why it failed, is held or waits; in words.")
    receipt = models.CharField(max_length=64, blank=True, help_text="M-Pesa's code of the payment.")
    created_at = models.DateTimeField(default=timezone.now)
    completed_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["external_ref"], name="external_ref_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="transaction_amount_is_positive"),
            models.CheckConstraint(
                condition=~Q(type="PAYOUT", destination="mpesa") | Q(amount=Floor("amount")),
                name="mpesa_carries_whole_shillings",
            ),
            models.UniqueConstraint(
                fields=["settlement", "user", "type", "destination", "tranche"],
                name="one_transaction_a_member_and_tranche",
            ),
        ]
        indexes = [
            # By settlement first: whose turn it is, is found by skipping from one settlement to the next.
            models.Index(fields=["settlement", "due_at", "id"], condition=Q(status="PENDING"), name="transaction_due"),
            models.Index(fields=["failed_at"], condition=Q(status="FAILED"), name="transaction_failed"),
            models.Index(fields=["id"], condition=Q(status__in=["PROCESSING", "HELD"]), name="transaction_open"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.external_ref} {self.amount}"


class Attempt(models.Model):
    """One B2C request for one payout, committed before the call. At most one open attempt a transaction.

    SENDING: a POST may be under way. WAITING: the last POST never left; the same id goes again. ACCEPTED: Daraja queued
    it, not paid. IN_DOUBT: we do not know. PAID and FAILED: proven.
    """

    class Kind(models.TextChoices):
        B2C = "b2c"
        MANUAL = "manual"

    class State(models.TextChoices):
        SENDING = "SENDING"
        WAITING = "WAITING"
        ACCEPTED = "ACCEPTED"
        IN_DOUBT = "IN_DOUBT"
        PAID = "PAID"
        FAILED = "FAILED"

    OPEN = [State.SENDING, State.WAITING, State.ACCEPTED, State.IN_DOUBT]
    # FAILED → PAID is late evidence: what was proven not executed was executed after all, and is booked.
    TRANSITIONS = {
        State.SENDING: {State.WAITING, State.ACCEPTED, State.IN_DOUBT, State.PAID, State.FAILED},
        State.WAITING: {State.SENDING, State.IN_DOUBT, State.PAID, State.FAILED},
        State.ACCEPTED: {State.IN_DOUBT, State.PAID, State.FAILED},
        State.IN_DOUBT: {State.SENDING, State.PAID, State.FAILED},
        State.FAILED: {State.PAID},
        State.PAID: set(),
    }

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="attempts")
    settlement = models.ForeignKey(
        Settlement,
        on_delete=models.PROTECT,
        null=True,
        db_index=False,
        db_constraint=False,
        help_text="Its transaction's: how far a release is, without reading a million transactions.",
    )
    number = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=6, choices=Kind.choices, default=Kind.B2C)
    originator_conversation_id = models.CharField(max_length=36)
    conversation_id = models.CharField(max_length=64, blank=True)
    token_hash = models.CharField(max_length=64)
    amount = shillings()
    phone_number = models.CharField(max_length=12)
    state = models.CharField(max_length=10, choices=State.choices, default=State.SENDING)
    opened_at = models.DateTimeField()
    posted_at = models.DateTimeField(null=True, help_text="Of the latest POST.")
    first_sent_at = models.DateTimeField(null=True, help_text="Of the first POST that may have left us.")
    doubted_at = models.DateTimeField(null=True, help_text="When a POST of this id first ended in doubt.")
    next_query_at = models.DateTimeField(null=True, help_text="When to ask what became of it.")
    resend_at = models.DateTimeField(null=True, help_text="When the same id goes again although we are in doubt.")
    known_at = models.DateTimeField(
        null=True, help_text="When M-Pesa said that it has had this id: it is asked about, and not sent again."
    )
    result_code = models.CharField(max_length=20, blank=True)
    result_words = models.CharField(max_length=300, blank=True)
    receipt = models.CharField(max_length=64, blank=True)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["originator_conversation_id"], name="originator_conversation_id_once"),
            models.UniqueConstraint(fields=["token_hash"], name="attempt_token_once"),
            models.UniqueConstraint(fields=["transaction", "number"], name="attempt_number_once_a_transaction"),
            models.UniqueConstraint(
                fields=["transaction"],
                condition=Q(state__in=["SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"]),
                name="one_open_attempt_a_transaction",
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="attempt_amount_is_positive"),
        ]
        indexes = [
            models.Index(
                fields=["next_query_at"],
                condition=Q(next_query_at__isnull=False),
                name="attempt_to_ask_about",
            ),
            models.Index(fields=["resend_at"], condition=Q(resend_at__isnull=False), name="attempt_to_resend"),
            models.Index(fields=["first_sent_at", "id"], condition=Q(state="IN_DOUBT"), name="attempt_in_doubt"),
            models.Index(
                fields=["first_sent_at", "opened_at", "id"], condition=Q(state="WAITING"), name="attempt_waiting"
            ),
            models.Index(fields=["receipt"], condition=~Q(receipt=""), name="attempt_by_receipt"),
            models.Index(fields=["settlement"], condition=Q(settlement__isnull=False), name="attempt_by_settlement"),
        ]

    def __str__(self) -> str:
        return self.originator_conversation_id


class Breaker(models.Model):
    """A reason for not sending at the moment: open from `opened_at` until something proves it gone.

    While it is open one payout goes out as a probe whenever `probe_at` has come, at pauses that double. `switch` is the
    operator's own and has no probe.
    """

    class Cause(models.TextChoices):
        SWITCH = "switch"
        NO_FLOAT = "no_float"
        CREDENTIALS = "credentials"
        THROTTLE = "throttle"
        NETWORK = "network"
        DOUBT = "doubt"
        FAILURES = "failures"

    cause = models.CharField(max_length=12, choices=Cause.choices, unique=True)
    opened_at = models.DateTimeField(null=True, blank=True)
    probe_at = models.DateTimeField(null=True, blank=True)
    probes = models.PositiveIntegerField(default=0, help_text="Made since it opened.")
    reason = models.CharField(max_length=300, blank=True)
    opened_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.cause} ({'open' if self.opened_at else 'closed'})"


class StatusQuery(models.Model):
    """One question to Daraja what became of an attempt; it has a token of its own, and so its answer is its own."""

    class Verdict(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        NOT_FOUND = "not_found"
        UNKNOWN = "unknown"

    attempt = models.ForeignKey(Attempt, on_delete=models.PROTECT, related_name="queries")
    number = models.PositiveSmallIntegerField()
    token_hash = models.CharField(max_length=64)
    asked_at = models.DateTimeField()
    conversation_id = models.CharField(max_length=64, blank=True)
    verdict = models.CharField(max_length=10, choices=Verdict.choices, blank=True)
    answered_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "status queries"
        constraints = [
            models.UniqueConstraint(fields=["token_hash"], name="query_token_once"),
            models.UniqueConstraint(fields=["attempt", "number"], name="query_number_once_an_attempt"),
        ]

    def __str__(self) -> str:
        return f"Query {self.number} about {self.attempt}"


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


class Callback(models.Model):
    """A message from a stranger that claims something: stored raw first, applied once.

    The very same is stored once for each trust: what a stranger said first, M-Pesa may still say itself.
    """

    class Kind(models.TextChoices):
        RESULT = "result"
        TIMEOUT = "timeout"
        STATUS = "status"
        PLAIN = "plain"
        BALANCE = "balance"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    originator_conversation_id = models.CharField(
        max_length=36, blank=True, help_text="Of a request we do not have (yet), though its token is ours."
    )
    attempt = models.ForeignKey(Attempt, on_delete=models.PROTECT, null=True, related_name="callbacks")
    query = models.ForeignKey(StatusQuery, on_delete=models.PROTECT, null=True, related_name="callbacks")
    reading = models.ForeignKey(FloatReading, on_delete=models.PROTECT, null=True, related_name="callbacks")
    body = models.BinaryField()
    digest = models.CharField(max_length=64)
    received_at = models.DateTimeField()
    source_ip = models.GenericIPAddressField(null=True)
    trusted = models.BooleanField(help_text="It came from an address that is M-Pesa's.")
    applied_at = models.DateTimeField(null=True)
    verdict = models.CharField(max_length=200, blank=True, help_text="What came of it.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "attempt", "query", "reading", "digest", "trusted"],
                condition=~Q(kind="plain"),
                nulls_distinct=False,
                name="callback_stored_once",
            )
        ]
        indexes = [models.Index(fields=["id"], condition=Q(applied_at__isnull=True), name="callback_to_apply")]

    def __str__(self) -> str:
        return f"Callback {self.pk} ({self.kind})"
