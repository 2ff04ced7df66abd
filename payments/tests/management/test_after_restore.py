"""The command `after_restore`."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from payments.models import Breaker, Restore
from payments.payouts.restores import procedure
from testing import builders
from testing.payout_steps import ADDRESSES, POLICY

pytestmark = pytest.mark.django_db


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that sets the PIN that every person types."""
    return lambda pin: monkeypatch.setattr("getpass.getpass", lambda _: pin)


def run(*arguments: str, capsys: Any) -> str:
    call_command("after_restore", *arguments)
    return str(capsys.readouterr().out)


def is_stopped() -> bool:
    return Breaker.objects.filter(cause="restore", opened_at__isnull=False).exists()


def test_command_records_a_restore_and_stops_sending(capsys: Any) -> None:
    told = run("--at", "2026-02-16T10:30", capsys=capsys)
    restore = Restore.objects.get()
    assert restore.survived_at.isoformat() == "2026-02-16T07:30:00+00:00"
    assert is_stopped()
    assert "Restore" in told
    assert "LISTING, 0 payouts wait" in told


def test_list_records_nothing(capsys: Any) -> None:
    assert run("--list", capsys=capsys) == ""
    assert not Restore.objects.exists()


@pytest.mark.parametrize("text", ["yesterday", "2026-02-31T10:00", "12:00"])
def test_unreadable_time_records_nothing(text: str) -> None:
    with pytest.raises(CommandError, match="Nothing was recorded"):
        call_command("after_restore", "--at", text)
    assert not Restore.objects.exists()


def test_two_people_end_the_stop_of_an_old_backup(capsys: Any, pins: Callable[[str], None]) -> None:
    # given
    run("--at", (timezone.now() - timedelta(hours=2)).isoformat(), capsys=capsys)
    procedure.advance(at=timezone.now(), policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)
    first, second = builders.operator(), builders.operator()
    pins(builders.PIN)

    # when
    people = ("--by", first.phone_number, "--second", second.phone_number)
    told = run("--decide", "all", *people, "--reason", "Statement of 16 February.", capsys=capsys)

    # then
    assert "Decided." in told
    assert "DECIDED" in told
    assert not is_stopped()


@pytest.mark.parametrize(
    ("pin", "second", "words"),
    [
        ("1234", False, "Two different"),
        ("9999", True, "Nothing was done"),
        ("1234", True, "the grounds"),
    ],
)
def test_decision_that_is_not_made_by_two_people_with_grounds_is_refused(
    capsys: Any, pins: Callable[[str], None], pin: str, second: bool, words: str
) -> None:
    # given
    run("--at", (timezone.now() - timedelta(hours=2)).isoformat(), capsys=capsys)
    procedure.advance(at=timezone.now(), policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)
    pins(pin)
    people = ["--by", builders.operator().phone_number]
    people += ["--second", builders.operator().phone_number] if second else []

    # when, then
    with pytest.raises(CommandError, match=words):
        call_command("after_restore", "--decide", "all", *people)
    assert is_stopped()
