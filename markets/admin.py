"""Django admin pages of markets and bets, read-only.

Pages of the console create and change markets, because each change is a decision in the audit trail.
"""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import TabularInline

from markets.models import Bet, Market, Outcome, Terms
from users.admin import ReadOnlyAdmin


class OutcomeInline(TabularInline):
    """Outcomes on the page of their market."""

    model = Outcome
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Bet)
class BetAdmin(ReadOnlyAdmin):
    """Bets: members place them, and settlement writes their results."""

    list_display = ("id", "market", "user", "outcome", "amount", "result", "payout", "placed_at", "taken_back_at")
    list_filter = ("result",)
    search_fields = ("public_id", "user__phone_number")
    list_select_related = ("market", "user")


@admin.register(Market)
class MarketAdmin(ReadOnlyAdmin):
    """Markets with their outcomes."""

    list_display = ("id", "question", "category", "status", "resolved_outcome", "end_date", "settled_at")
    list_filter = ("status", "category")
    search_fields = ("question",)
    inlines = (OutcomeInline,)


@admin.register(Terms)
class TermsAdmin(ReadOnlyAdmin):
    """Versions of the terms of markets."""

    list_display = ("id", "market", "version", "made_at", "made_by", "approved_by", "notice_until")
    list_select_related = ("market", "made_by", "approved_by")
