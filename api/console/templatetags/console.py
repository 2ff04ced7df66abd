"""Template filters for money, times, phone numbers, states and counts in the console."""

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from payments import wiring
from payments.models import Settlement
from payments.settlement.decision import VOID_REASONS
from users import authority, phone, roles

register = template.Library()
# A title for each cause of payments.models.Breaker.Cause.
CAUSES = {
    "switch": "switched off by a person",
    "no_float": "M-Pesa float too low",
    "credentials": "M-Pesa refuses our API credentials",
    "throttle": "M-Pesa asks us to slow down",
    "network": "M-Pesa cannot be reached",
    "doubt": "too many requests in doubt",
    "failures": "too many requests failed",
    "settings": "M-Pesa refuses a setting of ours",
    "product": "M-Pesa refuses our account or product",
    "silence": "M-Pesa does not answer our requests",
    "orphan": "M-Pesa reported a request that we do not have",
    "restore": "the database may have lost its last minutes",
}
NAIROBI = ZoneInfo("Africa/Nairobi")
TONES = {
    "COMPLETED": "good",
    "PAID": "good",
    "REVERSED": "bad",
    "SETTLED": "good",
    "OPEN": "good",
    "WON": "good",
    "PENDING": "calm",
    "PROCESSING": "busy",
    "ACCEPTED": "busy",
    "SENDING": "busy",
    "WAITING": "busy",
    "RESOLVED": "busy",
    "DIVIDING": "busy",
    "HELD": "care",
    "IN_DOUBT": "care",
    "CLOSED": "care",
    "UNDOING": "care",
    "UNDONE": "care",
    "STALE": "care",
    "APPROVED": "good",
    "ANSWERED": "busy",
    "UPHELD": "good",
    "REJECTED": "bad",
    "FAILED": "bad",
}


@register.filter
def kes(amount: Any) -> str:
    """Format shillings as KES 1,234.50. Return "" if there is no amount."""
    return "" if amount is None or amount == "" else f"KES {Decimal(amount):,.2f}"


@register.filter
def cents(amount: Any) -> str:
    """Format integer cents as KES 1,234.50. Return "" if there is no amount."""
    return "" if amount is None else kes(Decimal(amount) / 100)


@register.filter
def count(number: Any) -> str:
    """Format an integer with commas between thousands."""
    return "" if number is None or number == "" else f"{int(number):,}"


@register.filter
def counted(number: Any, noun: str) -> str:
    """Write a number with its noun, in the singular or the plural: 1 payout, 2,000 payouts."""
    return f"{int(number):,} {noun}" if int(number) == 1 else f"{int(number):,} {noun}s"


@register.filter
def ago(time: Any) -> str:
    """Write a duration in at most two units: 3 min, 2 h 5 min, 4 days. For a datetime, write its age."""
    if time is None or time == "":
        return ""
    if isinstance(time, datetime):
        time = wiring.now() - time
    duration = time if isinstance(time, timedelta) else timedelta(seconds=float(time))
    seconds = abs(int(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86_400:
        minutes = seconds % 3600 // 60
        return f"{seconds // 3600} h {minutes} min" if minutes else f"{seconds // 3600} h"
    return counted(seconds // 86_400, "day")


@register.filter
def nairobi_time(moment: datetime | None) -> SafeString | str:
    """Write a datetime in Nairobi time, with its age: 16 Feb, 10:30 EAT, 3 min ago."""
    if moment is None:
        return "–"
    nairobi = moment.astimezone(NAIROBI)
    now = wiring.now()
    year = "" if nairobi.year == now.astimezone(NAIROBI).year else f" {nairobi.year}"
    distance = ago(now - moment)
    relative = f"{distance} ago" if moment <= now else f"in {distance}"
    return format_html(
        '<time datetime="{}" title="{}">{}{}, {} EAT</time>, <span class="k-faint">{}</span>',
        moment.isoformat(),
        f"{nairobi:%A %d %B %Y, %H:%M:%S} East Africa Time",
        f"{nairobi.day} {nairobi:%b}",
        year,
        f"{nairobi:%H:%M}",
        relative,
    )


@register.filter
def masked(number: str) -> str:
    """Mask the middle of a phone number: 2547****678."""
    return phone.masked(number) if number else ""


@register.filter
def words(state: str) -> str:
    """Write a state's code in words: IN_DOUBT becomes “in doubt”."""
    return str(state).replace("_", " ").lower().replace("mpesa", "M-Pesa")


@register.filter
def cause(code: str) -> str:
    """Write the cause of a breaker in words: no_float becomes “M-Pesa float too low”."""
    return CAUSES.get(str(code), words(code))


@register.filter
def decision_words(settlement: Settlement) -> str:
    """Write a settlement's decision in words: “Yes wins”, “A 60 % and B 40 % win jointly”, “C is scratched”."""
    if settlement.rule == Settlement.Rule.SCRATCH:
        return f"{settlement.scratched} is scratched"
    if settlement.rule == Settlement.Rule.VOID:
        return f"void, because {VOID_REASONS.get(settlement.reason, settlement.reason)}"
    if settlement.rule == Settlement.Rule.WINNER:
        return f"{next(iter(settlement.weights))} wins"
    shares = " and ".join(f"{outcome} {weight} %" for outcome, weight in settlement.weights.items())
    return f"{shares} {'win jointly' if settlement.rule == Settlement.Rule.JOINT else 'split the pool'}"


@register.filter
def deciders(settlement: Settlement) -> str:
    """Name the person who decided a settlement, and the second person if it took two."""
    first = settlement.resolved_by or "the system"
    return f"proposed by {first}, approved by {settlement.approved_by}" if settlement.approved_by else f"by {first}"


@register.filter
def act_words(act_name: str) -> str:
    """Return an act of staff in words, which complete "to …"."""
    return authority.ACTS[act_name].words


@register.filter
def approvers(act_name: str) -> str:
    """Return in words who may approve an act as the second person."""
    holders = [name for name, held in roles.ROLES.items() if authority.ACTS[act_name].approval in held]
    return f"another {' or '.join(holders)}" if holders else "another superuser"


@register.filter
def chip(state: str) -> SafeString:
    """Show a state as a coloured label. The colour only repeats the word."""
    return format_html('<span class="k-chip k-{}">{}</span>', TONES.get(str(state).upper(), "calm"), words(state))


@register.filter
def as_json(value: Any) -> str:
    """Write a value as JSON for a chart's HTML attribute. The template escapes the JSON."""
    return json.dumps(value)


@register.simple_tag(takes_context=True)
def url_with(context: dict[str, Any], **changes: Any) -> str:
    """Return this page's query string with some parameters changed. An empty value removes a parameter."""
    parameters = context["request"].GET.copy()
    for name, value in changes.items():
        parameters.pop(name, None)
        if value not in (None, ""):
            parameters[name] = str(value)
    return "?" + parameters.urlencode()
