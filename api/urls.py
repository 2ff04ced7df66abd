"""The whole HTTP surface on one page."""

from django.contrib import admin
from django.urls import include, path

from api.rest import health

urlpatterns = [
    path("api/users/", include("users.urls")),
    path("api/markets/", include("markets.urls")),
    path("api/payments/", include("payments.urls")),
    path("admin/", admin.site.urls),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
]
handler400 = "api.rest.errors.bad_request"
handler404 = "api.rest.errors.not_found"
handler500 = "api.rest.errors.server_error"
