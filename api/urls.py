"""The whole HTTP surface on one page."""

from django.contrib import admin
from django.urls import include, path

from api import health

urlpatterns = [
    path("api/users/", include("users.urls")),
    path("api/markets/", include("markets.urls")),
    path("api/payments/", include("payments.urls")),
    path("admin/", admin.site.urls),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
]
handler400 = "api.errors.bad_request"
handler404 = "api.errors.not_found"
handler500 = "api.errors.server_error"
