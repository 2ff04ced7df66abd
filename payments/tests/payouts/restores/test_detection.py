"""Detection of a database that lost its last commits."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from payments import wiring
from payments.models import Breaker, DatabaseHeartbeat, Restore
from payments.payouts.restores import copies as restore_copies
from payments.payouts.restores import detection
from payments.payouts.restores.copies import Copies
from testing import builders, database
from testing.builders import AT
from testing.payout_steps import POLICY, after, claims

pytestmark = pytest.mark.django_db


def beat(copies: Copies, seconds: float = 0) -> Restore | None:
    return detection.beat(at=after(seconds), copies=copies, policy=POLICY)


def is_stopped() -> bool:
    return Breaker.objects.filter(cause="restore", opened_at__isnull=False).exists()


def lose_beats(number: int) -> None:
    """Set the heartbeat's row back, as a restore from a snapshot of the machine does."""
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE payments_databaseheartbeat DISABLE TRIGGER heartbeat_grows")
        cursor.execute("UPDATE payments_databaseheartbeat SET beats = beats - %s, at = %s", [number, AT])
        cursor.execute("ALTER TABLE payments_databaseheartbeat ENABLE TRIGGER heartbeat_grows")


def test_ordinary_beats_notice_nothing(copies: Copies) -> None:
    assert [beat(copies, seconds) for seconds in range(5)] == [None] * 5
    assert DatabaseHeartbeat.objects.get().beats == 5
    assert not is_stopped()


@pytest.mark.parametrize("survivor", ["Redis", "file"])
def test_copy_ahead_of_the_database_stops_sending(copies: Copies, survivor: str) -> None:
    # given
    payout = builders.payout(285)
    beat(copies)
    beat(copies, 10)
    if survivor == "Redis":
        copies.path.unlink()
    else:
        copies.connection.delete(restore_copies.KEY)

    # when
    lose_beats(1)
    restore = beat(copies, 30)

    # then
    assert restore is not None
    assert (restore.survived_at, restore.noticed_at, restore.state) == (AT, after(30), "LISTING")
    assert restore.payouts_a_settlement == 30 * 5 + 1 + 400
    assert is_stopped()
    assert claims(after(31)) == []
    assert payout.attempts.count() == 0


def test_loss_is_noticed_once(copies: Copies) -> None:
    # given
    beat(copies)
    beat(copies, 10)
    lose_beats(1)

    # when
    noticed = [beat(copies, seconds) for seconds in (30, 31, 32)]

    # then
    assert [restore is not None for restore in noticed] == [True, False, False]
    assert Restore.objects.count() == 1


@pytest.mark.parametrize("column", ["system", "timeline"])
def test_other_server_stops_sending(copies: Copies, column: str) -> None:
    # given: the test's role may read both
    beat(copies)
    assert getattr(DatabaseHeartbeat.objects.get(), column) != ""
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE payments_databaseheartbeat DISABLE TRIGGER heartbeat_grows")
    DatabaseHeartbeat.objects.update(**{column: "1234"})

    # when
    restore = beat(copies, 5)

    # then
    assert restore is not None
    assert "was 1234 and is" in restore.sign
    assert is_stopped()


def test_emptied_copies_are_no_loss(copies: Copies) -> None:
    beat(copies)
    copies.path.unlink()
    copies.connection.delete(restore_copies.KEY)
    assert beat(copies, 10) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"database": 1, "beats": 9}', '{"database": "x"}', "é" * 9])
def test_damaged_copies_are_no_loss(copies: Copies, text: str) -> None:
    beat(copies)
    copies.path.write_text(text, encoding="utf-8")
    copies.connection.set(restore_copies.KEY, text)
    assert beat(copies, 10) is None


def test_copy_of_another_database_is_no_loss(copies: Copies) -> None:
    beat(copies)
    copies.write(database="00000000-0000-4000-8000-000000000000", beats=10**9)
    assert beat(copies, 10) is None


def test_beat_works_without_redis_and_directory(copies: Copies, redis_down: None, tmp_path: Path) -> None:
    unreachable = Copies(wiring.broker(), tmp_path / "missing" / "heartbeat")
    assert beat(unreachable) is None
    assert DatabaseHeartbeat.objects.get().beats == 1


def test_heartbeat_never_goes_back(copies: Copies) -> None:
    beat(copies)
    with pytest.raises(Exception, match="only grows"), transaction.atomic():
        DatabaseHeartbeat.objects.update(beats=0)


def test_reported_restore_counts_from_the_time_of_the_backup(copies: Copies) -> None:
    beat(copies, 3600)
    restore = detection.report(survived_at=AT, at=after(7200), policy=POLICY)
    assert (restore.survived_at, restore.needs_decision) == (AT, True)
    assert is_stopped()


def test_reported_restore_without_a_time_counts_from_the_heartbeat(copies: Copies) -> None:
    beat(copies, 7000)
    restore = detection.report(survived_at=None, at=after(7200), policy=POLICY)
    assert (restore.survived_at, restore.needs_decision) == (after(7000), False)


@pytest.mark.parametrize(("minutes", "needed"), [(29, False), (30, False), (31, True)])
def test_loss_longer_than_the_horizon_needs_two_people(copies: Copies, minutes: int, needed: bool) -> None:
    beat(copies)
    restore = detection.report(survived_at=AT, at=AT + timedelta(minutes=minutes), policy=POLICY)
    assert restore.needs_decision == needed


def test_watch_beats_once_a_second_and_on_each_new_connection(copies: Copies) -> None:
    # given
    noticed: list[Any] = []
    watch = detection.Watch(copies=copies, policy=POLICY, clock=lambda: AT, noticed=noticed.append)

    # when: many calls within one second, then a new connection
    watch()
    watch()
    within_a_second = DatabaseHeartbeat.objects.get().beats
    watch._thread.connected = None
    watch()

    # then
    assert within_a_second == 1
    assert DatabaseHeartbeat.objects.get().beats == 2
    assert noticed == []


def test_watch_tells_of_a_loss(copies: Copies) -> None:
    noticed: list[Restore] = []
    beat(copies)
    beat(copies, 1)
    lose_beats(1)
    detection.Watch(copies=copies, policy=POLICY, clock=lambda: after(2), noticed=noticed.append)()
    assert [restore.pk for restore in noticed] == [Restore.objects.get().pk]


@pytest.mark.parametrize("column", ["system", "timeline"])
def test_identity_that_could_not_be_read_before_is_no_loss(copies: Copies, column: str) -> None:
    # given: the heartbeat was written by a role that may not read the server's identity
    beat(copies)
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE payments_databaseheartbeat DISABLE TRIGGER heartbeat_grows")
    DatabaseHeartbeat.objects.update(**{column: ""})

    # when, then
    assert beat(copies, 5) is None
    assert getattr(DatabaseHeartbeat.objects.get(), column) != ""
