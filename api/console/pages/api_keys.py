"""Pages of API keys of machines: their list, a new key, which is shown once, and revocation."""

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import page, paging
from payments import wiring
from users import api_keys, authority
from users.models import ApiKey

MACHINE_ACTS = [act for act in authority.ACTS.values() if act.machine]
NO, YES = "no", "yes"


@page.page("api_key.make")
def keys(request: HttpRequest) -> HttpResponse:
    """List the keys, newest first."""
    context = {"title": "API keys", "paged": paging.paged(request, api_keys.newest()), "at": wiring.now()}
    return page.render(request, "console/api_keys.html", context)


@page.page("api_key.make", posts=True)
def make(request: HttpRequest) -> HttpResponse:
    """Ask for the name and the acts of a key, make it, and show its secret once."""
    question = page.Question(
        title="Make an API key",
        effects=[
            "A machine uses the key in place of a token: Authorization: Bearer and the key.",
            "The key can do no more than you. It ends when you are suspended or lose the right.",
            "Decisions by a key are proposals: people must approve them.",
            "The key is shown once.",
        ],
        fields=[
            page.Field("name", "Name of the machine", max_length=80),
            page.Field("days", "Valid for days", kind="number", value="90", max_length=3),
            page.Field(
                "addresses",
                "Addresses",
                required=False,
                help="IP addresses or networks, with commas. Empty: any.",
            ),
            *[
                page.Field(act.name, f"May {act.words}", choices=[(NO, "No"), (YES, "Yes")], value=NO)
                for act in MACHINE_ACTS
            ],
        ],
        button="Make the key",
        back=reverse("admin:api_keys"),
    )
    made: list[str] = []

    def act(answers: dict[str, str]) -> str:
        wanted = api_keys.Request(
            name=answers["name"],
            acts=[machine_act.name for machine_act in MACHINE_ACTS if answers[machine_act.name] == YES],
            addresses=[part.strip() for part in answers["addresses"].split(",") if part.strip()],
            days=paging.number(answers["days"]) or 0,
        )
        key, secret = api_keys.make(
            wanted, may=lambda name: page.may(request, name), by=page.actor(request), at=wiring.now()
        )
        made.append(secret)
        return f"The key {key.name} is made."

    response = page.ask(request, question, act)
    if made:
        return page.render(request, "console/api_key_made.html", {"title": "Your new API key", "secret": made[0]})
    return response


@page.page("api_key.revoke", posts=True)
def revoke(request: HttpRequest, key_id: int) -> HttpResponse:
    """Ask for a reason and revoke a key."""
    key = ApiKey.objects.filter(pk=key_id).first()
    if key is None:
        raise Http404(f"There is no API key {key_id}.")
    question = page.Question(
        title=f"Revoke the key {key.name}",
        effects=["The machine that uses this key is refused from now on. This cannot be taken back."],
        fields=[page.Field("reason", "Reason", kind="area")],
        button="Revoke the key",
        danger=True,
        back=reverse("admin:api_keys"),
    )

    def act(answers: dict[str, str]) -> str:
        api_keys.revoke(key_id=key_id, reason=answers["reason"], by=page.actor(request), at=wiring.now())
        return f"The key {key.name} is revoked."

    return page.ask(request, question, act)


urls = [
    path("api-keys/", keys, name="api_keys"),
    path("api-keys/make/", make, name="api_key_make"),
    path("api-keys/<int:key_id>/revoke/", revoke, name="api_key_revoke"),
]
