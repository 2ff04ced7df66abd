"""Tests of users/accounts.py: who may change an account, what two people are needed for, and what is recorded."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from testing import builders, console_scenes
from users import accounts, audit, authority, personal, proposals
from users.models import AuditEntry, CustomUser, Notice

HOLD = timedelta(hours=24)
ACTS = accounts.procedures(hold=HOLD)
NEW_PHONE = "254733000001"


def by(person: CustomUser) -> audit.Actor:
    return builders.actor(person)


@pytest.fixture
def administrators(db: None) -> list[CustomUser]:
    return [console_scenes.staff("administrator"), console_scenes.staff("administrator")]


def propose(act: str, member: CustomUser, who: CustomUser, at: datetime, value: str = "") -> Any:
    return accounts.propose(accounts.Change(act, member.pk, "They asked for it.", value), by=by(who), at=at, hold=HOLD)


def approve(proposed: Any, who: CustomUser, at: datetime) -> Any:
    return proposals.approve(
        proposal_id=proposed.proposal_id,
        preview_hash=proposed.preview_hash,
        holds=lambda codename: authority.holds(who, codename),
        by=by(who),
        at=at,
        acts=ACTS,
    )


def entries(action: str) -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(action=action).order_by("number"))


def test_new_member_of_staff_gets_the_role_and_a_pin_after_two_people(
    administrators: list[CustomUser], at: datetime
) -> None:
    first, second = administrators
    proposed = accounts.add_staff(
        phone_number="0733 000 001", full_name="Wanjiru", role="operator", reason="New.", by=by(first), at=at
    )
    member = CustomUser.objects.get(phone_number=NEW_PHONE)
    assert not member.is_staff
    assert not member.has_usable_password()

    changed = approve(proposed, second, at)

    member.refresh_from_db()
    assert member.is_staff
    assert accounts.role_of(member) == "operator"
    assert member.check_password(changed.secret)
    (entry,) = entries("staff.role")
    assert entry.actor_id == second.pk
    assert f'"proposed_by":{first.pk}' in entry.after
    assert changed.secret not in entry.after


def test_member_who_joins_the_staff_gets_a_new_pin(administrators: list[CustomUser], at: datetime) -> None:
    """A PIN of staff has six digits, and the member's old PIN may be known to others."""
    first, second = administrators
    member = builders.member()
    changed = approve(propose("staff.role", member, first, at, "operator"), second, at)
    member.refresh_from_db()
    assert not member.check_password(builders.PIN)
    assert member.check_password(changed.secret)
    assert len(changed.secret) == accounts.PIN_DIGITS

    again = approve(propose("staff.role", member, first, at, "viewer"), second, at)
    assert again.secret == ""


def test_role_is_one_role(administrators: list[CustomUser], at: datetime) -> None:
    first, second = administrators
    person = console_scenes.staff("operator")
    approve(propose("staff.role", person, first, at, "viewer"), second, at)
    person.refresh_from_db()
    assert accounts.role_of(person) == "viewer"
    assert person.is_superuser is False


def test_person_without_a_role_is_no_member_of_staff(administrators: list[CustomUser], at: datetime) -> None:
    first, second = administrators
    person = console_scenes.staff("operator")
    approve(propose("staff.role", person, first, at, accounts.NO_ROLE), second, at)
    person.refresh_from_db()
    assert (person.is_staff, accounts.role_of(person)) == (False, accounts.NO_ROLE)


@pytest.mark.parametrize("act", ["staff.role", "staff.phone", "staff.reset_pin"])
def test_nobody_decides_about_their_own_account(administrators: list[CustomUser], at: datetime, act: str) -> None:
    first = administrators[0]
    value = {"staff.role": "operator", "staff.phone": NEW_PHONE}.get(act, "")
    with pytest.raises(accounts.OwnAccount):
        propose(act, first, first, at, value)


def test_nobody_suspends_or_unlocks_their_own_account(administrators: list[CustomUser], at: datetime) -> None:
    first = administrators[0]
    for change in (accounts.suspend, accounts.unlock):
        with pytest.raises(accounts.OwnAccount):
            change(act=f"staff.{change.__name__}", member_id=first.pk, reason="Why not.", by=by(first), at=at)


def test_person_cannot_approve_a_change_of_their_own_account(administrators: list[CustomUser], at: datetime) -> None:
    first, second = administrators
    proposed = propose("staff.phone", second, first, at, NEW_PHONE)
    with pytest.raises(accounts.OwnAccount):
        approve(proposed, second, at)
    second.refresh_from_db()
    assert second.phone_number != NEW_PHONE


def test_right_over_members_gives_no_right_over_staff(administrators: list[CustomUser], at: datetime) -> None:
    """Support may propose a new PIN for a member. With one for an operator, two of support could resolve markets."""
    support, operator = console_scenes.staff("support"), console_scenes.staff("operator")
    with pytest.raises(accounts.ChangeRefused):
        propose("member.reset_pin", operator, support, at)
    with pytest.raises(accounts.ChangeRefused):
        accounts.suspend(act="member.suspend", member_id=operator.pk, reason="No.", by=by(support), at=at)


def test_change_of_phone_waits_for_the_second_person_and_then_holds_money(
    administrators: list[CustomUser], at: datetime
) -> None:
    # given
    support, approver = console_scenes.staff("support"), console_scenes.staff("approver")
    member = builders.member()
    old = member.phone_number
    proposed = propose("member.phone", member, support, at, NEW_PHONE)
    member.refresh_from_db()
    assert member.phone_number == old

    # when
    approve(proposed, approver, at)

    # then
    member.refresh_from_db()
    assert member.phone_number == NEW_PHONE
    assert member.money_may_leave_at(at) == at + HOLD
    # The stored audit trail has no whole number. The page opens it for those who may see it.
    assert personal.opened(json.loads(entries("member.phone")[0].after)["phone"]) == NEW_PHONE
    assert NEW_PHONE not in entries("member.phone")[0].after
    assert not any(NEW_PHONE in entry.after for entry in AuditEntry.objects.all())
    assert "call us at once" in Notice.objects.get(user=member, kind="security").text


def test_phone_of_another_member_is_refused(administrators: list[CustomUser], at: datetime) -> None:
    other = builders.member()
    with pytest.raises(accounts.ChangeRefused, match="Another account has this number"):
        propose("member.phone", builders.member(), administrators[0], at, other.phone_number)


def test_phone_that_was_taken_before_the_approval_makes_the_proposal_stale(
    administrators: list[CustomUser], at: datetime
) -> None:
    member, approver = builders.member(), console_scenes.staff("approver")
    proposed = propose("member.phone", member, administrators[0], at, NEW_PHONE)
    builders.member(phone_number=NEW_PHONE)
    with pytest.raises(proposals.PreviewMoved):
        approve(proposed, approver, at)


def test_suspended_account_opens_nothing_and_two_people_reinstate_it(
    administrators: list[CustomUser], at: datetime
) -> None:
    first, second = administrators
    person = console_scenes.staff("viewer")
    accounts.suspend(act="staff.suspend", member_id=person.pk, reason="Left.", by=by(first), at=at)
    person.refresh_from_db()
    assert not person.is_active
    assert entries("staff.suspend")[0].reason == "Left."

    approve(propose("staff.reinstate", person, first, at), second, at)
    person.refresh_from_db()
    assert person.is_active


def test_new_pin_replaces_the_old_one_after_two_people(administrators: list[CustomUser], at: datetime) -> None:
    first, second = administrators
    person = console_scenes.staff("viewer")
    changed = approve(propose("staff.reset_pin", person, first, at), second, at)
    person.refresh_from_db()
    assert person.check_password(changed.secret)
    assert len(changed.secret) == accounts.PIN_DIGITS


def test_app_is_removed_after_two_people(administrators: list[CustomUser], at: datetime) -> None:
    first, second = administrators
    person = console_scenes.staff("viewer")
    console_scenes.enrol(person, at)
    approve(propose("staff.reset_app", person, first, at), second, at)
    with pytest.raises(accounts.ChangeRefused, match="has not set up an app"):
        propose("staff.reset_app", person, first, at)


def test_first_person_adds_the_second_alone_and_the_log_says_so(
    db: None, at: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    first = console_scenes.staff()
    done = accounts.add_staff(
        phone_number=NEW_PHONE, full_name="Second", role="administrator", reason="Set-up.", by=by(first), at=at
    )
    assert isinstance(done, accounts.Changed)
    assert "alone" in caplog.text


def test_administrator_who_suspends_all_others_still_needs_a_second_person(
    administrators: list[CustomUser], at: datetime
) -> None:
    first, second = administrators
    accounts.suspend(act="staff.suspend", member_id=second.pk, reason="Alone at last.", by=by(first), at=at)
    proposed = propose("staff.role", console_scenes.staff("viewer"), first, at, "approver")
    assert isinstance(proposed, proposals.Proposed)


@pytest.mark.parametrize(
    ("act", "value"),
    [("staff.role", "root"), ("staff.role", "viewer"), ("staff.reinstate", ""), ("staff.reset_app", "")],
)
def test_change_that_changes_nothing_is_refused(
    administrators: list[CustomUser], at: datetime, act: str, value: str
) -> None:
    with pytest.raises(accounts.ChangeRefused, match="Nothing was changed"):
        propose(act, console_scenes.staff("viewer"), administrators[0], at, value)


def test_reason_is_due(administrators: list[CustomUser], at: datetime) -> None:
    change = accounts.Change("staff.reset_pin", console_scenes.staff("viewer").pk, "  ")
    with pytest.raises(accounts.ChangeRefused, match="Give a reason"):
        accounts.propose(change, by=by(administrators[0]), at=at, hold=HOLD)


def test_refused_addition_leaves_no_account(administrators: list[CustomUser], at: datetime) -> None:
    for role, reason in (("root", "New."), ("operator", " ")):
        with pytest.raises(accounts.ChangeRefused):
            accounts.add_staff(
                phone_number=NEW_PHONE, full_name="Wanjiru", role=role, reason=reason, by=by(administrators[0]), at=at
            )
    assert not CustomUser.objects.filter(phone_number=NEW_PHONE).exists()
