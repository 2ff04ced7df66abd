"""Page of the figures of law, limits and thresholds, and the form that proposes a change."""

from datetime import datetime

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page
from api.console.pages import proposals
from markets.models import NAIROBI
from payments import wiring
from users import figure_changes, figures
from users.models import Figure
from users.proposals import Proposed


@page.page("figures.view")
def limits_and_law(request: HttpRequest) -> HttpResponseBase:
    """Show every figure with its values, the newest first, and every threshold."""
    rows: dict[str, list[Figure]] = {}
    for row in Figure.objects.select_related("set_by").order_by("-valid_from", "-pk"):
        rows.setdefault(row.name, []).append(row)
    law = figures.KINDS.items()
    thresholds = [figures.THRESHOLD + act_name for act_name in figure_changes.with_threshold()]
    context = {
        "title": "Limits and law",
        "now": wiring.now(),
        "groups": [
            ("Law and limits", [(name, kind.words, kind.unit, rows.get(name, [])) for name, kind in law]),
            (
                "Thresholds for a second person",
                [(name, figure_changes.words_of(name), "shillings", rows.get(name, [])) for name in thresholds],
            ),
        ],
        "may_change": page.may(request, "figure.set"),
    }
    return page.render(request, "console/figures.html", context)


@page.page("figure.set", posts=True)
def change_figure(request: HttpRequest, name: str) -> HttpResponseBase:
    """Propose a new value of a figure. Another person must approve it."""
    known = {*figures.KINDS, *(figures.THRESHOLD + act_name for act_name in figure_changes.with_threshold())}
    if name not in known:
        raise Http404(f"There is no figure {name}.")
    before = figures.latest(name)
    question = page.Question(
        title=f"Change: {figure_changes.words_of(name)}",
        effects=[
            "The new value holds from its date on. Earlier bets and payouts keep the value of their day.",
            "Second approval needed: nothing changes until another person approves it.",
        ],
        facts=[("Value now", before.value if before else "none"), ("Source", before.source if before else "none")],
        fields=[
            page.Field("value", "New value", value=before.value if before else "", max_length=500),
            page.Field(
                "valid_from", "Valid from", kind="datetime-local", required=False, max_length=30,
                help="Nairobi time. Leave it empty for a value that holds as soon as it is approved.",
            ),
            page.Field("source", "Source", kind="area", help="The law, form or decision that the value comes from."),
            page.Field("reason", "Reason", kind="area"),
        ],
        button="Propose the change",
        back=reverse("admin:figures"),
        act_name=figure_changes.act_of(name),
    )  # fmt: skip

    def act(answers: dict[str, str]) -> str:
        at = wiring.now()
        change = figures.Change(
            name, answers["value"], _moment(answers["valid_from"], at), answers["source"], answers["reason"]
        )
        made = figure_changes.change(change, by=page.actor(request), at=at)
        if isinstance(made, Proposed):
            return proposals.sent_to_another_person(made)
        return "The value is set. Fewer than two people may approve such a change, so yours was enough. It is recorded."

    return page.ask(request, question, act)


def _moment(typed: str, at: datetime) -> datetime:
    """Parse a Nairobi date and time. An empty text means now.

    Raises: figures.BadFigure.
    """
    if not typed:
        return at
    try:
        return datetime.fromisoformat(typed).replace(tzinfo=NAIROBI)
    except ValueError:
        raise figures.BadFigure("That is not a date and time. Type one such as 2026-02-16T21:45.") from None


urls = [
    path("figures/", limits_and_law, name="figures"),
    path("figures/<str:name>/", change_figure, name="figure_change"),
]
