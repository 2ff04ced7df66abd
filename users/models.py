"""Tables of members and staff, proofs of tokens, the audit trail, notes, notices and decided figures."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.crypto import salted_hmac

from users import phone, roles
from users.decision_models import Figure as Figure
from users.decision_models import Proposal as Proposal
from users.decision_models import SingleHandedAct as SingleHandedAct
from users.login_models import ApiKey as ApiKey
from users.login_models import EnrolmentCode as EnrolmentCode
from users.login_models import KnownAddress as KnownAddress
from users.login_models import PinCounter as PinCounter
from users.login_models import TokenProof as TokenProof
from users.personal import SealedTextField


def _is_phone_number(typed: str) -> None:
    try:
        phone.normalise(typed)
    except phone.NotAPhoneNumber as error:
        raise ValidationError(str(error)) from error


class PhoneField(models.CharField):
    """A phone number, typed in any form. It is stored and looked up as twelve digits."""

    default_validators = [_is_phone_number]  # noqa: RUF012 - the base class declares it so

    def formfield(self, **options: Any) -> Any:
        return super().formfield(**{"max_length": 20, **options})  # The typed form may be longer than the stored one.

    def to_python(self, value: Any) -> Any:
        try:
            return phone.normalise(value)
        except phone.NotAPhoneNumber:
            return value  # The validator explains the error.

    def get_prep_value(self, value: Any) -> Any:
        value = super().get_prep_value(value)
        return value if value is None else phone.normalise(value)

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        stored = phone.normalise(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, stored)
        return stored


class CustomUserManager(BaseUserManager["CustomUser"]):
    """Manager that creates members and finds them by any form of their phone number."""

    def create_user(
        self, phone_number: str, full_name: str = "", pin: str | None = None, password: str | None = None, **fields: Any
    ) -> CustomUser:
        """Create a member. Give either `pin` or `password`: both mean the PIN, which Django calls a password.

        Raises: phone.NotAPhoneNumber; django.db.IntegrityError if another member already has the number.
        """
        user = self.model(phone_number=phone_number, full_name=full_name, **fields)
        user.set_password(pin if pin is not None else password)
        user.save(using=self._db)
        return user

    def create_superuser(
        self, phone_number: str, full_name: str = "", password: str | None = None, pin: str | None = None, **fields: Any
    ) -> CustomUser:
        return self.create_user(phone_number, full_name, pin, password, is_staff=True, is_superuser=True, **fields)

    def bulk_create(self, objs: Iterable[CustomUser], *args: Any, **kwargs: Any) -> list[CustomUser]:
        created = super().bulk_create(objs, *args, **kwargs)
        for user in created:
            user._loaded = user._held()
        return created

    def get_by_natural_key(self, username: str | None) -> CustomUser:
        try:
            return self.get(phone_number=phone.normalise(username or ""))
        except phone.NotAPhoneNumber as error:
            raise self.model.DoesNotExist(str(error)) from error


class CustomUser(AbstractBaseUser, PermissionsMixin):
    """A member. With `is_staff` also a member of staff.

    `save` writes only what this object changed. `balance` is the cached balance of the member's wallet, in shillings.
    `save` does not write this column, because the ledger does. If code assigns `balance` and saves, the difference to
    the loaded value is posted as a transfer against `opening`. The payments app installs the trigger that posts this
    transfer. In production the trigger refuses the assignment.
    """

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    phone_number = PhoneField(max_length=12, unique=True)
    full_name = models.CharField(max_length=120, blank=True)
    balance = models.DecimalField(max_digits=14, decimal_places=2, default=Decimal("0.00"))
    is_staff = models.BooleanField(default=False, help_text="May use the console and the admin calls.")
    is_active = models.BooleanField(default=True)
    date_joined = models.DateTimeField(default=timezone.now)
    # A trigger counts it up when the PIN, the status or a role is lost or changed. Then sessions and tokens end.
    session_epoch = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    # No money leaves to a phone that was just changed before this time.
    phone_held_until = models.DateTimeField(null=True, blank=True, editable=False)

    # The stored values of the columns by name, as this object last read or wrote them.
    _loaded: Mapping[str, Any] = MappingProxyType({})

    objects = CustomUserManager()
    USERNAME_FIELD = "phone_number"
    REQUIRED_FIELDS: ClassVar = ["full_name"]

    class Meta:
        verbose_name = "member"
        permissions: ClassVar = list(roles.PERMISSIONS.items())
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(phone_number__regex=phone.STORED), name="phone_is_a_kenyan_mobile"),
            models.CheckConstraint(condition=Q(balance__gte=0), name="wallet_is_never_negative"),
        ]

    def money_may_leave_at(self, at: datetime) -> datetime:
        """Return the first time from `at` on at which money may leave to the member's phone."""
        return max(at, self.phone_held_until or at)

    def __str__(self) -> str:
        return f"{self.full_name or 'Member'} ({phone.masked(self.phone_number)})"

    def _get_session_auth_hash(self, secret: str | None = None) -> str:
        """Return the hash that a console session must have. Another PIN or another epoch ends the session."""
        key_salt = "users.models.CustomUser.session"
        text = f"{self.session_epoch}:{self.password}"
        return salted_hmac(key_salt, text, secret=secret, algorithm="sha256").hexdigest()

    def get_full_name(self) -> str:
        """Return the name that the console shows for the person who is logged in."""
        return self.full_name or phone.masked(self.phone_number)

    @classmethod
    def from_db(cls, db: str | None, field_names: Collection[str], values: Collection[Any], **more: Any) -> CustomUser:
        user = super().from_db(db, field_names, values, **more)
        user._loaded = user._held()
        return user

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[CustomUser] | None = None,
    ) -> None:
        names = None if fields is None else list(fields)
        super().refresh_from_db(using, names, from_queryset)
        held = self._held()
        if names is None:
            self._loaded = held
        else:
            self._remember({name: held[name] for name in names if name in held})

    def _remember(self, saved: Mapping[str, Any]) -> None:
        self._loaded = {**self._loaded, **saved}

    def _held(self) -> dict[str, Any]:
        """Return the values of the columns by name. A deferred column is missing."""
        return {field.name: self.__dict__[field.name] for field in _columns() if field.name in self.__dict__}

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the member. Without `update_fields` only the columns that this object changed are written.

        So an object that was read before a change of the PIN, the phone or a role never writes the old value back.
        """
        if self._state.adding:
            super().save(*args, **kwargs)
            self._loaded = self._held()
            return
        named = kwargs.pop("update_fields", None)
        held = self._held()
        changed = {name for name, value in held.items() if name not in self._loaded or self._loaded[name] != value}
        columns = (changed if named is None else set(named)) - {"balance"}
        assigned = held.get("balance") if named is None or "balance" in named else None
        with transaction.atomic(using=kwargs.get("using")):
            super().save(*args, update_fields=columns, **kwargs)
            if assigned is not None and assigned != self._loaded.get("balance"):
                self._assign_balance(assigned)
            # After a rollback the values still differ from the stored ones, so the next save writes them again.
            saved = {name: value for name, value in self._held().items() if name in columns}
            transaction.on_commit(lambda: self._remember(saved))

    def _assign_balance(self, assigned: Any) -> None:
        loaded = self._loaded.get("balance")
        # Without a loaded balance, no difference to an assigned one can be computed.
        if hasattr(assigned, "resolve_expression") or loaded is None:
            balance = assigned
        else:
            balance = F("balance") + (Decimal(assigned) - loaded)
        CustomUser.objects.filter(pk=self.pk).update(balance=balance)
        self.refresh_from_db(fields=["balance"])


def _columns() -> list[models.Field[Any, Any]]:
    return [field for field in CustomUser._meta.concrete_fields if not field.primary_key]


class MemberKey(models.Model):
    """The random secret from which the key of a member's personal texts is made; see users/personal.py.

    A trigger gives one to each new member. Nobody changes it: the owner's command destroys it, which sets it to null.
    """

    user = models.OneToOneField(CustomUser, on_delete=models.PROTECT, primary_key=True, related_name="+")
    secret = models.BinaryField(null=True)
    destroyed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"Key of member {self.user_id}" + (", destroyed" if self.destroyed_at else "")


class AuditEntry(models.Model):
    """A recorded decision; see users/audit.py. A trigger sets its number and its hashes.

    `before` and `after` are canonical JSON. They are stored as text because the hash covers exactly this text. Personal
    texts in them, and the reason of a decision about a member, are sealed under the member's key.
    """

    number = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    action = models.CharField(max_length=60)
    actor = models.ForeignKey(CustomUser, on_delete=models.PROTECT, null=True, related_name="decisions")
    source = models.CharField(max_length=64)
    subject = models.CharField(max_length=80)
    before = models.TextField(default="{}")
    after = models.TextField(default="{}")
    reason = SealedTextField(blank=True)
    previous_hash = models.CharField(max_length=64, editable=False)
    hash = models.CharField(max_length=64, editable=False)

    class Meta:
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [models.Index(fields=["subject", "number"], name="audit_by_subject")]

    def __str__(self) -> str:
        return f"{self.number}: {self.action} {self.subject}"


class MemberNote(models.Model):
    """A note that staff wrote about a member; see users/staff_notes.py. Notes are never edited: write a new one."""

    member = models.ForeignKey(CustomUser, on_delete=models.PROTECT, related_name="notes")
    author = models.ForeignKey(CustomUser, on_delete=models.PROTECT, related_name="notes_written")
    at = models.DateTimeField()
    text = SealedTextField()

    def __str__(self) -> str:
        return f"Note {self.pk} about member {self.member_id}"


class Notice(models.Model):
    """A message to a member. At most one exists for each kind, subject (such as a payout) and event.

    `sent_at` is the time of its SMS.
    """

    user = models.ForeignKey(CustomUser, on_delete=models.PROTECT, related_name="notices", db_index=False)
    kind = models.CharField(max_length=20)
    subject = models.CharField(max_length=80)
    event = models.CharField(max_length=40)
    text = SealedTextField()
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "subject", "event"], name="notice_once_an_event"),
        ]
        indexes: ClassVar = [models.Index(fields=["user", "-id"], name="notice_by_member")]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.event}"
