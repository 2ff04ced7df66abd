"""Staff console: Django's admin site with one page for each task of the staff.

Each page is a plain view in `pages/`. The site guards every page: the user must be logged-in staff, and must have
shown a second factor if one is required.
"""

from typing import Any

from django.contrib.auth import logout as log_out
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from unfold.sites import UnfoldAdminSite

from api.console import login as console_login
from api.console import step_up
from api.console.pages import (
    account,
    api_keys,
    audit,
    bulk_retry,
    decisions,
    disputes,
    figures,
    home,
    in_doubt,
    ledger,
    market_life,
    markets,
    members,
    payouts,
    proposals,
    receivables,
    resolve,
    restores,
    sending,
    staff,
)
from payments import wiring
from users import auth

PAGES = (
    account,
    api_keys,
    home,
    market_life,
    markets,
    resolve,
    decisions,
    proposals,
    disputes,
    payouts,
    bulk_retry,
    in_doubt,
    restores,
    ledger,
    receivables,
    members,
    staff,
    audit,
    sending,
    figures,
)


class Console(UnfoldAdminSite):
    """The admin site with the console's pages, menu and login."""

    site_header = site_title = "KASOKO"
    index_title = "Home"
    enable_nav_sidebar = True
    login_form = console_login.LoginForm
    login_template = "console/login.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Require an active member of staff who is not idle, with a second factor if one is required."""
        return self._is_logged_in(request) and step_up.proven(request)

    def _is_logged_in(self, request: HttpRequest) -> bool:
        """Return True for active staff. A session that was idle for too long ends here."""
        if not super().has_permission(request):
            return False
        if step_up.is_idle(request):
            log_out(request)
            return False
        return True

    def get_urls(self) -> list[Any]:
        """Return the URLs of the console's pages, then those of Django's admin."""
        pages = [self._guarded(pattern) for module in PAGES for pattern in module.urls]
        # The pages of the login are not guarded. A person who has not shown a code yet must be able to open them.
        return [
            *pages,
            *console_login.urls,
            path("records/", self.admin_view(self.records), name="records"),
            *super().get_urls(),
        ]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseBase:
        """Return the home page in place of the admin's index."""
        return home.home(request)

    def records(self, request: HttpRequest) -> HttpResponse:
        """Return Django's index of the database tables."""
        return super().index(request, {"title": "Records"})

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Log in a member of staff. A member of staff who has not shown a code goes to the second-factor page."""
        if request.method == "GET" and self._is_logged_in(request) and not step_up.proven(request):
            return HttpResponseRedirect(reverse("admin:second_factor"))
        response = super().login(request, extra_context)
        if request.method == "POST" and response.status_code == 302:
            entered = getattr(request.user, "entered", None)
            if isinstance(entered, auth.Entered):
                step_up.remember(request, by_code=entered.by_code, at=wiring.now())
                console_login.remember_device(response, entered.device)
        return response

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Change the PIN by the console's own page, which counts wrong PINs."""
        return account.change_pin(request)

    def _guarded(self, pattern: URLPattern) -> URLPattern:
        return URLPattern(pattern.pattern, self.admin_view(pattern.callback), pattern.default_args, pattern.name)
