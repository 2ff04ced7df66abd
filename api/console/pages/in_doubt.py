"""Money of which we do not know where it is: how much, how old, who must act."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone

from api.console import page
from payments.monitoring import overview
from payments.payouts.operations import in_doubt

SHOWN = 200


@page.page("view_console")
def limbo(request: HttpRequest) -> HttpResponse:
    now = overview.now(at=timezone.now())
    context = {"title": "Limbo", "now": now, "rows": in_doubt.in_doubt(limit=SHOWN), "shown": SHOWN}
    return page.render(request, "console/limbo.html", context)


urls = [path("limbo/", limbo, name="limbo")]
