"""All URLs of the project. The guide requires those of markets in markets/urls.py."""

from django.contrib import admin
from django.urls import include, path, re_path

from api.rest import accounts, callbacks, disputes, health, payouts, proposals, receivables, settlement

HEX = r"(?P<token>[0-9a-f]{64})/"

users = [
    path("login/", accounts.Login.as_view(), name="login"),
    path("logout/", accounts.Logout.as_view(), name="logout"),
    path("logout-everywhere/", accounts.LogoutEverywhere.as_view(), name="logout_everywhere"),
    path("me/pin/", accounts.Pin.as_view(), name="change_pin"),
    path("me/", accounts.Me.as_view(), name="me"),
    path("admin/proposals/", proposals.open_proposals, name="proposals"),
    path("me/notices/", accounts.Notices.as_view(), name="notices"),
    path("me/disputes/", disputes.MyDisputes.as_view(), name="my_disputes"),
    path("me/disputes/<uuid:dispute_id>/reply/", disputes.DisputeReply.as_view(), name="reply_to_dispute"),
]

payments = [
    # Callbacks of M-Pesa. Each request gets its own address; the plain address is from the guide's part 4.4.
    path("b2c-callback/", callbacks.b2c_result_callback, name="b2c_callback"),
    re_path(rf"^b2c-callback/{HEX}$", callbacks.b2c_result_callback, name="b2c_result"),
    re_path(rf"^b2c-timeout/{HEX}$", callbacks.b2c_timeout_callback, name="b2c_timeout"),
    re_path(rf"^status-result/{HEX}$", callbacks.status_result_callback, name="status_result"),
    re_path(rf"^balance-result/{HEX}$", callbacks.balance_result_callback, name="balance_result"),
    # Disputes about payouts, and the queue of all disputes for staff.
    path(
        "transactions/<uuid:transaction_id>/disputes/",
        disputes.TransactionDisputes.as_view(),
        name="transaction_disputes",
    ),
    path("admin/disputes/", disputes.DisputeQueue.as_view(), name="disputes"),
    path("admin/disputes/<uuid:dispute_id>/answer/", disputes.DisputeAnswer.as_view(), name="answer_dispute"),
    path("admin/disputes/<uuid:dispute_id>/uphold/", disputes.DisputeUphold.as_view(), name="uphold_dispute"),
    path("admin/disputes/<uuid:dispute_id>/reject/", disputes.DisputeReject.as_view(), name="reject_dispute"),
    # Debts of members after an undo.
    path("admin/recoveries/", receivables.list_recoveries, name="recoveries"),
    path("admin/recoveries/set-off/", receivables.set_off, name="set_off"),
    path("admin/recoveries/write-off/", receivables.write_off, name="write_off"),
    path("admin/undo-costs/", receivables.undo_costs, name="undo_costs"),
    # One payout, and its re-issue to the member's new number by two people.
    path("admin/payouts/<int:transaction_id>/", payouts.payout_status, name="payout_status"),
    path("admin/reissue-payout/", payouts.reissue_payout, name="reissue_payout"),
    path("admin/confirm-reissue/", payouts.confirm_reissue, name="confirm_reissue"),
    path("admin/reject-reissue/", payouts.reject_reissue, name="reject_reissue"),
    # The guide's part 8 calls these two paths. They have no names here, because the names in the guide's part 2.6 must
    # reverse to /api/markets/.
    path("admin/retry-payout/", settlement.retry_payout),
    path("admin/retry-failed-payouts/", settlement.retry_failed_payouts_batch),
]

urlpatterns = [
    path("api/users/", include(users)),
    path("api/markets/", include("markets.urls")),
    path("api/payments/", include(payments)),
    path("admin/", admin.site.urls),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
]
handler400 = "api.rest.errors.bad_request"
handler404 = "api.rest.errors.not_found"
handler500 = "api.rest.errors.server_error"
