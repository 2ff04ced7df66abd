"""Identity of PostgreSQL before and after a promotion, as the detection of restores reads it."""

import os

import pytest

from payments.payouts.restores import detection
from testing.embedded_checkouts import Checkout, sql, until

pytestmark = pytest.mark.servers


def identity(urls: dict[str, str]) -> tuple[str, str]:
    """Return the system identifier and the timeline, read as the application's role."""
    assert sql(urls, detection._PRIVILEGES) == [(True, True)]
    return sql(urls, detection._SYSTEM)[0][0], sql(urls, detection._TIMELINE)[0][0]


def recover(checkout: Checkout) -> None:
    """Make the next start a recovery from an archive, which ends at once and begins a new timeline."""
    owner = checkout.database.stat()
    signal = checkout.database / "recovery.signal"
    signal.touch()
    os.chown(signal, owner.st_uid, owner.st_gid)
    with (checkout.database / "postgresql.auto.conf").open("a", encoding="ascii") as configuration:
        configuration.write("restore_command = 'false'\n")


def test_restart_keeps_the_identity_and_a_recovery_begins_a_timeline(checkout: Checkout) -> None:
    # given
    first = identity(checkout.use("postgres"))
    checkout.leave()
    restarted = identity(checkout.use("postgres"))
    checkout.leave()

    # when
    recover(checkout)
    urls = checkout.use("postgres")
    until(lambda: sql(urls, "SELECT pg_is_in_recovery()") == [(False,)])
    system, timeline = identity(urls)

    # then
    assert restarted == first
    assert system == first[0]
    assert timeline != first[1]
