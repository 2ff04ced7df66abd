"""Tests of the audit trail's page: search, verification, and the words for each action."""

import re
from pathlib import Path

from django.test import Client

from api.console.pages import audit
from testing import console_scenes
from testing.console_scenes import page_text, submit
from users import authority


def test_audit_trail_is_searched_and_verified(console: Client) -> None:
    payout = console_scenes.failed_payout()
    submit(console, f"/admin/payouts/{payout.pk}/retry/")
    page = page_text(console.get(f"/admin/audit/?subject=transaction:{payout.pk}"))
    assert "payout.retry" in page
    assert f'href="/admin/payouts/{payout.pk}/"' in page
    assert "127.0.0.1" in page
    assert "No entries match" in page_text(console.get("/admin/audit/?action=market.undo"))
    assert "all are unchanged" in page_text(console.get("/admin/audit/?verify=1"))


def test_every_recorded_action_has_words() -> None:
    root = Path(audit.__file__).resolve().parents[3]
    code = "".join(
        path.read_text(encoding="utf-8")
        for app in ("users", "payments")
        for path in (root / app).rglob("*.py")
        if "tests" not in path.parts
    )
    subjects = {action.partition(".")[0] for action in audit.ACTIONS}
    recorded = set(re.findall(rf'"((?:{"|".join(subjects)})\.[a-z_]+)"', code))
    recorded -= set(authority.ACTS) - set(audit.ACTIONS)  # Acts that no entry is named after.
    # The code builds these two names as f"payout.decide_{...}", so the pattern does not find them.
    assert recorded | {"payout.decide_paid", "payout.decide_not_paid"} == set(audit.ACTIONS)
