"""Tests of `manage.py verify_audit`: it prints the trail's state or its first difference."""

import re
from datetime import datetime
from io import StringIO
from pathlib import Path

import pytest
from django.conf import Settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from testing import database
from users import audit, audit_heads


def without_guards(sql: str) -> None:
    """Change the trail as the owner of the table can."""
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # A table with pending events cannot be altered.
        cursor.execute("ALTER TABLE users_auditentry DISABLE TRIGGER USER")
        cursor.execute(sql)
        cursor.execute("ALTER TABLE users_auditentry ENABLE TRIGGER USER")


def test_verify_audit_command_prints_its_result_or_the_first_difference(db: None, at: datetime) -> None:
    # given
    with transaction.atomic():
        audit.record(action="market.resolve", by=audit.MACHINE, subject="market:1", before={}, after={}, at=at)
    output = StringIO()

    # when
    call_command("verify_audit", stdout=output)

    # then
    printed = re.fullmatch(
        r"The audit trail is intact: 1 entry, (1:[0-9a-f]{64})\nIt has all 0 kept heads of this database in .*\n",
        output.getvalue(),
    )
    assert printed is not None
    call_command("verify_audit", noted=printed[1], stdout=output)
    with pytest.raises(CommandError, match="must be an entry's number and hash"):
        call_command("verify_audit", noted="x", stdout=output)

    # when
    without_guards("UPDATE users_auditentry SET action = 'other'")

    # then
    with pytest.raises(CommandError, match="entry 1 was changed after recording") as refused:
        call_command("verify_audit", stdout=output)
    assert refused.value.returncode == 1


@pytest.mark.parametrize("damage", ["DELETE FROM users_auditentry", "DELETE FROM users_auditentry WHERE number > 1"])
def test_emptied_or_cut_trail_is_noticed_by_its_kept_heads(
    db: None, settings: Settings, tmp_path: Path, at: datetime, damage: str
) -> None:
    """What is left of the trail is consistent, so only a head outside the database shows the loss."""
    # given
    settings.AUDIT_HEADS_FILE = tmp_path / "heads.txt"
    for market in (1, 2):
        with transaction.atomic():
            audit.record(
                action="market.resolve", by=audit.MACHINE, subject=f"market:{market}", before={}, after={}, at=at
            )
        audit_heads.keep(settings.AUDIT_HEADS_FILE, at=at)
        audit_heads.keep(settings.AUDIT_HEADS_FILE, at=at)  # The same head is kept once.
    assert len(audit_heads.kept(settings.AUDIT_HEADS_FILE)) == 2
    call_command("verify_audit", stdout=StringIO())

    # when
    without_guards(damage)

    # then
    with pytest.raises(CommandError, match="entry 2 is missing"):
        call_command("verify_audit", stdout=StringIO())


def test_damaged_file_of_heads_fails_the_check(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.AUDIT_HEADS_FILE = tmp_path / "heads.txt"
    settings.AUDIT_HEADS_FILE.write_text("2026-02-17T18:00:00Z nothing\n")
    with pytest.raises(CommandError, match=r"Line 1 of .* is damaged"):
        call_command("verify_audit", stdout=StringIO())


def test_heads_of_another_database_are_not_compared(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.AUDIT_HEADS_FILE = tmp_path / "heads.txt"
    settings.AUDIT_HEADS_FILE.write_text(f"2026-02-17T18:00:00Z 1-1 7 {'0' * 64}\n")
    call_command("verify_audit", stdout=StringIO())
