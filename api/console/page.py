"""What every page of the console shares: its permission, its frame, its way of asking before it acts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse

from api.console import step_up
from api.rest import fields as rest_fields
from users import audit, roles
from users.refusal import Refusal

View = Callable[..., HttpResponseBase]


def page(permission: str, *, posts: bool = False) -> Callable[[View], View]:
    """Let only those in who have the permission (a codename of users.roles); a page that only reads takes no POST."""

    def wrap(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
            if not may(request, permission):
                context = {"title": "Not for your role", "needed": roles.PERMISSIONS[permission]}
                return render(request, "console/refused.html", context, status=403)
            if request.method not in ("GET", "HEAD", "POST") or (request.method == "POST" and not posts):
                return HttpResponseNotAllowed(["GET", "POST"] if posts else ["GET"])
            try:
                return view(request, *arguments, **named)
            except Http404 as missing:
                return render(request, "console/missing.html", {"title": "Not found", "what": str(missing)}, status=404)

        guarded.permission = permission  # type: ignore[attr-defined]
        return guarded

    return wrap


def may(request: HttpRequest, permission: str) -> bool:
    return request.user.has_perm(f"users.{permission}")


def actor(request: HttpRequest) -> audit.Actor:
    return rest_fields.actor(request)


def render(request: HttpRequest, template: str, context: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
    """A page in the console's frame; `context` has its `title`."""
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context}, status=status)


@dataclass(frozen=True)
class Field:
    """One thing that a confirmation asks for. `kind`: text, area, or choice with `choices` of (value, label)."""

    name: str
    label: str
    kind: str = "text"
    help: str = ""
    required: bool = True
    choices: Sequence[tuple[str, str]] = ()
    value: str = ""
    max_length: int = 300


@dataclass(frozen=True)
class Question:
    """What a page asks before it acts: what will happen, in sentences, and what it wants to be told.

    `typed`: words that must be typed, for what cannot be taken back lightly. `money`: it needs a fresh proof.
    `hidden` goes with the form as it is: what was seen, so that it is what is done.
    """

    title: str
    will: Sequence[str]
    button: str
    back: str
    facts: Sequence[tuple[str, Any]] = ()
    fields: Sequence[Field] = ()
    typed: str = ""
    danger: bool = False
    money: bool = True
    template: str = "console/confirm.html"
    hidden: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def ask(
    request: HttpRequest,
    question: Question,
    act: Callable[[dict[str, str]], str],
    *,
    done: str = "",
) -> HttpResponse:
    """Show the question; on its POST, with everything it wants, act and go on to `done` (or back).

    `act` gets what was typed, calls one service and returns the sentence that says what was done. A refusal is
    shown as it reads, with the question again.
    """
    answers, problems = {}, []
    if request.method == "POST":
        for wanted in question.fields:
            answers[wanted.name] = request.POST.get(wanted.name, "").strip()
            if wanted.required and not answers[wanted.name]:
                problems.append(f"{wanted.label}: please fill this in. Nothing was done.")
            elif len(answers[wanted.name]) > wanted.max_length or "\x00" in answers[wanted.name]:
                problems.append(f"{wanted.label}: at most {wanted.max_length} characters. Nothing was done.")
            elif wanted.choices and answers[wanted.name] not in dict(wanted.choices):
                problems.append(f"{wanted.label}: please choose one. Nothing was done.")
        if question.typed and request.POST.get("typed", "").strip() != question.typed:
            problems.append(f"Type “{question.typed}” exactly to confirm. Nothing was done.")
        if not problems and question.money and (problem := step_up.step_up(request)):
            problems.append(problem)
        if not problems:
            try:
                messages.success(request, act(answers))
            except Refusal as refusal:
                problems.append(f"{refusal} Nothing was done, and no money was moved.")
            else:
                return HttpResponseRedirect(done or question.back)
    context = {
        "title": question.title,
        "question": question,
        "fields_shown": [{"field": one, "value": answers.get(one.name, one.value)} for one in question.fields],
        "problems": problems,
        "proof": step_up.asks_for(request) if question.money else "",
        **question.more,
    }
    return render(request, question.template, context, status=409 if problems else 200)
