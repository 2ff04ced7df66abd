"""Members: wallet, bets, statement, notes. Phones are masked until somebody who may opens one, which is recorded."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils import timezone

from api.console import page, paging
from payments.ledger import statements
from payments.models import LedgerAccount
from payments.payouts.operations import timeline
from payments.settlement import market_overview
from users import phone, phone_access, staff_notes
from users.models import CustomUser


@page.page("view_members")
def members(request: HttpRequest) -> HttpResponse:
    typed = request.GET.get("q", "").replace("\x00", "").strip()[:80]
    found = CustomUser.objects.all()
    if typed:
        found = _search(typed)
    context = {"title": "Members", "paged": paging.paged(request, found), "typed": typed}
    return page.render(request, "console/members.html", context)


def _search(typed: str) -> Any:
    try:
        return CustomUser.objects.filter(phone_number=phone.normalise(typed))
    except phone.NotAPhoneNumber:
        if (number := paging.number(typed)) is not None:
            return CustomUser.objects.filter(pk=number)
        return CustomUser.objects.filter(full_name__icontains=typed)


@page.page("view_members")
def member(request: HttpRequest, member_id: int) -> HttpResponse:
    return _member(request, _found(member_id), {})


def _member(request: HttpRequest, found: CustomUser, more: dict[str, Any]) -> HttpResponse:
    wallet = LedgerAccount.objects.filter(user=found, kind="wallet").first()
    owes = LedgerAccount.objects.filter(user=found, kind="receivable").first()
    statement = statements.statement(wallet, before=paging.number(request.GET.get("before", ""))) if wallet else None
    context = {
        "title": found.full_name or f"Member {found.pk}",
        "member": found,
        "totals": market_overview.member_totals(found.pk),
        "owes": statements.statement(owes).balance if owes else None,
        "statement": statement,
        "paged": {"next": statement.next if statement else None, "is_later": "before" in request.GET},
        "bets": found.bets.select_related("market").order_by("-pk")[:20],
        "transactions": timeline.of_member(found)[:20],
        "notes": found.notes.select_related("author").order_by("-pk")[:50],
        "may_open": page.may(request, "open_phone"),
        "may_note": page.may(request, "note_member"),
        "may_ledger": page.may(request, "view_ledger"),
        "longest_note": staff_notes.LONGEST,
        **more,
    }
    return page.render(request, "console/member.html", context)


@page.page("open_phone", posts=True)
def open_phone(request: HttpRequest, member_id: int) -> HttpResponse:
    found = _found(member_id)
    if request.method != "POST":
        return _member(request, found, {})
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        messages.error(request, "Say why you need the number. It was not shown.")
        return _member(request, found, {})
    number = phone_access.phone_number(member_id=found.pk, reason=reason, by=page.actor(request), at=timezone.now())
    return _member(request, found, {"opened": number})


@page.page("note_member", posts=True)
def note(request: HttpRequest, member_id: int) -> HttpResponse:
    found = _found(member_id)
    question = page.Question(
        title=f"Write a note about {found.full_name or found.pk}",
        will=["The note stays, with your name, for all staff who may see members. It cannot be edited."],
        fields=[page.Field("text", "Note", kind="area", max_length=staff_notes.LONGEST)],
        button="Write the note",
        back=reverse("admin:member", args=[found.pk]),
        money=False,
    )

    def act(answers: dict[str, str]) -> str:
        staff_notes.add(member_id=found.pk, text=answers["text"], by=page.actor(request), at=timezone.now())
        return "The note is written."

    return page.ask(request, question, act)


def _found(member_id: int) -> CustomUser:
    found = CustomUser.objects.filter(pk=member_id).first() if member_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no member {member_id}.")
    return found


urls = [
    path("members/", members, name="members"),
    path("members/<int:member_id>/", member, name="member"),
    path("members/<int:member_id>/phone/", open_phone, name="member_phone"),
    path("members/<int:member_id>/note/", note, name="member_note"),
]
