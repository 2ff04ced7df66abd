from django.urls import path, re_path

from api.rest import callbacks, disputes
from api.rest.receivables import list_recoveries, set_off, undo_costs, write_off
from api.rest.settlement import retry_failed_payouts_batch, retry_payout

HEX = r"(?P<token>[0-9a-f]{64})/"

urlpatterns = [
    path("b2c-callback/", callbacks.b2c_result_callback, name="b2c_callback"),
    re_path(rf"^b2c-callback/{HEX}$", callbacks.b2c_result_callback, name="b2c_result"),
    re_path(rf"^b2c-timeout/{HEX}$", callbacks.b2c_timeout_callback, name="b2c_timeout"),
    re_path(rf"^status-result/{HEX}$", callbacks.status_result_callback, name="status_result"),
    path(
        "transactions/<uuid:transaction_id>/disputes/",
        disputes.TransactionDisputes.as_view(),
        name="transaction_disputes",
    ),
    path("admin/disputes/", disputes.DisputeQueue.as_view(), name="disputes"),
    path("admin/disputes/<uuid:dispute_id>/answer/", disputes.DisputeAnswer.as_view(), name="answer_dispute"),
    path("admin/disputes/<uuid:dispute_id>/uphold/", disputes.DisputeUphold.as_view(), name="uphold_dispute"),
    path("admin/disputes/<uuid:dispute_id>/reject/", disputes.DisputeReject.as_view(), name="reject_dispute"),
    re_path(rf"^balance-result/{HEX}$", callbacks.balance_result_callback, name="balance_result"),
    path("admin/recoveries/", list_recoveries, name="recoveries"),
    path("admin/recoveries/set-off/", set_off, name="set_off"),
    path("admin/recoveries/write-off/", write_off, name="write_off"),
    path("admin/undo-costs/", undo_costs, name="undo_costs"),
    # The guide's part 8 calls these two here as well; the names of its part 2.6 reverse to /api/markets/.
    path("admin/retry-payout/", retry_payout),
    path("admin/retry-failed-payouts/", retry_failed_payouts_batch),
]
