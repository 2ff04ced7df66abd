from django.urls import path

from payments import dispute_views
from users import views

urlpatterns = [
    path("login/", views.Login.as_view(), name="login"),
    path("logout/", views.Logout.as_view(), name="logout"),
    path("me/", views.Me.as_view(), name="me"),
    path("me/notices/", views.Notices.as_view(), name="notices"),
    path("me/disputes/", dispute_views.MyDisputes.as_view(), name="my_disputes"),
    path("me/disputes/<uuid:dispute_id>/reply/", dispute_views.DisputeReply.as_view(), name="reply_to_dispute"),
]
