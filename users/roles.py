"""What staff may do in the console: permissions, and the roles that bundle them. docs/console.md shows the table.

A role is a group of Django's; a migration makes it, and a member of staff may have several. Superusers may do
everything. The REST admin calls ask for `is_staff` only, as the guide has it; roles apply to the console.
"""

from typing import Any

# codename: what it lets a person do. All hang on the member model, as they say what a person may do.
PERMISSIONS = {
    "view_console": "See the home page, markets, payouts and limbo, with phones masked",
    "view_ledger": "See accounts, transfers and the trial balance",
    "export_books": "Download accounts and balances",
    "view_audit": "See and verify the audit trail",
    "view_members": "See members' wallets, bets and statements, with phones masked",
    "open_phone": "See a member's whole phone number, which is recorded",
    "note_member": "Write notes about a member",
    "act_on_payouts": "Retry, ask about, hold, release payouts, or pay them to the wallet",
    "decide_payout": "Say what became of a held payout, by M-Pesa's statement",
    "switch_sending": "Stop and start all sending",
    "resolve_market": "Resolve, void, withdraw and undo a market, scratch an outcome",
    "approve_resolution": "Approve what another person proposed for a market",
    "answer_dispute": "Answer, uphold and reject members' disputes",
    "decide_recovery": "Set off or write off what members owe back",
}

_LOOKING = {"view_console", "view_members", "view_ledger"}
ROLES: dict[str, set[str]] = {
    "viewer": _LOOKING,
    "operator": _LOOKING
    | {"view_audit", "note_member", "act_on_payouts", "decide_payout", "switch_sending", "resolve_market"}
    | {"answer_dispute"},
    "approver": _LOOKING | {"view_audit", "decide_payout", "switch_sending", "approve_resolution", "decide_recovery"},
    "accountant": _LOOKING | {"view_audit", "export_books", "decide_recovery"},
    "support": {"view_console", "view_members", "open_phone", "note_member", "answer_dispute"},
}
# Making a market and mending its description are forms of the admin, with the admin's own permissions.
FORMS: dict[str, set[tuple[str, str]]] = {
    "operator": {
        ("markets", "add_market"),
        ("markets", "change_market"),
        ("markets", "view_market"),
        ("markets", "add_outcome"),
        ("markets", "view_outcome"),
    }
}


def install(group: Any, permission: Any, content_type: Any) -> None:
    """Make the roles, or bring them up to the table. Takes model classes, as a migration has its own. Idempotent."""
    member, _ = content_type.objects.get_or_create(app_label="users", model="customuser")
    for codename, name in PERMISSIONS.items():
        permission.objects.get_or_create(content_type=member, codename=codename, defaults={"name": name})
    for role, codenames in ROLES.items():
        found = list(permission.objects.filter(content_type=member, codename__in=codenames))
        for app, codename in sorted(FORMS.get(role, set())):
            model, _ = content_type.objects.get_or_create(app_label=app, model=codename.partition("_")[2])
            one, _ = permission.objects.get_or_create(
                content_type=model, codename=codename, defaults={"name": f"Can {codename.replace('_', ' ')}"}
            )
            found.append(one)
        made, _ = group.objects.get_or_create(name=role)
        made.permissions.set(found)
