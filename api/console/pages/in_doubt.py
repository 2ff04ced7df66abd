"""Page of the payouts in doubt: number, amount, age, and the next step for each."""

from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.urls import path, reverse

from api.console import page
from payments import wiring
from payments.monitoring import overview
from payments.payouts.evidence import orphans
from payments.payouts.operations import in_doubt as payouts_in_doubt

SHOWN = 200


@page.page("console.view")
def in_doubt(request: HttpRequest) -> HttpResponse:
    """Show the number of payouts in doubt by age, a list of the oldest, and the requests that our books do not have."""
    at = wiring.now()
    now = overview.now(at=at)
    rows = payouts_in_doubt.in_doubt(limit=SHOWN)
    context = {
        "title": "Payouts in doubt",
        "now": now,
        "at": at,
        "rows": rows,
        "shown": SHOWN,
        "orphans": orphans.unclaimed(limit=SHOWN),
    }
    return page.render_live(request, "console/in_doubt.html", context, every=10)


@page.page("console.view")
def limbo(request: HttpRequest) -> HttpResponse:
    """Redirect from the page's former address. The former address is kept until the next minor version."""
    return HttpResponsePermanentRedirect(reverse("admin:in_doubt"))


urls = [
    path("in-doubt/", in_doubt, name="in_doubt"),
    path("limbo/", limbo, name="limbo"),
]
