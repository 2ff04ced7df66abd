"""Django admin pages of markets and bets."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from markets.models import DEFAULT_OUTCOMES, Bet, Market, Outcome
from users.admin import ReadOnlyAdmin


class OutcomeInline(TabularInline):
    """Outcomes in the form of their market. Staff can add outcomes, but never change or delete them."""

    model = Outcome
    exclude = ("scratched_at",)
    extra = 0
    can_delete = False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Bet)
class BetAdmin(ReadOnlyAdmin):
    """Bets, read-only: members place them, and settlement writes their results."""

    list_display = ("id", "market", "user", "outcome", "amount", "result", "payout", "placed_at")
    list_filter = ("result",)
    search_fields = ("public_id", "user__phone_number")
    list_select_related = ("market", "user")


@admin.register(Market)
class MarketAdmin(ModelAdmin):
    """Forms that create a market and edit its description. Decisions are made on its page in the console."""

    list_display = ("id", "question", "category", "status", "resolved_outcome", "end_date", "settled_at")
    list_filter = ("status", "category")
    search_fields = ("question",)
    exclude = ("effective_close_at",)  # The resolution sets this time.
    readonly_fields = ("status", "resolved_outcome", "created_at", "resolved_at", "settled_at")
    inlines = (OutcomeInline,)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Market | None = None) -> tuple[str, ...]:
        # Members have bet on this question at this fee, so the question and the fee are fixed.
        fixed = ("question", "platform_fee_pct") if obj is not None else ()
        return (*self.readonly_fields, *fixed)

    def save_model(self, request: HttpRequest, obj: Market, form: Any, change: bool) -> None:
        if not change:
            obj.outcome_names = ()  # The formset adds the typed outcomes after the market.
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if not form.instance.outcomes.exists():
            Outcome.objects.bulk_create([Outcome(market=form.instance, name=name) for name in DEFAULT_OUTCOMES])
