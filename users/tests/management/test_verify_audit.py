"""Tests of `manage.py verify_audit`: it prints the trail's state or its first difference."""

import re
from datetime import datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from testing import database
from users import audit


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
    printed = re.fullmatch(r"The audit trail is intact: 1 entry, (1:[0-9a-f]{64})\n", output.getvalue())
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
