"""The operator's console: Django's admin under our name, with pages by task. This module only composes them.

A page is a plain view of an app's `console` package; the site wraps each in its own check that a member of staff is
logged in, with their second factor where one is asked for.
"""

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.sites import UnfoldAdminSite

from api.console import login as console_login
from api.console import step_up
from api.console.pages import (
    audit,
    decisions,
    disputes,
    home,
    in_doubt,
    ledger,
    markets,
    members,
    payouts,
    receivables,
    resolve,
    sending,
)

PAGES = (home, markets, resolve, decisions, disputes, payouts, in_doubt, ledger, receivables, members, audit, sending)


class Console(UnfoldAdminSite):
    site_header = site_title = "KASOKO"
    index_title = "Home"
    enable_nav_sidebar = True
    login_form = console_login.LoginForm
    login_template = "console/login.html"

    def has_permission(self, request: HttpRequest) -> bool:
        return super().has_permission(request) and step_up.proven(request)

    def get_urls(self) -> list[Any]:
        pages = [self._guarded(pattern) for module in PAGES for pattern in module.urls]
        # These are for those who are logged in and have yet to prove themselves.
        return [
            *pages,
            *console_login.urls,
            path("records/", self.admin_view(self.records), name="records"),
            *super().get_urls(),
        ]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseBase:
        return home.home(request)

    def records(self, request: HttpRequest) -> HttpResponse:
        """The tables behind the pages, for whoever may see them."""
        return super().index(request, {"title": "Records"})

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "GET" and super().has_permission(request) and not step_up.proven(request):
            return HttpResponseRedirect(reverse("admin:second_factor"))
        response = super().login(request, extra_context)
        if request.method == "POST" and response.status_code == 302:
            by_code = getattr(request.user, "proved_by_code", False)
            step_up.remember(request, by_code=by_code, at=timezone.now())
        return response

    def _guarded(self, pattern: URLPattern) -> URLPattern:
        return URLPattern(pattern.pattern, self.admin_view(pattern.callback), pattern.default_args, pattern.name)
