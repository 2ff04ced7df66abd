"""Paths of markets, including the paths of the guide's part 2.6. The views are in api/rest."""

from django.urls import path

from api.rest import certificates, decisions, disputes, lifecycle, markets, settlement
from markets.admin_settlement_views import resolve_market, retry_failed_payouts_batch, retry_payout, settlement_status

urlpatterns = [
    path("", markets.MarketList.as_view(), name="markets"),
    path("<int:market_id>/", markets.MarketDetail.as_view(), name="market"),
    path("<int:market_id>/bets/", markets.MarketBets.as_view(), name="market_bets"),
    path(
        "<int:market_id>/bets/<uuid:bet_id>/explanation/",
        certificates.BetExplanation.as_view(),
        name="explanation",
    ),
    path("<int:market_id>/bets/<uuid:bet_id>/take-back/", markets.BetTakeBack.as_view(), name="take_back"),
    path("<int:market_id>/bets/<uuid:bet_id>/disputes/", disputes.BetDisputes.as_view(), name="bet_disputes"),
    path("<int:market_id>/settlement/", certificates.SettlementCertificate.as_view(), name="certificate"),
    path("<int:market_id>/settlement/bets.jsonl", certificates.SettlementBets.as_view(), name="certificate_bets"),
    path("admin/resolve/", resolve_market, name="resolve_market"),
    path("admin/create/", lifecycle.create_market, name="create_market"),
    path("admin/change/", lifecycle.change_market, name="change_market"),
    path("admin/suspend-betting/", lifecycle.suspend_betting, name="suspend_betting"),
    path("admin/resume-betting/", lifecycle.resume_betting, name="resume_betting"),
    path("admin/close/", lifecycle.close_market, name="close_market"),
    path("admin/suspend-sending/", lifecycle.suspend_sending, name="suspend_market_sending"),
    path("admin/resume-sending/", lifecycle.resume_sending, name="resume_market_sending"),
    path("admin/void/", settlement.void_market, name="void_market"),
    path("admin/settlement-preview/<int:market_id>/", decisions.settlement_preview, name="settlement_preview"),
    path("admin/approve/", decisions.approve_proposal, name="approve_proposal"),
    path("admin/reject/", decisions.reject_proposal, name="reject_proposal"),
    path("admin/withdraw/", decisions.withdraw_resolution, name="withdraw_resolution"),
    path("admin/scratch/", decisions.scratch_outcome, name="scratch_outcome"),
    path("admin/undo/", decisions.undo_settlement, name="undo_settlement"),
    path("admin/settlement-status/<int:market_id>/", settlement_status, name="settlement_status"),
    path("admin/retry-payout/", retry_payout, name="retry_payout"),
    path("admin/retry-failed-payouts/", retry_failed_payouts_batch, name="retry_failed_payouts"),
]
