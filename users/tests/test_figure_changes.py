"""Tests of users/figure_changes.py: figures and thresholds change by two people."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from users import audit, figure_changes, figures, proposals
from users.models import AuditEntry, CustomUser, Figure

AT = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)
CHANGE = figures.Change("excise_pct", "7.5", AT + timedelta(hours=1), "Finance Act 2026", "New law")
pytestmark = pytest.mark.django_db(transaction=True)


def boss(number: int) -> audit.Actor:
    person = CustomUser.objects.create_superuser(phone_number=f"25471234567{number}", full_name=f"Boss {number}")
    return audit.Actor(user_id=person.pk, source="test")


def approve(made: proposals.Proposed, by: audit.Actor, at: datetime = AT) -> Figure:
    row = proposals.approve(
        proposal_id=made.proposal_id,
        preview_hash=made.preview_hash,
        holds=lambda codename: codename == "approve_resolution",
        by=by,
        at=at,
        acts=figure_changes.procedures(),
    )
    assert isinstance(row, Figure)
    return row


def test_change_takes_another_person() -> None:
    first, second = boss(1), boss(2)
    made = figure_changes.change(CHANGE, by=first, at=AT)
    assert isinstance(made, proposals.Proposed)
    assert figures.value("excise_pct", CHANGE.valid_from) == 5
    with pytest.raises(proposals.ProposerCannotApprove):
        approve(made, first)
    row = approve(made, second)
    assert (row.set_by_id, row.valid_from) == (second.user_id, CHANGE.valid_from)
    assert figures.value("excise_pct", CHANGE.valid_from) == Decimal("7.5")
    entry = AuditEntry.objects.order_by("number").last()
    assert entry is not None
    assert (entry.action, entry.actor_id) == ("figure.set", second.user_id)
    assert f'"proposed_by":{first.user_id}' in entry.after


def test_approval_after_the_date_makes_the_value_valid_from_the_approval() -> None:
    first, second = boss(1), boss(2)
    made = figure_changes.change(CHANGE, by=first, at=AT)
    assert isinstance(made, proposals.Proposed)
    assert approve(made, second, AT + timedelta(hours=5)).valid_from == AT + timedelta(hours=5)


def test_one_person_changes_a_figure_while_nobody_else_may_approve(caplog: pytest.LogCaptureFixture) -> None:
    row = figure_changes.change(CHANGE, by=boss(1), at=AT)
    assert isinstance(row, Figure)
    assert "nobody else may approve" in caplog.text


def test_owner_sets_a_first_threshold_once() -> None:
    call_command("threshold", "market.resolve", "5000", stdout=StringIO())
    with pytest.raises(CommandError, match="set already"):
        call_command("threshold", "market.resolve", "never")
    with pytest.raises(CommandError, match="has no threshold"):
        call_command("threshold", "market.withdraw", "never")
    listed = StringIO()
    call_command("threshold", stdout=listed)
    assert "market.resolve: 5000" in listed.getvalue()
    assert "market.void: not set" in listed.getvalue()
