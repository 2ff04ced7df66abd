"""Tests of the audit trail's page: search, verification, and the words for each action."""

import re
from pathlib import Path

from django.test import Client

from api.console.pages import audit
from markets.models import NAIROBI
from testing import console_scenes
from testing.console_scenes import page_text, submit
from users import authority
from users.models import AuditEntry

SUBJECTS = ("api_key", "audit", "console", "disputes", "ledger", "members", "release")
# Acts that only read, and acts whose entries have other names. Their names stand in the table of acts.
NOT_RECORDED = {
    "audit.view", "console.view", "disputes.view", "figures.view", "ledger.export", "ledger.view",
    "market.preview", "members.view", "payout.confirm", "payout.decide", "payout.reject", "proposal.approve",
    "proposal.view", "restore.confirm", "sending.off", "sending.on", "sending.release", "staff.view",
}  # fmt: skip


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
        for app in ("users", "markets", "payments")
        for path in (root / app).rglob("*.py")
        if "tests" not in path.parts
    )
    subjects = {action.partition(".")[0] for action in audit.ACTIONS} | set(SUBJECTS)
    recorded = set(re.findall(rf'"((?:{"|".join(subjects)})\.[a-z_]+)"', code))
    assert recorded - NOT_RECORDED <= set(audit.ACTIONS)
    assert not NOT_RECORDED & set(audit.ACTIONS)
    # The code builds the names of acts on accounts, and some others with an f-string.
    built = {name for name in authority.ACTS if authority.ACTS[name].own == "account"}
    built |= {"payout.decide_paid", "payout.decide_not_paid"}
    built |= {f"proposal.{end}" for end in ("stale", "withdraw", "expire")}
    # Older trails have these.
    former = {"market.propose", "market.reject", "market.proposal_stale"}
    assert set(audit.ACTIONS) - recorded <= built | former


def test_entries_are_filtered_by_person_and_day_and_downloaded(console: Client) -> None:
    payout = console_scenes.failed_payout()
    submit(console, f"/admin/payouts/{payout.pk}/retry/")
    entry = AuditEntry.objects.get(action="payout.retry")
    day = f"{entry.at.astimezone(NAIROBI):%Y-%m-%d}"
    assert entry.actor is not None
    kept = {"person": entry.actor.phone_number, "since": day, "until": day}
    assert "Payout sent again" in page_text(console.get("/admin/audit/", kept))
    for lost in ({"person": "Nobody"}, {"until": "2020-01-01"}, {"since": "2999-01-01"}):
        assert "No entries match" in page_text(console.get("/admin/audit/", kept | lost)), lost
    assert "is not a date" in page_text(console.get("/admin/audit/", {"since": "99999-01-01"}))

    unreadable = console.get("/admin/audit/export/", {"since": "soon"}, follow=True)
    assert "is not a date" in page_text(unreadable)

    file = b"".join(console.get("/admin/audit/export/", kept).streaming_content).decode()  # type: ignore[attr-defined]
    assert file.startswith("number,at,person,source,action,words,subject,before,after,reason,hash")
    assert entry.hash in file
    assert len(file.splitlines()) == 1 + AuditEntry.objects.filter(actor=entry.actor).count()


def test_changes_read_as_sentences() -> None:
    entry = AuditEntry(before='{"role":"none","staff":false}', after='{"role":"operator","staff":true,"proposed_by":3}')
    assert audit.changes(entry) == ["role: none → operator", "staff: no → yes", "proposed by: 3"]
    assert audit.changes(AuditEntry(before='{"active":true}', after="{}")) == ["active was yes"]
    later = AuditEntry(before="{}", after='{"expires_at":"2026-12-03T03:08:50.448Z","amount":null,"preview":"e2fb"}')
    assert audit.changes(later) == ["expires at: 3 Dec 2026, 06:08 EAT", "amount: none"]
