"""Page of the audit trail: every recorded action, and the check of its hashes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, path, reverse
from django.utils.dateparse import parse_date
from django.utils.http import urlencode

from api.console import downloads, page, paging
from markets.models import NAIROBI
from payments import wiring
from users import audit as trail
from users import personal, phone
from users.models import AuditEntry, CustomUser

PAGES = {"market": "market", "transaction": "payout", "member": "member"}
# The recorded actions in words. The page shows the action's code too, because a person searches by code.
ACTIONS = {
    "api_key.make": "API key made",
    "api_key.revoke": "API key revoked",
    "audit.export": "Trail downloaded with whole phone numbers",
    "dispute.answer": "Dispute answered",
    "dispute.open": "Dispute opened",
    "dispute.reject": "Dispute rejected",
    "dispute.remedied": "Remedy of a dispute carried out",
    "dispute.reply": "Member replied in a dispute",
    "dispute.uphold": "Dispute upheld",
    "login.accepted": "Logged in",
    "login.code_refused": "Wrong code",
    "login.ended_everywhere": "Logged out everywhere",
    "login.refused": "Login failed",
    "login.unlocked": "Lock after wrong PINs ended by a command",
    "market.change": "Terms of a market changed",
    "market.close": "Market closed for good",
    "market.create": "Market created",
    "market.propose": "Decision proposed",
    "market.proposal_stale": "Proposal closed because its figures changed",
    "market.reject": "Proposal rejected",
    "proposal.make": "Act proposed",
    "proposal.approve_first": "Proposal of the system approved by the first person",
    "proposal.reject": "Proposal rejected",
    "proposal.withdraw": "Proposal withdrawn",
    "proposal.stale": "Proposal closed because its figures changed",
    "proposal.expire": "Proposal expired",
    "figure.set": "Figure of law or limit changed",
    "threshold.set": "Threshold for a second person changed",
    "market.resolve": "Market resolved",
    "market.resume_betting": "Betting resumed",
    "market.resume_sending": "Sending of a market's payouts resumed",
    "market.scratch": "Outcome scratched",
    "market.settle": "Market settled by the machine",
    "market.suspend_betting": "Betting suspended",
    "market.suspend_sending": "Sending of a market's payouts suspended",
    "market.undo": "Settlement undone",
    "market.void": "Market voided",
    "market.withdraw": "Resolution withdrawn",
    "market.withdraw_scratch": "Scratch withdrawn",
    "member.erased": "Personal texts of a member erased",
    "member.note": "Note written",
    "member.phone": "Phone of a member changed",
    "member.reinstate": "Member reinstated",
    "member.reset_pin": "New PIN for a member",
    "member.suspend": "Member suspended",
    "member.unlock": "Member unlocked after wrong PINs",
    "member.pin_changed": "PIN changed by its owner",
    "member.phone_opened": "Full phone number shown",
    "payout.ask": "Status query to M-Pesa",
    "payout.decide_not_paid": "Payout decided: not paid",
    "payout.decide_paid": "Payout decided: paid",
    "payout.decision_proposed": "Payout decision proposed",
    "payout.decision_refused": "Payout decision rejected",
    "payout.hold": "Payout held",
    "payout.retry_many": "Bulk retry started",
    "payout.reissue": "Payout re-issued to the member's new number",
    "payout.reissue_proposed": "Re-issue to a new number proposed",
    "payout.release": "Payout released",
    "payout.retry": "Payout sent again",
    "payout.to_wallet": "Payout credited to the wallet",
    "recovery.set_off": "Debt set off against dividends",
    "recovery.write_off": "Debt written off",
    "release.let_go": "Stopped release of payouts let go on",
    "restore.decide": "Payouts of a restore decided: not sent",
    "restore.decision_proposed": "Decision on a restore proposed",
    "restore.decision_refused": "Decision on a restore rejected",
    "sending.lift": "Stop of sending ended",
    "sending.switch_off": "Sending stopped",
    "sending.switch_on": "Sending started",
    "staff.phone": "Phone of a member of staff changed",
    "staff.reinstate": "Member of staff reinstated",
    "staff.reset_app": "Authenticator app removed by two people",
    "staff.reset_pin": "New PIN for a member of staff",
    "staff.role": "Role changed",
    "staff.suspend": "Member of staff suspended",
    "staff.unlock": "Member of staff unlocked after wrong PINs",
    "staff.second_factor_removed": "Authenticator app removed",
    "staff.second_factor_set_up": "Authenticator app set up",
}


FILTERS = ("subject", "action", "person", "since", "until")
# A time as the audit trail stores it: 2026-12-03T03:08:50.448Z.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# Rows of an export that are read at a time.
EXPORT_PAGE = 2_000


@page.page("audit.view")
def audit(request: HttpRequest) -> HttpResponse:
    """Show the entries that match the filters, newest first. With `verify`, check all hashes too."""
    typed = {name: request.GET.get(name, "").replace("\x00", "").strip()[:80] for name in FILTERS}
    entries, problems = _chosen(typed)
    paged = paging.paged(request, entries.select_related("actor"), by="number")
    proposers = _proposers(paged.rows)
    for entry in paged.rows:
        entry.link = link_to(entry.subject)
        entry.proposed_by = proposers.get(entry.number)
        entry.action_words = ACTIONS.get(entry.action, "")
        entry.changes = changes(entry)
    context: dict[str, Any] = {
        "title": "Audit trail",
        "paged": paged,
        "problems": problems,
        "filters": typed,
        "query": urlencode({name: text for name, text in typed.items() if text}),
        **typed,
    }
    if request.GET.get("verify"):
        context["chain"] = trail.verify()
    return page.render(request, "console/audit.html", context)


@page.page("audit.export")
def export(request: HttpRequest) -> HttpResponseBase:
    """Download the entries that match the filters as CSV, oldest first, with their hashes.

    A person who may open phones gets whole numbers, and the trail records it first. With a filter that cannot be read,
    show the page with the problem. A file without that filter would mislead.
    """
    typed = {name: request.GET.get(name, "").replace("\x00", "").strip()[:80] for name in FILTERS}
    entries, problems = _chosen(typed)
    if problems:
        return HttpResponseRedirect(f"{reverse('admin:audit')}?{urlencode(typed)}")
    header = ("number", "at", "person", "source", "action", "words", "subject", "before", "after", "reason", "hash")
    whole = page.may(request, "member.phone_opened")
    if whole:
        with transaction.atomic(durable=True):
            trail.record(
                action="audit.export", by=page.actor(request), subject="audit", before={}, after={}, at=wiring.now()
            )
    return downloads.csv_file("audit.csv", header, _rows(entries.select_related("actor"), whole=whole))


def _rows(entries: QuerySet[AuditEntry], *, whole: bool) -> Iterator[tuple[Any, ...]]:
    last = 0
    while rows := list(entries.filter(number__gt=last).order_by("number")[:EXPORT_PAGE]):
        for entry in rows:
            yield (
                entry.number,
                entry.at.isoformat(),
                str(entry.actor or "The system"),
                entry.source,
                entry.action,
                ACTIONS.get(entry.action, ""),
                entry.subject,
                _in_clear(entry.before, whole=whole),
                _in_clear(entry.after, whole=whole),
                entry.reason,
                entry.hash,
            )
        last = rows[-1].number


def _chosen(typed: Mapping[str, str]) -> tuple[QuerySet[AuditEntry], list[str]]:
    """Return the entries that match the filters, and the filters that cannot be read, in words."""
    entries, problems = AuditEntry.objects.all(), []
    if typed["subject"]:
        entries = entries.filter(subject=typed["subject"])
    if typed["action"]:
        entries = entries.filter(action__startswith=typed["action"])
    if typed["person"]:
        entries = entries.filter(actor__in=_people(typed["person"]))
    for name, lookup, days in (("since", "at__gte", 0), ("until", "at__lt", 1)):
        if not typed[name]:
            continue
        day = _day(typed[name])
        if day is None:
            problems.append(f"“{typed[name]}” is not a date. Type a date such as 2026-12-31.")
        else:
            entries = entries.filter(**{lookup: datetime.combine(day + timedelta(days=days), time.min, NAIROBI)})
    return entries, problems


def _day(typed: str) -> date | None:
    try:
        day = parse_date(typed)
    except ValueError:
        return None
    return day if day is not None and 2000 <= day.year <= 2999 else None


def _people(typed: str) -> QuerySet[CustomUser]:
    """Return the people whose phone, number or name matches."""
    try:
        return CustomUser.objects.filter(phone_number=phone.normalise(typed))
    except phone.NotAPhoneNumber:
        number = paging.number(typed)
        return (
            CustomUser.objects.filter(full_name__icontains=typed)
            if number is None
            else CustomUser.objects.filter(pk=number)
        )


def changes(entry: AuditEntry) -> list[str]:
    """Return the values that a decision changed, each as a short sentence, with phones masked."""
    before, after = (_opened(json.loads(stored), whole=False) for stored in (entry.before, entry.after))
    sentences = []
    for name in [*before, *(name for name in after if name not in before)]:
        if name == "preview":  # The hash of the figures. The download has it.
            continue
        words, old, new = name.replace("_", " "), _value(before.get(name)), _value(after.get(name))
        if name not in after:
            sentences.append(f"{words} was {old}")
        elif name not in before:
            sentences.append(f"{words}: {new}")
        else:
            sentences.append(f"{words}: {old} → {new}" if old != new else f"{words} stays {old}")
    return sentences


def _in_clear(stored: str, *, whole: bool) -> str:
    """Return the values as JSON with sealed texts in clear. Values without one stay exactly as the hash covers them."""
    values = json.loads(stored)
    opened = _opened(values, whole=whole)
    return stored if opened == values else json.dumps(opened, ensure_ascii=False)


def _opened(values: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    return {name: _shown(value, whole=whole) if isinstance(value, str) else value for name, value in values.items()}


def _shown(stored: str, *, whole: bool) -> str:
    """Return a value in clear. A phone number that was sealed is masked, unless the person may see whole numbers."""
    value = personal.opened(stored)
    if whole or value == stored:
        return value
    try:
        return phone.masked(phone.normalise(value))
    except phone.NotAPhoneNumber:
        return value


def _value(value: Any) -> str:
    words = {None: "none", True: "yes", False: "no", "": "empty"}
    if isinstance(value, bool) or value in (None, ""):
        return words[value]
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _MOMENT.fullmatch(value):
        return f"{datetime.fromisoformat(value).astimezone(NAIROBI):%-d %b %Y, %H:%M} EAT"
    return value


def _proposers(entries: Sequence[AuditEntry]) -> dict[int, CustomUser]:
    """Return the first person of each decision that a second person approved, by the number of the entry."""
    ids = {}
    for entry in entries:
        match = re.search(r'"proposed_by": ?([0-9]{1,18})\b', entry.after)
        if match is not None:
            ids[entry.number] = int(match[1])
    people = CustomUser.objects.in_bulk(set(ids.values())) if ids else {}
    return {number: people[user_id] for number, user_id in ids.items() if user_id in people}


def link_to(subject: str) -> str:
    """Return the address of the page about a subject such as market:12, or "" if there is none."""
    match = re.fullmatch(r"(\w+):([0-9]{1,18})", subject)
    if match is None or match[1] not in PAGES:
        return ""
    try:
        return reverse(f"admin:{PAGES[match[1]]}", args=[int(match[2])])
    except NoReverseMatch:
        return ""


urls = [path("audit/", audit, name="audit"), path("audit/export/", export, name="audit_export")]
