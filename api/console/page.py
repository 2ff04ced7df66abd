"""Shared parts of the console's pages: permission check, page frame, confirmation form."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.cache import get_conditional_response

from api.console import step_up
from api.rest import fields as rest_fields
from payments.settlement.preview import FiguresDisagree
from users import audit, authority, roles
from users.refusal import Refusal

View = Callable[..., HttpResponseBase]


def page(act_name: str, *, posts: bool = False) -> Callable[[View], View]:
    """Refuse anyone who may not do the view's act, by its name in users.authority. Refuse POST unless `posts` is set.

    `ask` asks for a recent PIN or code if the act is a money act.
    """

    def wrap(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
            if not may(request, act_name):
                return refused(request, act_name)
            request.act_name = act_name  # type: ignore[attr-defined]
            if request.method not in ("GET", "HEAD", "POST") or (request.method == "POST" and not posts):
                return HttpResponseNotAllowed(["GET", "POST"] if posts else ["GET"])
            try:
                return view(request, *arguments, **named)
            except Http404 as missing:
                context = {"title": "Not found", "explanation": str(missing)}
                return render(request, "console/missing.html", context, status=404)

        guarded.act_name = act_name  # type: ignore[attr-defined]
        return guarded

    return wrap


def may(request: HttpRequest, act_name: str) -> bool:
    """Return True if the person may do the act, by its name in users.authority."""
    return authority.may(request.user, act_name)


def actor(request: HttpRequest) -> audit.Actor:
    """Return the person and their address, as the audit trail records them."""
    return rest_fields.actor(request)


def render(request: HttpRequest, template: str, context: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
    """Return a page in the console's frame. `context` must have a `title`."""
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context}, status=status)


def render_live(request: HttpRequest, template: str, context: Mapping[str, Any], *, every: int) -> HttpResponse:
    """Return a page that the script refreshes as a whole, every `every` seconds.

    The script asks for the page's own address with the header X-Fragment. The answer to that request is the page
    without its frame, or 304 if nothing on the page has changed.
    """
    if "X-Fragment" not in request.headers:
        return render(request, template, {**context, "live": every})
    fragment = {**context, "frame": "console/fragment.html"}
    response = TemplateResponse(request, template, fragment, headers={"X-Refresh": str(every)}).render()
    response["ETag"] = f'"{hashlib.sha256(response.content).hexdigest()}"'
    return get_conditional_response(request, etag=response["ETag"], response=response) or response


def refused(request: HttpRequest, act_name: str) -> HttpResponse:
    """Return the page that tells a person that their roles do not allow an act."""
    needed = roles.PERMISSIONS[authority.ACTS[act_name].permission]
    return render(request, "console/refused.html", {"title": "Not allowed", "needed": needed}, status=403)


@dataclass(frozen=True)
class Field:
    """One field of a confirmation form.

    `kind` is the HTML input type, or "area" for a text of `rows` lines.
    `choices` are pairs of (value, label). With `choices` the field is a list to choose from.
    """

    name: str
    label: str
    kind: str = "text"
    help: str = ""
    required: bool = True
    choices: Sequence[tuple[str, str]] = ()
    value: str = ""
    max_length: int = 300
    rows: int = 3


@dataclass(frozen=True)
class Question:
    """A confirmation form: the effects of an action in sentences, and the fields to fill in.

    `text_to_type`: a word that the person must type, for actions that are hard to take back.
    `act_name`: the act that the form carries out. Empty for the act of the page.
    `hidden`: values that the form sends back unchanged. With them the action applies to the figures that the
    person saw.
    """

    title: str
    effects: Sequence[str]
    button: str
    back: str
    facts: Sequence[tuple[str, Any]] = ()
    fields: Sequence[Field] = ()
    text_to_type: str = ""
    danger: bool = False
    act_name: str = ""
    template: str = "console/confirm.html"
    hidden: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


CarryOut = Callable[[dict[str, str]], str]


@dataclass
class Problems:
    """Problems of a form that was sent: sentences above it, and sentences at its fields by name."""

    above: list[str] = field(default_factory=list)
    at_fields: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.above or self.at_fields)


def ask(request: HttpRequest, question: Question, act: CarryOut, *, done: str | Callable[[], str] = "") -> HttpResponse:
    """Show a confirmation form. After a complete POST, call `act` and redirect to `done` or to `question.back`.

    `act` takes the answers, calls one service and returns a sentence that reports the result. If the service
    refuses, the form is shown again with the refusal above it, with status 409. A refusal whose `details` name fields
    of the form is shown at these fields. `done` may be a function, for an address that is known only after `act`.
    """
    answers: dict[str, str] = {}
    problems = Problems()
    if request.method == "POST":
        answers = {field.name: request.POST.get(field.name, "").strip() for field in question.fields}
        problems = Problems(_problems(request, question, answers))
        problems = problems or _carry_out(request, question, act, answers)
        if not problems:
            return HttpResponseRedirect((done() if callable(done) else done) or question.back)
    context = {
        "title": question.title,
        "question": question,
        "fields_shown": [
            {
                "field": field,
                "value": answers.get(field.name, field.value),
                "problem": problems.at_fields.get(field.name, ""),
            }
            for field in question.fields
        ],
        "problems": problems.above,
        "proof": step_up.asks_for(request) if _moves_money(request, question) else "",
        **question.more,
    }
    return render(request, question.template, context, status=409 if problems else 200)


def _problems(request: HttpRequest, question: Question, answers: Mapping[str, str]) -> list[str]:
    """Return the problems of a form.

    Check the PIN or code last. A code works only once, so a form with a wrong field must not use it up.
    """
    problems = [problem for field in question.fields if (problem := _problem(field, answers[field.name]))]
    if question.text_to_type and request.POST.get("typed", "").strip() != question.text_to_type:
        problems.append(f"Type “{question.text_to_type}” exactly to confirm. Nothing was done.")
    if not problems and _moves_money(request, question) and (problem := step_up.step_up(request)):
        problems.append(problem)
    return problems


def _moves_money(request: HttpRequest, question: Question) -> bool:
    act_name: str = question.act_name or request.act_name  # type: ignore[attr-defined]
    return authority.ACTS[act_name].money


def _problem(field: Field, answer: str) -> str:
    if field.required and not answer:
        return f"{field.label}: please fill this in. Nothing was done."
    if len(answer) > field.max_length or "\x00" in answer:
        return f"{field.label}: at most {field.max_length} characters. Nothing was done."
    if field.choices and answer not in dict(field.choices):
        return f"{field.label}: please choose one. Nothing was done."
    return ""


def _carry_out(request: HttpRequest, question: Question, act: CarryOut, answers: dict[str, str]) -> Problems:
    """Call `act` and report its result on the next page. If the service refuses, return the refusal in words."""
    try:
        messages.success(request, act(answers))
    except (Refusal, FiguresDisagree) as refusal:
        details = getattr(refusal, "details", None)
        if isinstance(details, dict) and details and set(details) <= {field.name for field in question.fields}:
            return Problems(["Please correct the marked fields. Nothing was done."], details)
        return Problems([f"{refusal} No money was moved."])
    return Problems()
