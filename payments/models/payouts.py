"""Where the money is and how it leaves. Each state machine has one table of transitions; triggers hold the same."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Floor
from django.utils import timezone

from markets.models import Market
from payments.models.columns import shillings
from payments.models.decisions import FloatReading


class LedgerAccount(models.Model):
    """A named balance. Assets and expenses grow by debit, everything else by credit."""

    class Kind(models.TextChoices):
        WALLET = "wallet"
        POOL = "pool"
        PAYABLE = "payable"
        IN_FLIGHT = "in_flight"
        FEE_INCOME = "fee_income"
        OPENING = "opening"
        TAX_PAYABLE = "tax_payable"
        MPESA_CHARGES_PAID = "mpesa_charges_paid"
        MPESA_UTILITY = "mpesa_utility"
        MPESA_PAYBILL = "mpesa_paybill"
        CHARGE_EXPENSE = "charge_expense"
        RECEIVABLE = "receivable"
        BAD_DEBT = "bad_debt"

    GROWS_BY_DEBIT = {Kind.MPESA_UTILITY, Kind.MPESA_PAYBILL, Kind.CHARGE_EXPENSE, Kind.RECEIVABLE, Kind.BAD_DEBT}

    code = models.CharField(max_length=40, help_text="wallet:<member>, pool:<market> or the kind itself.")
    kind = models.CharField(max_length=20, choices=Kind.choices)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)
    market = models.ForeignKey(Market, on_delete=models.PROTECT, null=True, blank=True)

    class Meta:
        constraints = [
            # A UniqueConstraint rather than unique=True, here and below: the latter gets a second index, for LIKE.
            models.UniqueConstraint(fields=["code"], name="account_code_once"),
            models.CheckConstraint(
                name="account_belongs_to_whom_its_kind_says",
                condition=Q(kind__in=["wallet", "receivable"], user__isnull=False, market__isnull=True)
                | Q(kind="pool", user__isnull=True, market__isnull=False)
                | (~Q(kind__in=["wallet", "receivable", "pool"]) & Q(user__isnull=True, market__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return self.code


class Settlement(models.Model):
    """One run of dividing one market's pool; its totals are frozen before the first bet is touched.

    Amounts are shillings; `weights` maps outcome to percentage text; `funds` maps outcome to integer cents and the
    cutoff of the left-over cents (see division.py). `pool` is what is divided; the stakes of bets that were placed
    after `effective_close_at` are not in it but in `late_refund`. A SCRATCH gives back the stakes on one outcome,
    `scratched`, while the market goes on; every other run decides the market.
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

    TRANSITIONS = {
        State.PENDING: {State.DIVIDING, State.WITHDRAWN},
        State.DIVIDING: {State.SETTLED},
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
    bets_done = models.PositiveBigIntegerField(default=0, help_text="Bets that have their verdict.")
    members_done = models.PositiveBigIntegerField(default=0, help_text="Members whose dividend is booked.")
    settled_at = models.DateTimeField(null=True)
    release_at = models.DateTimeField(null=True)
    release_open = models.BooleanField(default=False, help_text="Its canary has passed: all its payouts may leave.")
    stopped_at = models.DateTimeField(null=True, blank=True, help_text="Nothing of it leaves: its undo is proposed.")
    undone_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    undone_at = models.DateTimeField(null=True, blank=True)
    undone_reason = models.CharField(max_length=300, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["market", "number"], name="settlement_number_once_a_market"),
            models.UniqueConstraint(
                fields=["market"],
                condition=Q(state__in=["PENDING", "DIVIDING", "SETTLED", "UNDOING"]) & ~Q(rule="SCRATCH"),
                name="one_live_settlement_a_market",
            ),
            models.UniqueConstraint(
                fields=["market", "scratched"], condition=Q(rule="SCRATCH"), name="outcome_scratched_once"
            ),
            models.CheckConstraint(
                condition=Q(rule="SCRATCH", scratched__gt="") | (~Q(rule="SCRATCH") & Q(scratched="")),
                name="a_scratch_names_its_outcome",
            ),
            models.CheckConstraint(condition=Q(pool=F("fee") + F("net")), name="pool_is_fee_and_net"),
        ]
        indexes = [
            models.Index(
                fields=["id"], condition=Q(state__in=["PENDING", "DIVIDING", "UNDOING"]), name="settlement_to_do"
            ),
            models.Index(fields=["id"], condition=Q(state="SETTLED", release_open=False), name="settlement_in_canary"),
        ]

    def __str__(self) -> str:
        return f"Settlement {self.number} of market {self.market_id}"


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


class Transfer(models.Model):
    """One move of one amount from one account to another. Never edited, never removed; corrected by further transfers.

    `debit` grows an asset or an expense, `credit` grows the rest; `key` makes booking it twice impossible. That what it
    names is there, a trigger asks once a statement, where foreign keys would ask three times a row.
    """

    key = models.CharField(max_length=64)
    debit = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="debits", db_index=False, db_constraint=False
    )
    credit = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="credits", db_index=False, db_constraint=False
    )
    amount = shillings()
    code = models.CharField(max_length=20)
    at = models.DateTimeField()
    transaction = models.ForeignKey(
        Transaction, on_delete=models.PROTECT, null=True, related_name="transfers", db_constraint=False
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key"], name="transfer_key_once"),
            models.CheckConstraint(condition=Q(amount__gt=Decimal(0)), name="transfer_amount_is_positive"),
            models.CheckConstraint(condition=~Q(debit=F("credit")), name="transfer_between_two_accounts"),
        ]
        indexes = [
            models.Index(fields=["debit", "id"], name="transfer_by_debit"),
            models.Index(fields=["credit", "id"], name="transfer_by_credit"),
        ]

    def __str__(self) -> str:
        return self.key


class LedgerDay(models.Model):
    """What was booked on one day of Nairobi to the accounts of one kind, in shillings; of transfers up to their mark.

    Transfers are never changed or removed, so a day only grows: a balance is its days and the transfers since.
    """

    day = models.DateField()
    kind = models.CharField(max_length=20, choices=LedgerAccount.Kind.choices)
    debits = models.DecimalField(max_digits=18, decimal_places=2)
    credits = models.DecimalField(max_digits=18, decimal_places=2)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "day"], name="ledger_day_once_a_kind")]

    def __str__(self) -> str:
        return f"{self.kind} on {self.day}"


class Verdict(models.Model):
    """A person's word on a held payout, which waits for a second person's: paid, with M-Pesa's `receipt`, or not paid.

    Kept for ever; open while it has neither been confirmed nor refused.
    """

    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="verdicts")
    receipt = models.CharField(max_length=64, blank=True, help_text="Empty: M-Pesa did not pay it.")
    grounds = models.CharField(max_length=300)
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_from = models.CharField(max_length=64)
    proposed_at = models.DateTimeField()
    closed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    closed_at = models.DateTimeField(null=True)
    confirmed = models.BooleanField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["transaction"], condition=Q(closed_at__isnull=True), name="one_open_verdict_a_transaction"
            ),
            models.CheckConstraint(
                condition=~Q(confirmed=True) | ~Q(closed_by=F("proposed_by")), name="two_people_confirm_a_verdict"
            ),
        ]

    def __str__(self) -> str:
        return f"Verdict {self.pk} on transaction {self.transaction_id}"


class Heartbeat(models.Model):
    """When a part of the machine was last seen at work: beat, or a worker by its name. Written by overview_tasks."""

    name = models.CharField(max_length=120, unique=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Figures(models.Model):
    """A set of figures that is dear to compute, as beat last had it computed: the home page reads it as it is."""

    name = models.CharField(max_length=40, unique=True)
    at = models.DateTimeField()
    value = models.JSONField()

    class Meta:
        verbose_name_plural = "figures"

    def __str__(self) -> str:
        return f"{self.name} at {self.at:%Y-%m-%d %H:%M}"


class InvariantCheck(models.Model):
    """When an invariant of reconciliation.py was last checked, and what broke it then."""

    invariant = models.CharField(max_length=120, unique=True)
    checked_at = models.DateTimeField()
    seconds = models.FloatField()
    broken_by = models.JSONField(default=list, help_text="The first rows that break it, in words.")
    broken_count = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.invariant
