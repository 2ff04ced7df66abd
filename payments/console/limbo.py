"""Money of which we do not know where it is: how much, how old, who must act."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone

from payments import overview, queries
from users.console import shell

SHOWN = 200


@shell.page("view_console")
def limbo(request: HttpRequest) -> HttpResponse:
    now = overview.now(at=timezone.now())
    context = {"title": "Limbo", "now": now, "rows": queries.limbo(limit=SHOWN), "shown": SHOWN}
    return shell.render(request, "console/limbo.html", context)


urls = [path("limbo/", limbo, name="limbo")]
