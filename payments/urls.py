from django.urls import path, re_path

from markets.admin_settlement_views import retry_failed_payouts_batch, retry_payout
from payments import dispute_views, views
from payments.admin_recovery_views import list_recoveries, set_off, undo_costs, write_off

HEX = r"(?P<token>[0-9a-f]{64})/"

urlpatterns = [
    path("b2c-callback/", views.b2c_result_callback, name="b2c_callback"),
    re_path(rf"^b2c-callback/{HEX}$", views.b2c_result_callback, name="b2c_result"),
    re_path(rf"^b2c-timeout/{HEX}$", views.b2c_timeout_callback, name="b2c_timeout"),
    re_path(rf"^status-result/{HEX}$", views.status_result_callback, name="status_result"),
    path(
        "transactions/<uuid:transaction_id>/disputes/",
        dispute_views.TransactionDisputes.as_view(),
        name="transaction_disputes",
    ),
    path("admin/disputes/", dispute_views.DisputeQueue.as_view(), name="disputes"),
    path("admin/disputes/<uuid:dispute_id>/answer/", dispute_views.DisputeAnswer.as_view(), name="answer_dispute"),
    path("admin/disputes/<uuid:dispute_id>/uphold/", dispute_views.DisputeUphold.as_view(), name="uphold_dispute"),
    path("admin/disputes/<uuid:dispute_id>/reject/", dispute_views.DisputeReject.as_view(), name="reject_dispute"),
    re_path(rf"^balance-result/{HEX}$", views.balance_result_callback, name="balance_result"),
    path("admin/recoveries/", list_recoveries, name="recoveries"),
    path("admin/recoveries/set-off/", set_off, name="set_off"),
    path("admin/recoveries/write-off/", write_off, name="write_off"),
    path("admin/undo-costs/", undo_costs, name="undo_costs"),
    # The guide's part 8 calls these two here as well; the names of its part 2.6 reverse to /api/markets/.
    path("admin/retry-payout/", retry_payout),
    path("admin/retry-failed-payouts/", retry_failed_payouts_batch),
]
