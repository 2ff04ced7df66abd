from decimal import Decimal
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline

from api.bodies import actor
from markets import parimutuel, queries
from markets.models import DEFAULT_OUTCOMES, Bet, Market, Outcome
from payments import proposals, resolutions, settlement_tasks
from payments.admin import ReadOnlyAdmin

REFUSALS = (
    resolutions.MarketAlreadyResolved,
    resolutions.UnknownReason,
    parimutuel.UnknownOutcome,
    proposals.StakeInMarket,
    proposals.ProposalWaits,
)


class OutcomeInline(TabularInline):
    model = Outcome
    exclude = ("scratched_at",)
    extra = 0
    can_delete = False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Bet)
class BetAdmin(ReadOnlyAdmin):
    """Bets are read here; they are placed by members and decided by settlement."""

    list_display = ("id", "market", "user", "outcome", "amount", "result", "payout", "placed_at")
    list_filter = ("result",)
    search_fields = ("public_id", "user__phone_number")
    list_select_related = ("market", "user")


@admin.register(Market)
class MarketAdmin(ModelAdmin):
    """Markets, and the decision on each: choose one in the list, then the action `decide`."""

    list_display = ("id", "question", "category", "status", "resolved_outcome", "end_date", "settled_at")
    list_filter = ("status", "category")
    search_fields = ("question",)
    exclude = ("effective_close_at",)  # It comes with the resolution.
    readonly_fields = ("status", "resolved_outcome", "created_at", "resolved_at", "settled_at")
    inlines = (OutcomeInline,)
    actions = ("decide",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Market | None = None) -> tuple[str, ...]:
        # What members bet on stays as they saw it.
        fixed = ("question", "platform_fee_pct") if obj is not None else ()
        return (*self.readonly_fields, *fixed)

    def save_model(self, request: HttpRequest, obj: Market, form: Any, change: bool) -> None:
        if not change:
            obj.outcome_names = ()  # Those that were typed come with the formset, after the market.
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if not form.instance.outcomes.exists():
            Outcome.objects.bulk_create([Outcome(market=form.instance, name=name) for name in DEFAULT_OUTCOMES])

    @admin.action(description="Decide: resolve or void", permissions=["change"])
    def decide(self, request: HttpRequest, chosen: QuerySet[Market]) -> HttpResponse | None:
        market = chosen.first()
        if market is None or chosen.count() != 1:
            messages.error(request, "Choose one market: each is decided by itself. Nothing was decided.")
            return None
        decision, _, value = request.POST.get("decision", "").partition(":")
        if not decision or not request.POST.get("sure"):
            return self._ask(request, market)
        if decision not in ("win", "void"):
            messages.error(request, "Choose an outcome, or a reason to void. Nothing was decided.")
            return None
        try:
            resolved = resolutions.resolve(
                market_id=market.pk,
                rule="WINNER" if decision == "win" else "VOID",
                weights={value: Decimal(100)} if decision == "win" else {},
                by=actor(request),
                at=timezone.now(),
                policy=settlement_tasks.policy(),
                reason="" if decision == "win" else value,
            )
        except REFUSALS as refusal:
            messages.error(request, f"{refusal} Nothing was decided.")
            return None
        if isinstance(resolved, proposals.Proposed):
            messages.warning(request, f"Proposal {resolved.proposal_id}: another member of staff must approve it.")
            return None
        settlement_tasks.hint(settlement_tasks.settle_market, resolved.market_id, task_id=resolved.public_id)
        messages.success(request, f"Market {market.pk} is decided. Its settlement runs now.")
        return None

    def _ask(self, request: HttpRequest, market: Market) -> HttpResponse:
        pools = queries.pools([market.pk]).get(market.pk, {})
        outcomes = [
            {"name": name, "staked": pools.get(name, (Decimal("0.00"), 0))[0], "bets": pools.get(name, (0, 0))[1]}
            for name in market.running_outcomes
        ]
        context = {
            **self.admin_site.each_context(request),
            "title": f"Decide market {market.pk}",
            "market": market,
            "outcomes": outcomes,
            "void_reasons": resolutions.VOID_REASONS,
        }
        return TemplateResponse(request, "admin/markets/decide.html", context)
