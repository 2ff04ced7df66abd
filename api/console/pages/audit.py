"""Page of the audit trail: every recorded action, and the check of its hashes."""

import re
from collections.abc import Sequence
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, path, reverse

from api.console import page, paging
from users import audit as trail
from users.models import AuditEntry, CustomUser

PAGES = {"market": "market", "transaction": "payout", "member": "member"}
# The recorded actions in words. The page shows the action's code too, because a person searches by code.
ACTIONS = {
    "dispute.answer": "Dispute answered",
    "dispute.open": "Dispute opened",
    "dispute.reject": "Dispute rejected",
    "dispute.remedied": "Remedy of a dispute carried out",
    "dispute.reply": "Member replied in a dispute",
    "dispute.uphold": "Dispute upheld",
    "login.accepted": "Logged in",
    "login.code_refused": "Wrong code",
    "login.refused": "Login failed",
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
    "market.scratch": "Outcome scratched",
    "market.undo": "Settlement undone",
    "market.void": "Market voided",
    "market.withdraw": "Resolution withdrawn",
    "market.withdraw_scratch": "Scratch withdrawn",
    "member.note": "Note written",
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
    "restore.decide": "Payouts of a restore decided: not sent",
    "restore.decision_proposed": "Decision on a restore proposed",
    "restore.decision_refused": "Decision on a restore rejected",
    "sending.lift": "Stop of sending ended",
    "sending.switch_off": "Sending stopped",
    "sending.switch_on": "Sending started",
    "staff.second_factor_removed": "Authenticator app removed",
    "staff.second_factor_set_up": "Authenticator app set up",
}


@page.page("audit.view")
def audit(request: HttpRequest) -> HttpResponse:
    """Show the entries of a subject or an action, newest first. With `verify`, check all hashes too."""
    subject, action = (request.GET.get(name, "").replace("\x00", "").strip() for name in ("subject", "action"))
    entries = AuditEntry.objects.select_related("actor")
    if subject:
        entries = entries.filter(subject=subject)
    if action:
        entries = entries.filter(action__startswith=action)
    paged = paging.paged(request, entries, by="number")
    proposers = _proposers(paged.rows)
    for entry in paged.rows:
        entry.link = link_to(entry.subject)
        entry.proposed_by = proposers.get(entry.number)
        entry.action_words = ACTIONS.get(entry.action, "")
    context: dict[str, Any] = {"title": "Audit trail", "paged": paged, "subject": subject, "action": action}
    if request.GET.get("verify"):
        context["chain"] = trail.verify()
    return page.render(request, "console/audit.html", context)


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


urls = [path("audit/", audit, name="audit")]
