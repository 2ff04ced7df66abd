from django.urls import path

from api.rest import accounts, disputes

urlpatterns = [
    path("login/", accounts.Login.as_view(), name="login"),
    path("logout/", accounts.Logout.as_view(), name="logout"),
    path("me/", accounts.Me.as_view(), name="me"),
    path("me/notices/", accounts.Notices.as_view(), name="notices"),
    path("me/disputes/", disputes.MyDisputes.as_view(), name="my_disputes"),
    path("me/disputes/<uuid:dispute_id>/reply/", disputes.DisputeReply.as_view(), name="reply_to_dispute"),
]
