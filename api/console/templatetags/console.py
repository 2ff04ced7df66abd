"""How the console writes amounts, times and phones: KES 1,234.50; 16 Feb, 10:30 EAT, 3 min ago; 2547****678."""

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from users import phone

register = template.Library()
NAIROBI = ZoneInfo("Africa/Nairobi")
TONES = {
    "COMPLETED": "good",
    "PAID": "good",
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
    """KES 1,234.50; nothing for nothing."""
    return "" if amount is None or amount == "" else f"KES {Decimal(amount):,.2f}"


@register.filter
def cents(number: Any) -> str:
    """Integer cents as KES 1,234.50."""
    return "" if number is None else kes(Decimal(number) / 100)


@register.filter
def count(number: Any) -> str:
    return "" if number is None or number == "" else f"{int(number):,}"


@register.filter
def ago(span: Any) -> str:
    """How long a time is, in its two largest units at most: 3 min, 2 h 5 min, 4 days."""
    if isinstance(span, datetime):
        span = timezone.now() - span
    if span is None or span == "":
        return ""
    seconds = int((span if isinstance(span, timedelta) else timedelta(seconds=float(span))).total_seconds())
    seconds = abs(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86_400:
        minutes = seconds % 3600 // 60
        return f"{seconds // 3600} h {minutes} min" if minutes else f"{seconds // 3600} h"
    days = seconds // 86_400
    return "1 day" if days == 1 else f"{days:,} days"


@register.filter
def eat(moment: datetime | None) -> SafeString | str:
    """A moment in Nairobi, with how long ago it was or how soon it comes."""
    if moment is None:
        return "–"
    there = moment.astimezone(NAIROBI)
    year = "" if there.year == timezone.now().astimezone(NAIROBI).year else f" {there.year}"
    away = ago(timezone.now() - moment)
    relative = f"{away} ago" if moment <= timezone.now() else f"in {away}"
    return format_html(
        '<time datetime="{}" title="{}">{}{}, {} EAT</time> <span class="k-faint">{}</span>',
        moment.isoformat(),
        f"{there:%A %d %B %Y, %H:%M:%S} East Africa Time",
        f"{there.day} {there:%b}",
        year,
        f"{there:%H:%M}",
        relative,
    )


@register.filter
def masked(number: str) -> str:
    return phone.masked(number) if number else ""


@register.filter
def words(state: str) -> str:
    """A state as a person would say it: IN_DOUBT is “in doubt”."""
    return str(state).replace("_", " ").lower().replace("mpesa", "M-Pesa")


@register.filter
def chip(state: str) -> SafeString:
    """A state as a coloured word; the word alone says it all."""
    return format_html('<span class="k-chip k-{}">{}</span>', TONES.get(str(state).upper(), "calm"), words(state))


@register.filter
def as_json(value: Any) -> str:
    """For a chart's attribute; the template escapes it."""
    return json.dumps(value)


@register.simple_tag(takes_context=True)
def url_with(context: dict[str, Any], **changes: Any) -> str:
    """The address of this page with some of its parameters changed; an empty value leaves one out."""
    parameters = context["request"].GET.copy()
    for name, value in changes.items():
        parameters.pop(name, None)
        if value not in (None, ""):
            parameters[name] = str(value)
    return "?" + parameters.urlencode()
