"""The command `authority`, which prints docs/authority.md: each act of staff with its rules and its addresses."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand
from django.urls import URLPattern, URLResolver, get_resolver

from users import authority, roles

HEAD = """# Who may do what

`python manage.py authority > docs/authority.md` writes this page from the table in `users/authority.py`. REST calls,
pages of the console and commands ask this table. A superuser may do every act. In development (`PROFILE`), a member of
staff without any role may do every act too, so that the guide's calls work with a token alone.

- **Code**: the act needs a code of the authenticator app that is at most `STEP_UP_MINUTES` old. REST takes it in the
  header `X-Authenticator-Code`; the console asks for it, or for the PIN of a person without an app.
- **People**: *two* means that another person approves the act. *By amount* means that this depends on the amount, and
  on the person's acts of the last 24 hours. *With* names the act whose threshold and sums count.
- **Not one's own**: a person may not do the act if this affair is the person's.
- **API key**: a key of a machine may hold the act. It then proposes the act, and a person approves it.

"""


class Command(BaseCommand):
    help = "Print docs/authority.md: who may do what, with which proof, and where."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(page(), ending="")


def page() -> str:
    """Return docs/authority.md."""
    where = addresses()
    lines = [f"| Act | May | Roles | Code | People | Reason | Not one's own | API key | Where |\n|{'---|' * 9}"]
    for act in authority.ACTS.values():
        holders = [name for name, codenames in roles.ROLES.items() if act.permission in codenames]
        cells = [
            f"`{act.name}`",
            act.words,
            ", ".join(holders) or "superusers",
            "yes" if act.money else "",
            {"one": "", "two": "two", "two by amount": "by amount"}[act.people]
            + (f", with `{act.threshold}`" if act.threshold else ""),
            "yes" if act.reason else "",
            act.own,
            "yes" if act.machine else "",
            "<br>".join(where.get(act.name, [])),
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return HEAD + "\n".join(lines) + "\n"


def addresses() -> dict[str, list[str]]:
    """Return the addresses of each act, REST calls first."""
    found = defaultdict(set)
    for address, act_name in guarded_routes():
        found[act_name].add(f"`{address}`")
    return {act_name: sorted(listed, key=lambda text: (not text.startswith("`/api"), text)) for act_name, listed in
            found.items()}  # fmt: skip


def guarded_routes() -> Iterator[tuple[str, str]]:
    """Yield (address, act) for each route whose view asks for an act."""
    for address, view in routes(get_resolver()):
        act_name = getattr(view, "act_name", "")
        # Django REST framework keeps the permissions in the class of a view: `cls` for functions.
        rest = getattr(view, "view_class", None) or getattr(view, "cls", None)
        for permission in getattr(rest, "permission_classes", ()):
            act_name = act_name or getattr(permission, "act_name", "")
        if act_name:
            yield address, act_name


def routes(resolver: URLResolver, above: str = "/") -> Iterator[tuple[str, Any]]:
    """Yield (address, view) for each route, with the parameters as <name>."""
    for entry in resolver.url_patterns:
        address = above + re.sub(r"<[a-z]+:(\w+)>", r"<\1>", str(entry.pattern))
        if isinstance(entry, URLPattern):
            yield address, entry.callback
        else:
            yield from routes(entry, address)
