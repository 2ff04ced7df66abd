"""The audit trail's page: who decided what, and whether the chain is whole."""

import re
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, path, reverse

from api.console import page, paging
from users import audit as trail
from users.models import AuditEntry

PAGES = {"market": "market", "transaction": "payout", "member": "member"}


@page.page("view_audit")
def audit(request: HttpRequest) -> HttpResponse:
    subject, action = (request.GET.get(name, "").replace("\x00", "").strip() for name in ("subject", "action"))
    entries = AuditEntry.objects.select_related("actor")
    if subject:
        entries = entries.filter(subject=subject)
    if action:
        entries = entries.filter(action__startswith=action)
    paged = paging.paged(request, entries, by="number")
    for entry in paged.rows:
        entry.link = link_to(entry.subject)
    context: dict[str, Any] = {"title": "Audit trail", "paged": paged, "subject": subject, "action": action}
    if request.GET.get("verify"):
        context["chain"] = trail.verify()
    return page.render(request, "console/audit.html", context)


def link_to(subject: str) -> str:
    """The page about an entry's subject such as market:12, if there is one."""
    found = re.fullmatch(r"(\w+):([0-9]{1,18})", subject)
    if found is None or found[1] not in PAGES:
        return ""
    try:
        return reverse(f"admin:{PAGES[found[1]]}", args=[int(found[2])])
    except NoReverseMatch:
        return ""


urls = [path("audit/", audit, name="audit")]
