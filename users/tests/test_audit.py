"""The audit trail: every decision in its place, and whatever is changed about it shows."""

import re
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from testing.builders import at_once, operator
from users import audit
from users.audit import Actor
from users.models import AuditEntry

THREADS = 16


def decide(at: datetime, subject: str = "market:1", by: Actor = audit.MACHINE, **after: object) -> None:
    with transaction.atomic():
        audit.record(action="market.resolve", by=by, subject=subject, before={}, after=after, at=at, reason="Because.")


def without_guards(sql: str) -> None:
    """Change the trail as somebody who owns the table could."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # A table with pending events cannot be altered.
        cursor.execute("ALTER TABLE users_auditentry DISABLE TRIGGER USER")
        cursor.execute(sql)
        cursor.execute("ALTER TABLE users_auditentry ENABLE TRIGGER USER")


def test_entries_are_numbered_and_chained_with_what_they_say(db: None, at: datetime) -> None:
    # given
    user = operator()

    # when
    decide(at, by=Actor(user.pk, "192.0.2.7"), pool=Decimal("300.00"), outcome="Ndiyo „sawa“\n", until=at)
    decide(at + timedelta(microseconds=5), subject="market:2")

    # then
    first, second = AuditEntry.objects.order_by("number")
    assert (first.number, second.number) == (1, 2)
    assert first.previous_hash == audit.BEFORE_THE_FIRST
    assert second.previous_hash == first.hash
    assert (first.actor_id, first.source, first.reason) == (user.pk, "192.0.2.7", "Because.")
    assert first.after == '{"outcome":"Ndiyo „sawa“\\n","pool":"300.00","until":"2026-02-16T07:30:00Z"}'
    assert audit.verify() == audit.Chain(2, second.hash, None)


def test_a_decision_that_is_not_carried_out_is_not_recorded(db: None, at: datetime) -> None:
    # when
    with pytest.raises(RuntimeError), transaction.atomic():
        audit.record(action="a", by=audit.MACHINE, subject="s", before={}, after={}, at=at)
        raise RuntimeError

    # then
    assert audit.verify() == audit.Chain(0, audit.BEFORE_THE_FIRST, None)


def test_nothing_is_recorded_outside_a_transaction(transactional_db: None, at: datetime) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        audit.record(action="a", by=audit.MACHINE, subject="s", before={}, after={}, at=at)
    assert AuditEntry.objects.count() == 0


@pytest.mark.parametrize(
    "sql",
    ["UPDATE users_auditentry SET reason = ''", "DELETE FROM users_auditentry", "TRUNCATE users_auditentry CASCADE"],
)
def test_the_trail_cannot_be_changed(db: None, at: datetime, sql: str) -> None:
    # given
    decide(at)

    # when
    with pytest.raises(DatabaseError, match="The audit trail is not changed"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute(sql)

    # then
    assert audit.verify().entries == 1


def test_what_is_written_past_the_service_is_chained_too(db: None, at: datetime) -> None:
    # given
    decide(at)

    # when
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO users_auditentry"
            " (number, at, action, source, subject, before, after, reason, previous_hash, hash)"
            " SELECT 77, now(), 'sql', 'psql', 's', '{}', '{}', '', '', '' FROM generate_series(1, 3)"
        )

    # then
    assert audit.verify().difference is None
    assert list(AuditEntry.objects.order_by("number").values_list("number", flat=True)) == [1, 2, 3, 4]


def test_many_at_once_make_one_chain_without_a_fork(transactional_db: None, at: datetime) -> None:
    # when
    answers = at_once(*[partial(decide, at, f"market:{number}") for number in range(THREADS)])

    # then
    assert answers == [None] * THREADS
    assert audit.verify().difference is None
    assert audit.verify().entries == THREADS
    assert AuditEntry.objects.values("previous_hash").distinct().count() == THREADS


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("UPDATE users_auditentry SET reason = reason || '.' WHERE number = 2", "entry 2 is not what was recorded"),
        ('UPDATE users_auditentry SET after = \'{"pool":"1"}\' WHERE number = 1', "entry 1 is not what was recorded"),
        ("UPDATE users_auditentry SET actor_id = NULL WHERE number = 3", "entry 3 is not what was recorded"),
        ("UPDATE users_auditentry SET at = at + interval '1 microsecond' WHERE number = 3", "entry 3 is not what"),
        ("UPDATE users_auditentry SET source = subject, subject = source WHERE number = 2", "entry 2 is not what was"),
        ("DELETE FROM users_auditentry WHERE number = 2", "entry 2 is missing"),
        ("UPDATE users_auditentry SET hash = repeat('a', 64) WHERE number = 3", "entry 3 is not what was recorded"),
        ("UPDATE users_auditentry SET previous_hash = repeat('a', 64) WHERE number = 3", "entry 3 does not follow"),
    ],
)
def test_whatever_is_changed_shows(db: None, at: datetime, change: str, difference: str) -> None:
    # given
    user = operator()
    for number in range(3):
        decide(at, f"market:{number}", by=Actor(user.pk, "192.0.2.7"))
    assert audit.verify().difference is None

    # when
    without_guards(change)

    # then
    found = audit.verify().difference
    assert found is not None
    assert found.startswith(difference)


def test_a_cut_off_end_shows_against_what_was_noted(db: None, at: datetime) -> None:
    # given
    for number in range(3):
        decide(at, f"market:{number}")
    noted = (3, audit.verify().head)
    decide(at, "market:3")
    assert audit.verify(expected=noted).difference is None

    # when
    without_guards("DELETE FROM users_auditentry WHERE number >= 3")

    # then
    assert audit.verify().difference is None
    assert audit.verify(expected=noted).difference == "entry 3 is missing: the trail ends at 2"


def test_a_trail_written_anew_shows_against_what_was_noted(db: None, at: datetime) -> None:
    # given
    decide(at)
    noted = (1, audit.verify().head)

    # when
    without_guards("DELETE FROM users_auditentry")
    decide(at + timedelta(seconds=1))

    # then
    assert audit.verify().difference is None
    found = audit.verify(expected=noted).difference
    assert found is not None
    assert found.startswith("entry 1 is another one than was noted")


def test_the_command_says_how_far_the_trail_holds(db: None, at: datetime) -> None:
    # given
    decide(at)
    told = StringIO()

    # when
    call_command("verify_audit", stdout=told)

    # then
    found = re.fullmatch(r"The audit trail holds: 1 entries, (1:[0-9a-f]{64})\n", told.getvalue())
    assert found is not None
    call_command("verify_audit", noted=found[1], stdout=told)
    with pytest.raises(CommandError, match="must be an entry's number and hash"):
        call_command("verify_audit", noted="x", stdout=told)

    # when
    without_guards("UPDATE users_auditentry SET action = 'other'")

    # then
    with pytest.raises(CommandError, match="entry 1 is not what was recorded") as refused:
        call_command("verify_audit", stdout=told)
    assert refused.value.returncode == 1
