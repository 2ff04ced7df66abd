"""Tables of markets, their outcomes, and members' bets."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from decimal import Decimal
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.postgres.functions import RandomUUID
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.dateparse import parse_date

NAIROBI = ZoneInfo("Africa/Nairobi")
DEFAULT_OUTCOMES = ("Yes", "No")
# Columns that services write under the market's lock: settlement, the terms and the clock.
WRITTEN_BY_SERVICES = (
    "status",
    "resolved_outcome",
    "resolved_at",
    "settled_at",
    "terms_version",
    "take_back_until",
    "betting_suspended_at",
    "closed_at",
    "reminded_at",
)


def default_fee_pct() -> Decimal:
    return settings.PAYOUT_PLATFORM_FEE_PCT


class EndDateField(models.DateTimeField):
    """A time. A date alone means the end of that day in Nairobi."""

    def to_python(self, value: Any) -> Any:
        if isinstance(value, str):
            with suppress(ValueError):  # Django's own field explains the error.
                value = parse_date(value.strip()) or value
        if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
            return dt.datetime.combine(value, dt.time.max, tzinfo=NAIROBI)
        return super().to_python(value)

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        moment = self.to_python(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, moment)
        return moment

    def get_prep_value(self, value: Any) -> Any:
        return super().get_prep_value(self.to_python(value))


class Market(models.Model):
    """A question with two or more outcomes, and a pool.

    `status` changes only as `TRANSITIONS` allows; a trigger enforces this. A new market gets the outcomes Yes and No,
    unless `outcome_names` gives others. Question, description, source, fee and end are the market's terms. A trigger
    refuses to change them after the first bet, unless a new row of `Terms` has them (terms.py).
    """

    class Status(models.TextChoices):
        OPEN = "OPEN"
        CLOSED = "CLOSED"
        RESOLVED = "RESOLVED"
        SETTLED = "SETTLED"
        VOID = "VOID"

    # RESOLVED → CLOSED withdraws a resolution; SETTLED → CLOSED undoes a settlement.
    TRANSITIONS: ClassVar = {
        Status.OPEN: {Status.CLOSED},
        Status.CLOSED: {Status.OPEN, Status.RESOLVED},
        Status.RESOLVED: {Status.SETTLED, Status.VOID, Status.CLOSED},
        Status.SETTLED: {Status.CLOSED},
        Status.VOID: set(),
    }

    # References of payouts are derived from it (payments/settlement/references.py), so it never changes. The database
    # fills it in for a market that is inserted without it.
    public_id = models.UUIDField(default=uuid.uuid4, db_default=RandomUUID(), unique=True, editable=False)
    question = models.CharField(max_length=500)
    description = models.TextField(blank=True)
    source = models.CharField(
        max_length=500, blank=True, default="", db_default="", help_text="Where the answer to the question is read."
    )
    category = models.CharField(max_length=80, blank=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    resolved_outcome = models.CharField(max_length=120, null=True, blank=True)  # noqa: DJ001 - a key, absent until resolved
    platform_fee_pct = models.DecimalField(max_digits=5, decimal_places=2, default=default_fee_pct)
    end_date = EndDateField()
    effective_close_at = models.DateTimeField(
        null=True, blank=True, help_text="When the event really ended: later bets get their stakes back."
    )
    created_at = models.DateTimeField(default=timezone.now)
    resolved_at = models.DateTimeField(null=True, blank=True)
    settled_at = models.DateTimeField(null=True, blank=True)
    terms_version = models.PositiveSmallIntegerField(default=1, db_default=1, editable=False)
    take_back_until = models.DateTimeField(
        null=True, blank=True, help_text="Until then members may take back stakes made under older terms."
    )
    betting_suspended_at = models.DateTimeField(null=True, blank=True, help_text="Since then staff suspend betting.")
    closed_at = models.DateTimeField(
        null=True, blank=True, help_text="When staff or the clock closed it for good. It never opens again."
    )

    reminded_at = models.DateTimeField(
        null=True, blank=True, help_text="When staff were last reminded that it needs its outcome."
    )

    _outcome_names: tuple[str, ...] | None = None

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(platform_fee_pct__gte=0, platform_fee_pct__lte=100), name="fee_is_a_percentage"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["status", "-end_date"], name="market_by_status")]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._as_read: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def __str__(self) -> str:
        return f"Market {self.pk}: {self.question}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        new = self._state.adding
        if not new and kwargs.get("update_fields") is None:
            # A shell may have loaded the market before it was settled or closed. An old copy must not overwrite the
            # settlement. Of the columns that services write, only those that were changed on this copy are saved.
            unchanged = {name for name, value in self._as_read.items() if self.__dict__.get(name) == value}
            columns = {field.name for field in self._meta.concrete_fields} - self.get_deferred_fields()
            kwargs["update_fields"] = columns - {"id"} - unchanged
        with transaction.atomic(using=kwargs.get("using")):
            super().save(*args, **kwargs)
            if new:
                names = DEFAULT_OUTCOMES if self._outcome_names is None else self._outcome_names
                self._outcome_names = None
                Outcome.objects.bulk_create([Outcome(market=self, name=name) for name in names])
        self._remember(kwargs.get("update_fields"))

    @classmethod
    def from_db(cls, db: str | None, field_names: Collection[str], values: Collection[Any], **more: Any) -> Market:
        market = super().from_db(db, field_names, values, **more)
        market._remember()
        return market

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[Market] | None = None,
    ) -> None:
        names = None if fields is None else list(fields)
        super().refresh_from_db(using, names, from_queryset)
        self._remember(names)

    def _remember(self, names: Iterable[str] | None = None) -> None:
        for name in WRITTEN_BY_SERVICES if names is None else set(WRITTEN_BY_SERVICES).intersection(names):
            if name in self.__dict__:
                self._as_read[name] = self.__dict__[name]

    @property
    def outcome_names(self) -> tuple[str, ...]:
        return self._outcome_names or tuple(self.outcomes.order_by("pk").values_list("name", flat=True))

    @outcome_names.setter
    def outcome_names(self, names: tuple[str, ...]) -> None:
        self._outcome_names = tuple(names)

    @property
    def running_outcomes(self) -> tuple[str, ...]:
        """Return the names of the outcomes that can win: all but the scratched ones."""
        return tuple(self.outcomes.filter(scratched_at=None).order_by("pk").values_list("name", flat=True))


class Outcome(models.Model):
    """A possible answer to a market's question. Bets reference it by (market, name)."""

    market = models.ForeignKey(Market, on_delete=models.PROTECT, related_name="outcomes")
    name = models.CharField(max_length=120)
    scratched_at = models.DateTimeField(null=True, blank=True, help_text="Since then it takes no bets and cannot win.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["market", "name"], name="outcome_once_a_market"),
            models.CheckConstraint(condition=~Q(name=""), name="outcome_has_a_name"),
        ]

    def __str__(self) -> str:
        return self.name


class Terms(models.Model):
    """One version of a market's terms: the rules that a bet is placed under. A version is never changed.

    A market that was made without the service has no row for its first version, until its terms change. The columns of
    the market are then its first version. `notice_until` is the end of the notice in which members may take back
    stakes made under older versions; it is null if there were no bets. `told_up_to` is the id of the last member who
    got a notice about this version.
    """

    market = models.ForeignKey(Market, on_delete=models.PROTECT, related_name="terms")
    version = models.PositiveSmallIntegerField()
    question = models.CharField(max_length=500)
    description = models.TextField(blank=True)
    source = models.CharField(max_length=500, blank=True)
    outcomes = models.JSONField(help_text="Names of the outcomes, in their order.")
    platform_fee_pct = models.DecimalField(max_digits=5, decimal_places=2)
    end_date = models.DateTimeField()
    reason = models.CharField(max_length=300, blank=True)
    made_at = models.DateTimeField()
    made_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    approved_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    notice_until = models.DateTimeField(null=True)
    told_up_to = models.BigIntegerField(default=0)

    class Meta:
        verbose_name_plural = "terms"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["market", "version"], name="terms_once_a_version"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["id"], condition=Q(notice_until__isnull=False, told_up_to__lt=2**62), name="terms_to_tell"
            ),
        ]

    def __str__(self) -> str:
        return f"Version {self.version} of the terms of market {self.market_id}"


class Bet(models.Model):
    """A member's bet. `amount` is the stake, `payout` the dividend, both in shillings.

    At insert a trigger locks the market FOR SHARE. It refuses a market that is not OPEN, suspended betting and a
    scratched outcome, and gives the bet the market's current version of the terms. The pair (market, outcome)
    references an outcome of the market. Only settlement and a take-back write `result` and `payout`. A bet that was
    taken back is in no pool and no settlement. All other columns are fixed once the bet is placed.
    """

    class Result(models.TextChoices):
        PENDING = "PENDING"
        WON = "WON"
        LOST = "LOST"
        REFUNDED = "REFUNDED"

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="bets")
    market = models.ForeignKey(
        Market, on_delete=models.PROTECT, related_name="bets", db_index=False, db_constraint=False
    )
    outcome = models.CharField(max_length=120)
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    result = models.CharField(max_length=10, choices=Result.choices, default=Result.PENDING)
    payout = models.DecimalField(max_digits=14, decimal_places=2, default=Decimal("0.00"))
    placed_at = models.DateTimeField(default=timezone.now)
    # Null if the member sent no key, because a unique index ignores nulls.
    client_ref = models.CharField(max_length=80, null=True, blank=True, help_text="Its Idempotency-Key.")  # noqa: DJ001
    terms_version = models.PositiveSmallIntegerField(
        default=1, db_default=1, editable=False, help_text="The version of the market's terms that it was placed under."
    )
    taken_back_at = models.DateTimeField(
        null=True, blank=True, help_text="When the member took the stake back after a change of terms."
    )

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(taken_back_at=None) | Q(result="REFUNDED", payout=F("amount")),
                name="taken_back_bet_is_refunded",
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="stake_is_positive"),
            models.CheckConstraint(condition=Q(payout__gte=0), name="dividend_is_not_negative"),
            models.UniqueConstraint(
                fields=["user", "client_ref"], condition=Q(client_ref__isnull=False), name="bet_once_a_client_ref"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["market", "id"], name="bet_by_market"),
            # A settlement handles a few thousand members at a time, in order of id, and reads only their bets.
            models.Index(fields=["market", "user"], name="bet_by_market_and_member"),
            models.Index(fields=["market"], condition=Q(taken_back_at__isnull=False), name="bet_taken_back"),
        ]

    def __str__(self) -> str:
        return f"Bet {self.pk}: {self.amount} on {self.outcome}"


class Watermark(models.Model):
    """Watermark of a table: the rows up to this id are summed elsewhere, and no new row can appear among them.

    See watermarks.py.
    """

    table = models.CharField(max_length=40, unique=True)
    up_to = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.table} up to {self.up_to}"


class Tally(models.Model):
    """Sum of the stakes, in shillings, that were placed on one outcome within one slot of five minutes.

    A tally has the bets up to the watermark. Bets are never deleted, so a tally only grows. A market's pool is the sum
    of its tallies and of the bets above the watermark, less the bets that were taken back.
    """

    market = models.ForeignKey(
        Market, on_delete=models.PROTECT, related_name="tallies", db_index=False, db_constraint=False
    )
    outcome = models.CharField(max_length=120)
    slot = models.DateTimeField(help_text="When the five minutes began.")
    stakes = models.DecimalField(max_digits=16, decimal_places=2)
    bets = models.PositiveBigIntegerField()

    class Meta:
        verbose_name_plural = "tallies"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["market", "outcome", "slot"], name="tally_once_an_outcome_and_slot"),
        ]

    def __str__(self) -> str:
        return f"{self.bets} bets on {self.outcome} of market {self.market_id}"
