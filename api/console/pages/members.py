"""Pages of members: wallet, bets, statement and notes.

Phone numbers are masked. The audit trail records each person who opens a full number.
"""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page, paging
from api.console.pages import staff
from payments import wiring
from payments.ledger import statements
from payments.models import LedgerAccount
from payments.payouts.operations import timeline
from payments.settlement import market_overview
from users import accounts, phone, phone_access, staff_notes
from users.models import CustomUser


@page.page("members.view")
def members(request: HttpRequest) -> HttpResponse:
    """List the members. With a search text, list those whose phone, id or name matches."""
    typed = request.GET.get("q", "").replace("\x00", "").strip()[:80]
    rows = _search(typed) if typed else CustomUser.objects.all()
    context = {"title": "Members", "paged": paging.paged(request, rows), "typed": typed}
    return page.render(request, "console/members.html", context)


def _search(typed: str) -> Any:
    try:
        return CustomUser.objects.filter(phone_number=phone.normalise(typed))
    except phone.NotAPhoneNumber:
        if (number := paging.number(typed)) is not None:
            return CustomUser.objects.filter(pk=number)
        return CustomUser.objects.filter(full_name__icontains=typed)


@page.page("members.view")
def member(request: HttpRequest, member_id: int) -> HttpResponse:
    """Show one member, with the phone number masked."""
    return _page(request, _member(member_id), {})


def _page(request: HttpRequest, member: CustomUser, more: dict[str, Any]) -> HttpResponse:
    wallet = LedgerAccount.objects.filter(user=member, kind="wallet").first()
    owes = LedgerAccount.objects.filter(user=member, kind="receivable").first()
    statement = statements.statement(wallet, before=paging.number(request.GET.get("before", ""))) if wallet else None
    context = {
        "title": member.full_name or f"Member {member.pk}",
        "member": member,
        "totals": market_overview.member_totals(member.pk),
        "owes": statements.statement(owes).balance if owes else None,
        "statement": statement,
        "paged": {"next": statement.next if statement else None, "is_later": "before" in request.GET},
        "bets": member.bets.select_related("market").order_by("-pk")[:20],
        "transactions": timeline.of_member(member)[:20],
        "notes": member.notes.select_related("author").order_by("-pk")[:50],
        "may_open": page.may(request, "member.phone_opened"),
        "may_note": page.may(request, "member.note"),
        "may_ledger": page.may(request, "ledger.view"),
        "account_actions": staff.actions(request, member),
        "role": accounts.role_of(member),
        "longest_note": staff_notes.LONGEST,
        **more,
    }
    return page.render(request, "console/member.html", context)


@page.page("member.phone_opened", posts=True)
def open_phone(request: HttpRequest, member_id: int) -> HttpResponse:
    """Show the full phone number once. The audit trail records the reason that the person gives."""
    member = _member(member_id)
    if request.method != "POST":
        return _page(request, member, {})
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        messages.error(request, "Give a reason. The number was not shown.")
        return _page(request, member, {})
    number = phone_access.phone_number(member_id=member.pk, reason=reason, by=page.actor(request), at=wiring.now())
    return _page(request, member, {"opened": number})


@page.page("member.note", posts=True)
def note(request: HttpRequest, member_id: int) -> HttpResponse:
    """Write a note about a member."""
    member = _member(member_id)
    question = page.Question(
        title=f"Write a note about {member.full_name or member.pk}",
        effects=["All staff who may see members can read the note and your name. A note cannot be edited or removed."],
        fields=[page.Field("text", "Note", kind="area", max_length=staff_notes.LONGEST)],
        button="Save the note",
        back=reverse("admin:member", args=[member.pk]),
    )

    def act(answers: dict[str, str]) -> str:
        staff_notes.add(member_id=member.pk, text=answers["text"], by=page.actor(request), at=wiring.now())
        return "The note is saved."

    return page.ask(request, question, act)


def _member(member_id: int) -> CustomUser:
    member = CustomUser.objects.filter(pk=member_id).first() if member_id <= paging.LARGEST_ID else None
    if member is None:
        raise Http404(f"There is no member {member_id}.")
    return member


urls = [
    path("members/", members, name="members"),
    path("members/<int:member_id>/", member, name="member"),
    path("members/<int:member_id>/phone/", open_phone, name="member_phone"),
    path("members/<int:member_id>/note/", note, name="member_note"),
]
