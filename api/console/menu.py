"""Menu, environment label and static files of the console. The theme calls these functions."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse

from users import authority

# (title, [(title, icon, URL name of the page, act)]). Act None means superusers only.
MENU: list[tuple[str, list[tuple[str, str, str, str | None]]]] = [
    (
        "",
        [
            ("Home", "home", "index", "console.view"),
            ("Markets", "query_stats", "markets", "console.view"),
            ("Payouts", "payments", "payouts", "console.view"),
            ("In doubt", "hourglass_empty", "in_doubt", "console.view"),
            ("Proposals", "how_to_reg", "proposals", "proposal.view"),
            ("Disputes", "gavel", "disputes", "disputes.view"),
        ],
    ),
    (
        "Books",
        [
            ("Accounts", "account_balance", "accounts", "ledger.view"),
            ("Trial balance", "balance", "trial_balance", "ledger.view"),
            ("Member debts", "assignment_return", "recoveries", "ledger.view"),
        ],
    ),
    (
        "People",
        [
            ("Members", "group", "members", "members.view"),
            ("Staff", "badge", "staff", "staff.view"),
            ("Audit trail", "history_edu", "audit", "audit.view"),
        ],
    ),
    (
        "Settings",
        [
            ("Limits and law", "policy", "figures", "figures.view"),
            ("Sending", "toggle_on", "sending", "console.view"),
            ("API keys", "key", "api_keys", "api_key.make"),
            ("Records", "database", "records", None),
        ],
    ),
]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the menu. The theme hides each entry that the person may not open."""
    user = request.user
    return [
        {
            "title": title,
            "separator": bool(title),
            "items": [
                {
                    "title": text,
                    "icon": icon,
                    "link": reverse(f"admin:{name}"),
                    "active": _is_here(request, reverse(f"admin:{name}")),
                    "permission": _always
                    if (authority.may(user, act_name) if act_name else user.is_superuser)
                    else _never,
                }
                for text, icon, name, act_name in items
            ],
        }
        for title, items in MENU
    ]


def account_links(request: HttpRequest) -> list[dict[str, str]]:
    """Return the entries of the menu behind the person's name."""
    return [
        {"title": "Change your PIN", "link": reverse("admin:password_change")},
        {"title": "Log out everywhere", "link": reverse("admin:log_out_everywhere")},
    ]


def _is_here(request: HttpRequest, link: str) -> bool:
    return request.path == link if link == reverse("admin:index") else request.path.startswith(link)


def _always(request: HttpRequest) -> bool:
    return True


def _never(request: HttpRequest) -> bool:
    return False


def environment(request: HttpRequest) -> tuple[str, str]:
    """Return the label for real or simulated money, and the label's colour."""
    return ("Live money", "danger") if settings.MPESA_PRODUCTION else ("Sandbox", "info")


def favicon(request: HttpRequest) -> str:
    """Return the address of the icon in the browser's tab."""
    return static("console/favicon.svg")


def stylesheet(request: HttpRequest) -> str:
    """Return the address of the console's stylesheet."""
    return static("console/console.css")


def script(request: HttpRequest) -> str:
    """Return the address of the console's script."""
    return static("console/console.js")
