"""Accounts of members and staff: roles, suspension, resets of PIN and app, phones.

Each change is a decision in the audit trail. A suspension and an unlocking work at once. The others are proposals,
which another person approves; `procedures` has their parts. A trigger ends the person's sessions and tokens with each
change of a PIN, a role or the status.
"""

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import Group
from django.db import transaction

from users import audit, auth, notifications, personal, phone, pins, proposals, roles, second_factor, second_person
from users.models import CustomUser, Proposal
from users.refusal import Refusal

NO_ROLE = "none"
PIN_DIGITS = 6
# Changes that take two people. The act of each is staff.… or member.…, by the account that it changes.
ROLE, REINSTATE, RESET_PIN, RESET_APP, PHONE = "role", "reinstate", "reset_pin", "reset_app", "phone"
SUSPEND, UNLOCK = "suspend", "unlock"


class AccountNotFound(Refusal):
    """No member has this id."""


class OwnAccount(Refusal):
    """A person may not decide about their own account."""


class ChangeRefused(Refusal):
    """The change is not possible, or would change nothing."""


@dataclass(frozen=True)
class Change:
    """A change of one account that takes two people. `value`: the role, or the new phone number.

    `act` is a name of users/authority.py, such as member.phone. It must fit the account (`act_of`).
    """

    act: str
    member_id: int
    reason: str
    value: str = ""


@dataclass(frozen=True)
class Changed:
    """A change that was carried out. `secret` is the new PIN or enrolment code. It is shown once and stored nowhere."""

    act: str
    member_id: int
    secret: str = ""


# --- at once ---------------------------------------------------------------------------------------------------------


def suspend(*, act: str, member_id: int, reason: str, by: audit.Actor, at: datetime) -> None:
    """Suspend a member or a member of staff. Their sessions and tokens end, and the PIN opens nothing.

    Payouts of money that they have won go on.
    Locks: the member, the end of the audit trail.
    Raises: AccountNotFound; OwnAccount; ChangeRefused.
    """
    with transaction.atomic(durable=True):
        member = _locked(member_id)
        _refuse_own(member, by)
        _refuse_other_kind(act, member)
        if not member.is_active:
            raise ChangeRefused(f"{member} is suspended already.")
        member.is_active = False
        member.save(update_fields=["is_active"])
        _record(act, member, {"active": True}, {"active": False}, by=by, at=at, reason=reason)


def unlock(*, act: str, member_id: int, reason: str, by: audit.Actor, at: datetime) -> None:
    """End the lock after wrong PINs.

    Locks: the member, the end of the audit trail.
    Raises: AccountNotFound; OwnAccount; ChangeRefused.
    """
    with transaction.atomic(durable=True):
        member = _locked(member_id)
        _refuse_own(member, by)
        _refuse_other_kind(act, member)
        auth.forget_wrong_pins(member)
        _record(act, member, {}, {}, by=by, at=at, reason=reason)


# --- by two people ---------------------------------------------------------------------------------------------------


def add_staff(
    *, phone_number: str, full_name: str, role: str, reason: str, by: audit.Actor, at: datetime
) -> proposals.Proposed | Changed:
    """Propose a role for a person who may not have an account yet. The approval shows the person's first PIN.

    Locks: the member, the end of the audit trail.
    Raises: phone.NotAPhoneNumber; as `propose`. Then no account is made.
    """
    number = phone.normalise(phone_number)
    with transaction.atomic(durable=True):
        member, is_new = CustomUser.objects.get_or_create(phone_number=number, defaults={"full_name": full_name[:120]})
        if is_new:
            member.set_unusable_password()
            member.save(update_fields=["password"])
        return _propose(Change(f"staff.{ROLE}", member.pk, reason, role), by=by, at=at, hold=timedelta(0))


def propose(change: Change, *, by: audit.Actor, at: datetime, hold: timedelta) -> proposals.Proposed | Changed:
    """Propose a change of an account. Another person approves it.

    If nobody else may approve it, because the system is being set up, it is carried out at once. The log says so.
    `hold`: as in `procedures`.
    Locks: the member, the end of the audit trail.
    Raises: AccountNotFound; OwnAccount; ChangeRefused; proposals.ProposalWaits; proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        return _propose(change, by=by, at=at, hold=hold)


def _propose(change: Change, *, by: audit.Actor, at: datetime, hold: timedelta) -> proposals.Proposed | Changed:
    if not change.reason.strip():
        raise ChangeRefused("Give a reason. Nothing was changed.")
    member = _locked(change.member_id)
    _refuse_own(member, by)
    _refuse_other_kind(change.act, member)
    if refusal := _refusal(change.act, member, change.value):
        raise ChangeRefused(f"{refusal} Nothing was changed.")
    verb = _verb(change.act)
    if second_person.missing(change.act, by):
        return _carry_out(member, change, by=by, proposed_by=None, at=at, hold=hold)
    draft = proposals.Draft(
        act=change.act,
        subject=f"member:{member.pk}",
        hash=_hash(change.act, member, change.value),
        reason=change.reason,
        private={"value": personal.seal(member.pk, change.value) if verb == PHONE else change.value},
    )
    return proposals.make(draft, by=by, at=at)


def procedures(*, hold: timedelta) -> dict[str, proposals.Procedure]:
    """Return the parts of each act that a proposal needs. Money leaves to a new phone only after `hold`."""

    def carry_out(member: CustomUser, proposal: Proposal, by: audit.Actor, at: datetime) -> Changed:
        change = Change(proposal.act, member.pk, proposal.reason, _value(proposal))
        return _carry_out(member, change, by=by, proposed_by=proposal.proposed_by_id, at=at, hold=hold)

    procedure = proposals.Procedure(
        lock=lambda proposal: _locked(proposal.subject_id),
        hash_now=lambda member, proposal, at: _hash_if_possible(member, proposal),
        carry_out=carry_out,
        words=_words,
        refuse_own=_refuse_own,
    )
    return {f"{kind}.{verb}": procedure for kind in ("staff", "member") for verb in _CARRIED_OUT}


def act_of(verb: str, member: CustomUser) -> str:
    """Return the act that a change of this account is: one about staff, or one about a member."""
    return f"{'staff' if member.is_staff or verb == ROLE else 'member'}.{verb}"


def role_of(member: CustomUser) -> str:
    """Return the name of a person's role: `superuser`, the names of their groups, or `none`."""
    if not member.is_staff:
        return NO_ROLE
    if member.is_superuser:
        return "superuser"
    return ", ".join(sorted(member.groups.values_list("name", flat=True))) or NO_ROLE


# --- the changes -----------------------------------------------------------------------------------------------------


def _carry_out(
    member: CustomUser, change: Change, *, by: audit.Actor, proposed_by: int | None, at: datetime, hold: timedelta
) -> Changed:
    before, after, secret = _CARRIED_OUT[_verb(change.act)](member, change.value, at, hold)
    people = {} if proposed_by is None else {"proposed_by": proposed_by}
    _record(change.act, member, before, {**after, **people}, by=by, at=at, reason=change.reason)
    return Changed(change.act, member.pk, secret)


Values = dict[str, Any]


def _give_role(member: CustomUser, role: str, at: datetime, hold: timedelta) -> tuple[Values, Values, str]:
    before = {"role": role_of(member), "staff": member.is_staff}
    member.is_staff, member.is_superuser = role != NO_ROLE, False
    member.groups.set(Group.objects.filter(name=role))
    member.user_permissions.clear()
    pin = ""
    if member.is_staff and not before["staff"]:
        # A member's PIN is shorter than those of staff, and who knows it could set up the app first.
        pin = _new_pin(member)
        member.set_password(pin)
    member.save(update_fields=["is_staff", "is_superuser", "password"])
    return before, {"role": role, "staff": member.is_staff}, pin


def _reinstate(member: CustomUser, value: str, at: datetime, hold: timedelta) -> tuple[Values, Values, str]:
    member.is_active = True
    member.save(update_fields=["is_active"])
    return {"active": False}, {"active": True}, ""


def _reset_pin(member: CustomUser, value: str, at: datetime, hold: timedelta) -> tuple[Values, Values, str]:
    pin = _new_pin(member)
    member.set_password(pin)
    member.save(update_fields=["password"])
    auth.forget_wrong_pins(member)
    _tell(member, "pin", "Our staff have set a new PIN for your account. If you did not ask for it, call us.", at)
    return {}, {}, pin


def _reset_app(member: CustomUser, value: str, at: datetime, hold: timedelta) -> tuple[Values, Values, str]:
    return {"app": True}, {"app": False}, second_factor.remove(member, at=at)


def _change_phone(member: CustomUser, number: str, at: datetime, hold: timedelta) -> tuple[Values, Values, str]:
    old = member.phone_number
    member.phone_number, member.phone_held_until = number, at + hold
    member.save(update_fields=["phone_number", "phone_held_until"])
    text = (
        f"Your number was changed from {phone.masked(old)} to {phone.masked(number)}. No money leaves to the new number"
        f" for {hold // timedelta(hours=1)} hours. If you did not ask for it, call us at once."
    )
    _tell(member, "phone", text, at)
    before, after = (personal.Personal(member.pk, each) for each in (old, number))
    return {"phone": before}, {"phone": after, "held_until": member.phone_held_until}, ""


_CARRIED_OUT: dict[str, Callable[[CustomUser, str, datetime, timedelta], tuple[Values, Values, str]]] = {
    ROLE: _give_role,
    REINSTATE: _reinstate,
    RESET_PIN: _reset_pin,
    RESET_APP: _reset_app,
    PHONE: _change_phone,
}


# --- checks ----------------------------------------------------------------------------------------------------------


def _refusal(act: str, member: CustomUser, value: str) -> str:
    """Return the reason why a change is not possible, or an empty text."""
    verb = _verb(act)
    if verb == ROLE:
        if value not in (*roles.ROLES, NO_ROLE):
            return f"There is no role {value}."
        return f"{member} has this role already." if role_of(member) == value else ""
    if verb == REINSTATE:
        return f"{member} is not suspended." if member.is_active else ""
    if verb == RESET_APP:
        return "" if second_factor.enrolled(member) else f"{member} has not set up an app."
    if verb == PHONE:
        if value == personal.ERASED:
            return "The personal texts of this account were erased, and the number with them."
        if phone.normalise(value) != value:
            return "Write the number as twelve digits."
        taken = CustomUser.objects.filter(phone_number=value).exists()
        return "Another account has this number, or it is the member's number already." if taken else ""
    return "" if verb == RESET_PIN else f"There is no change {act}."


def _hash_if_possible(member: CustomUser, proposal: Proposal) -> str:
    value = _value(proposal)
    return "" if _refusal(proposal.act, member, value) else _hash(proposal.act, member, value)


def _hash(act: str, member: CustomUser, value: str) -> str:
    """Return the hash of a change and of the account as it is. If anything of it changes, the proposal is stale."""
    now = [act, value, member.pk, member.phone_number, role_of(member), member.is_active, member.is_staff]
    return hashlib.sha256(json.dumps(now).encode()).hexdigest()


def _words(proposal: Proposal) -> list[str]:
    member = CustomUser.objects.get(pk=proposal.subject_id)
    value = _value(proposal)
    effect = {
        ROLE: f"{member} gets the role {value} instead of {role_of(member)}.",
        REINSTATE: f"{member} may log in again.",
        RESET_PIN: f"{member} gets a new PIN. You see it once, and you tell it to the person.",
        RESET_APP: f"{member} sets up a new app at the next login, with an enrolment code that you see once.",
        PHONE: f"{member} gets the number {phone.masked(value)}. Later payouts go to it, after a hold.",
    }[_verb(proposal.act)]
    return [effect, "All sessions and tokens of this account end."]


def _value(proposal: Proposal) -> str:
    return personal.opened(str(proposal.payload["value"]))


def _verb(act: str) -> str:
    return act.partition(".")[2]


def _refuse_other_kind(act: str, member: CustomUser) -> None:
    """Refuse a right over members where the account is staff's. Otherwise support could log in as an operator."""
    if act != act_of(_verb(act), member):
        raise ChangeRefused(f"{member} is {'' if member.is_staff else 'not '}a member of staff. Nothing was changed.")


def _refuse_own(member: CustomUser, by: audit.Actor) -> None:
    if member.pk == by.user_id:
        raise OwnAccount("This is your own account. Another member of staff must decide about it.")


def _locked(member_id: int) -> CustomUser:
    member = CustomUser.objects.select_for_update(no_key=True).filter(pk=member_id).first()
    if member is None:
        raise AccountNotFound(f"There is no member {member_id}.")
    return member


def _new_pin(member: CustomUser) -> str:
    """Draw a PIN that the rules for chosen PINs accept."""
    while True:
        pin = f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}d}"
        try:
            pins.check(pin, phone_number=member.phone_number, is_staff=member.is_staff)
        except pins.BadPin:
            continue
        return pin


def _tell(member: CustomUser, kind: str, text: str, at: datetime) -> None:
    event = f"{kind}:{at.isoformat()}"
    notifications.tell(user_id=member.pk, kind="security", subject=f"member:{member.pk}", event=event, text=text, at=at)


def _record(
    action: str, member: CustomUser, before: Values, after: Values, *, by: audit.Actor, at: datetime, reason: str
) -> None:
    audit.record(
        action=action,
        by=by,
        subject=f"member:{member.pk}",
        before=before,
        after=after,
        at=at,
        reason=reason.strip()[:300],
    )
