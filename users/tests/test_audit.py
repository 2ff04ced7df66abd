"""Tests of users/audit.py: the chain is complete, and every change to the chain is found."""

from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest
from django.db import DatabaseError, connection, transaction

from testing import database
from testing.builders import at_once, operator
from users import audit
from users.audit import Actor
from users.models import AuditEntry

THREADS = 16


def decide(at: datetime, subject: str = "market:1", by: Actor = audit.MACHINE, **after: object) -> None:
    with transaction.atomic():
        audit.record(action="market.resolve", by=by, subject=subject, before={}, after=after, at=at, reason="Because.")


def without_guards(sql: str) -> None:
    """Change the trail as the owner of the table can."""
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # A table with pending events cannot be altered.
        cursor.execute("ALTER TABLE users_auditentry DISABLE TRIGGER USER")
        cursor.execute(sql)
        cursor.execute("ALTER TABLE users_auditentry ENABLE TRIGGER USER")


def test_entries_are_numbered_and_chained_with_their_fields(db: None, at: datetime) -> None:
    # given
    user = operator()

    # when
    decide(at, by=Actor(user.pk, "192.0.2.7"), pool=Decimal("300.00"), outcome="Ndiyo „sawa“\n", until=at)
    decide(at + timedelta(microseconds=5), subject="market:2")

    # then
    first, second = AuditEntry.objects.order_by("number")
    assert (first.number, second.number) == (1, 2)
    assert first.previous_hash == audit.HASH_BEFORE_FIRST
    assert second.previous_hash == first.hash
    assert (first.actor_id, first.source, first.reason) == (user.pk, "192.0.2.7", "Because.")
    assert first.after == '{"outcome":"Ndiyo „sawa“\\n","pool":"300.00","until":"2026-02-16T07:30:00Z"}'
    assert audit.verify() == audit.Chain(2, second.hash, None)


def test_rolled_back_decision_is_not_recorded(db: None, at: datetime) -> None:
    # when
    with transaction.atomic():
        audit.record(action="a", by=audit.MACHINE, subject="s", before={}, after={}, at=at)
        transaction.set_rollback(True)

    # then
    assert audit.verify() == audit.Chain(0, audit.HASH_BEFORE_FIRST, None)


def test_recording_outside_a_transaction_is_refused(transactional_db: None, at: datetime) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        audit.record(action="a", by=audit.MACHINE, subject="s", before={}, after={}, at=at)
    assert AuditEntry.objects.count() == 0


@pytest.mark.parametrize(
    "sql",
    ["UPDATE users_auditentry SET reason = ''", "DELETE FROM users_auditentry", "TRUNCATE users_auditentry CASCADE"],
)
@pytest.mark.usefixtures("as_owner")
def test_changing_the_trail_is_refused_by_the_database(db: None, at: datetime, sql: str) -> None:
    # given
    decide(at)

    # when
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        with pytest.raises(DatabaseError, match="The audit trail is not changed"), transaction.atomic():
            cursor.execute(sql)

    # then
    assert audit.verify().entries == 1


def test_entry_inserted_by_plain_sql_is_chained_too(db: None, at: datetime) -> None:
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


def test_concurrent_entries_make_one_chain_without_fork(transactional_db: None, at: datetime) -> None:
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
        (
            "UPDATE users_auditentry SET reason = reason || '.' WHERE number = 2",
            "entry 2 was changed after recording",
        ),
        (
            'UPDATE users_auditentry SET after = \'{"pool":"1"}\' WHERE number = 1',
            "entry 1 was changed after recording",
        ),
        ("UPDATE users_auditentry SET actor_id = NULL WHERE number = 3", "entry 3 was changed after recording"),
        (
            "UPDATE users_auditentry SET at = at + interval '1 microsecond' WHERE number = 3",
            "entry 3 was changed after recording",
        ),
        (
            "UPDATE users_auditentry SET source = subject, subject = source WHERE number = 2",
            "entry 2 was changed after recording",
        ),
        ("DELETE FROM users_auditentry WHERE number = 2", "entry 2 is missing: entry 3 follows 1"),
        (
            "UPDATE users_auditentry SET hash = repeat('a', 64) WHERE number = 3",
            "entry 3 was changed after recording",
        ),
        ("UPDATE users_auditentry SET previous_hash = repeat('a', 64) WHERE number = 3", "entry 3 does not follow"),
    ],
)
def test_changed_or_deleted_entry_is_found(db: None, at: datetime, change: str, difference: str) -> None:
    # given
    user = operator()
    for number in range(3):
        decide(at, f"market:{number}", by=Actor(user.pk, "192.0.2.7"))
    assert audit.verify().difference is None

    # when
    without_guards(change)

    # then
    chain = audit.verify()
    assert chain.difference is not None
    assert chain.difference.startswith(difference)
    assert chain.entries == int(difference.split()[1]) - 1


def test_cut_off_end_is_found_by_a_noted_entry(db: None, at: datetime) -> None:
    # given
    for number in range(3):
        decide(at, f"market:{number}")
    noted = (3, audit.verify().head)
    decide(at, "market:3")
    assert audit.verify(expected=dict([noted])).difference is None

    # when
    without_guards("DELETE FROM users_auditentry WHERE number >= 3")

    # then
    assert audit.verify().difference is None
    assert audit.verify(expected=dict([noted])).difference == "entry 3 is missing: the trail ends at 2"
    later = {3: noted[1], 4: noted[1]}
    assert audit.verify(expected=later).difference == "entry 4 is missing: the trail ends at 2"


def test_rewritten_trail_is_found_by_a_noted_entry(db: None, at: datetime) -> None:
    # given
    decide(at)
    noted = (1, audit.verify().head)

    # when
    without_guards("DELETE FROM users_auditentry")
    decide(at + timedelta(seconds=1))

    # then
    assert audit.verify().difference is None
    shown = audit.verify(expected=dict([noted])).difference
    assert shown is not None
    assert shown.startswith("entry 1 is not the entry that was noted")
