"""Double-entry ledger: accounts, transfers, daily sums and recoveries."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from markets.models import Market
from payments.models.columns import shillings
from payments.models.payouts import Transaction


class LedgerAccount(models.Model):
    """An account of the ledger. A debit increases assets and expenses; a credit increases all other kinds."""

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
        MISDIRECTED = "misdirected"
        SUSPENSE = "suspense"

    GROWS_BY_DEBIT: ClassVar = {
        Kind.MPESA_UTILITY,
        Kind.MPESA_PAYBILL,
        Kind.CHARGE_EXPENSE,
        Kind.RECEIVABLE,
        Kind.BAD_DEBT,
        Kind.MISDIRECTED,
        Kind.SUSPENSE,
    }

    code = models.CharField(
        max_length=40, help_text="wallet:<member>, receivable:<member>, pool:<market>, or the kind itself."
    )
    kind = models.CharField(max_length=20, choices=Kind.choices)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)
    market = models.ForeignKey(Market, on_delete=models.PROTECT, null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            # Here and below, a UniqueConstraint, because unique=True would also create an index for LIKE.
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


class Transfer(models.Model):
    """One amount moved from one account to another. A transfer is never changed or removed; later transfers correct it.

    `debit` and `credit` are the two accounts. `key` is unique, so no transfer is booked twice. A trigger checks once
    per statement that the accounts and the transaction exist. Foreign keys would check three times per row.
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
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key"], name="transfer_key_once"),
            models.CheckConstraint(condition=Q(amount__gt=Decimal(0)), name="transfer_amount_is_positive"),
            models.CheckConstraint(condition=~Q(debit=F("credit")), name="transfer_between_two_accounts"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["debit", "id"], name="transfer_by_debit"),
            models.Index(fields=["credit", "id"], name="transfer_by_credit"),
        ]

    def __str__(self) -> str:
        return self.key


class LedgerDay(models.Model):
    """The debits and credits of one kind of account on one day in Nairobi, in shillings, up to the watermark.

    Transfers are never changed or removed, so the sums only grow. A balance is the sums of all days plus the transfers
    after the watermark.
    """

    day = models.DateField()
    kind = models.CharField(max_length=20, choices=LedgerAccount.Kind.choices)
    debits = models.DecimalField(max_digits=18, decimal_places=2)
    credits = models.DecimalField(max_digits=18, decimal_places=2)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["kind", "day"], name="ledger_day_once_a_kind")]

    def __str__(self) -> str:
        return f"{self.kind} on {self.day}"


class Recovery(models.Model):
    """The amount that one member owes back from one settlement, after an undo or a double payment.

    amount = outstanding + recovered + written_off, in shillings. `decision` is the operator's: none yet (OPEN), keep up
    to `pct` % of each later dividend (SET_OFF), or bear the loss (WRITTEN_OFF).
    """

    class Decision(models.TextChoices):
        OPEN = "OPEN"
        SET_OFF = "SET_OFF"
        WRITTEN_OFF = "WRITTEN_OFF"

    # WRITTEN_OFF → OPEN: late evidence of a payment increased the amount owed.
    TRANSITIONS: ClassVar = {
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
    pct = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="At most this percentage of each later dividend."
    )
    reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField()
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "recoveries"
        constraints: ClassVar = [
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
        indexes: ClassVar = [
            models.Index(fields=["user"], condition=Q(decision="SET_OFF"), name="recovery_to_set_off"),
        ]

    def __str__(self) -> str:
        return f"Recovery {self.pk} of {self.amount}"

    @property
    def outstanding(self) -> Decimal:
        """The amount still owed, in shillings."""
        return self.amount - self.recovered - self.written_off
