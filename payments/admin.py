"""Read-only records of payments in the console. Actions are on the console's other pages."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import TabularInline

from payments.models import (
    Attempt,
    Breaker,
    Callback,
    Certificate,
    Dispute,
    DisputeEvent,
    FloatReading,
    LedgerAccount,
    Recovery,
    Settlement,
    StatusQuery,
    Transaction,
    Transfer,
    Verdict,
)
from users.admin import ReadOnlyAdmin


class AttemptInline(TabularInline):
    model = Attempt
    fields = ("originator_conversation_id", "kind", "state", "posted_at", "result_code", "result_words", "receipt")
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Transaction)
class TransactionAdmin(ReadOnlyAdmin):
    list_display = ("id", "external_ref", "user", "type", "destination", "amount", "status", "reason", "created_at")
    list_filter = ("status", "type", "destination")
    search_fields = ("external_ref", "receipt", "phone_number")
    list_select_related = ("user",)
    inlines = (AttemptInline,)


@admin.register(Breaker)
class BreakerAdmin(ReadOnlyAdmin):
    list_display = ("cause", "opened_at", "probe_at", "probes", "reason", "opened_by")


@admin.register(Settlement)
class SettlementAdmin(ReadOnlyAdmin):
    list_display = ("id", "market", "number", "rule", "state", "pool", "fee", "net", "resolved_by", "settled_at")
    list_filter = ("state", "rule")
    list_select_related = ("market", "resolved_by")


@admin.register(Recovery)
class RecoveryAdmin(ReadOnlyAdmin):
    list_display = ("id", "user", "settlement", "amount", "recovered", "written_off", "decision", "pct", "decided_by")
    list_filter = ("decision",)
    list_select_related = ("user", "settlement", "decided_by")


@admin.register(FloatReading)
class FloatReadingAdmin(ReadOnlyAdmin):
    list_display = ("id", "source", "amount", "read_at", "asked_at")
    list_filter = ("source",)
    exclude = ("token_hash",)


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    list_display = (
        "originator_conversation_id",
        "amount",
        "state",
        "posted_at",
        "next_query_at",
        "result_code",
        "receipt",
    )
    list_filter = ("state", "kind")
    search_fields = ("originator_conversation_id", "conversation_id", "receipt")
    exclude = ("token_hash",)


@admin.register(StatusQuery)
class StatusQueryAdmin(ReadOnlyAdmin):
    list_display = ("id", "attempt", "number", "asked_at", "verdict", "answered_at")
    list_filter = ("verdict",)
    list_select_related = ("attempt",)
    exclude = ("token_hash",)


@admin.register(Callback)
class CallbackAdmin(ReadOnlyAdmin):
    """Stored callbacks, without their bodies, because these hold names and phone numbers of members."""

    list_display = ("id", "kind", "attempt", "received_at", "source_ip", "trusted", "applied_at", "verdict")
    list_filter = ("kind", "trusted")
    list_select_related = ("attempt",)
    exclude = ("body",)


@admin.register(LedgerAccount)
class LedgerAccountAdmin(ReadOnlyAdmin):
    list_display = ("code", "kind")
    list_filter = ("kind",)
    search_fields = ("code",)


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin):
    # There is no filter by code, because it would read every transfer to list the codes. A search by key uses an index.
    list_display = ("key", "debit", "credit", "amount", "code", "at")
    search_fields = ("=key",)
    list_select_related = ("debit", "credit")


@admin.register(Verdict)
class VerdictAdmin(ReadOnlyAdmin):
    list_display = ("id", "transaction", "receipt", "grounds", "proposed_by", "proposed_at", "closed_by", "confirmed")
    list_select_related = ("transaction", "proposed_by", "closed_by")


@admin.register(Certificate)
class CertificateAdmin(ReadOnlyAdmin):
    list_display = ("settlement", "issued_at", "bet_count", "hash")
    list_select_related = ("settlement",)


class DisputeEventInline(TabularInline):
    model = DisputeEvent
    fields = ("at", "kind", "by", "text")
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Dispute)
class DisputeAdmin(ReadOnlyAdmin):
    list_display = ("public_id", "user", "state", "opened_at", "due_at", "remedy", "remedy_state", "closed_by")
    list_filter = ("state", "remedy", "remedy_state")
    list_select_related = ("user", "closed_by")
    raw_id_fields = ("bet", "transaction", "settlement")
    inlines = (DisputeEventInline,)
