"""Permissions of staff and the roles that bundle them. docs/console.md shows the table.

A role is a Django group that a migration creates. A member of staff may have several roles. Superusers may do
everything. users/authority.py says which permission each act needs; REST, console and commands ask it.
"""

from typing import Any

# Codename and display name. All permissions belong to the member model, because they are rights of a person.
PERMISSIONS = {
    "view_console": "See the home page, markets, payouts and payouts in doubt, with phones masked",
    "view_ledger": "See accounts, transfers and the trial balance",
    "export_books": "Download accounts and balances",
    "view_audit": "See and verify the audit trail",
    "view_members": "See members' wallets, bets and statements, with phones masked",
    "open_phone": "See a member's whole phone number, which is recorded",
    "note_member": "Write notes about a member",
    "act_on_payouts": "Retry, ask about, hold, release payouts, or pay them to the wallet",
    "decide_payout": "Decide the outcome of a held payout from M-Pesa's statement",
    "switch_sending": "Stop and start the sending of payouts",
    "run_market": "Create and change markets, suspend and resume betting, close a market",
    "resolve_market": "Resolve, void, withdraw and undo a market, or scratch an outcome",
    "approve_resolution": "Approve another person's proposal for a market",
    "answer_dispute": "Answer, uphold or reject members' disputes",
    "decide_recovery": "Set off or write off members' debts",
    "make_api_keys": "Make and revoke API keys of machines",
    "change_member": "Suspend or unlock members, and propose a new PIN or phone for them",
    "manage_staff": "Add and suspend staff, and propose or approve their roles, PINs and phones",
}

_READ_ONLY = {"view_console", "view_members", "view_ledger"}
ROLES: dict[str, set[str]] = {
    "viewer": _READ_ONLY,
    "operator": _READ_ONLY
    | {"view_audit", "note_member", "act_on_payouts", "decide_payout", "switch_sending", "run_market"}
    | {"resolve_market", "answer_dispute"},
    "approver": _READ_ONLY
    | {"view_audit", "decide_payout", "switch_sending", "approve_resolution", "decide_recovery", "make_api_keys"},
    "accountant": _READ_ONLY | {"view_audit", "export_books", "decide_recovery"},
    "support": {"view_console", "view_members", "open_phone", "note_member", "answer_dispute", "change_member"},
    "administrator": {"view_console", "view_members", "view_audit", "manage_staff", "change_member"},
}


def install(group: Any, permission: Any, content_type: Any) -> None:
    """Create the roles and their permissions, or update them to the tables above.

    Takes the model classes as arguments, because a migration passes its historical model classes.
    Idempotent: a second call changes nothing.
    """
    member_model, _ = content_type.objects.get_or_create(app_label="users", model="customuser")
    for codename, name in PERMISSIONS.items():
        permission.objects.update_or_create(content_type=member_model, codename=codename, defaults={"name": name})
    for role_name, codenames in ROLES.items():
        permissions = permission.objects.filter(content_type=member_model, codename__in=codenames)
        role, _ = group.objects.get_or_create(name=role_name)
        role.permissions.set(permissions)
