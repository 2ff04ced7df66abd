"""A member of staff signs an act on the command line, with the PIN and the code of the authenticator app."""

import getpass
from datetime import datetime

from django.conf import settings
from django.core.management.base import CommandError

from users import audit, auth, authority, figure_changes, second_factor
from users.refusal import Refusal

SOURCE = "command"


def sign(number: str, *, act_name: str, at: datetime) -> audit.Actor:
    """Ask for the PIN of a phone number, and for a code where one is due. Return the person for the audit trail.

    Raises: CommandError if the PIN or the code is wrong, if the person's roles do not allow the act, or if the act's
    threshold is unset in production. The web server does not start then, but a command would take one person.
    """
    if settings.PRODUCTION and act_name in figure_changes.unset(at):
        raise CommandError(f"No threshold is set for {act_name}: python manage.py threshold {act_name} AMOUNT|never")
    try:
        pin = getpass.getpass(f"PIN of {number}: ")
        person = auth.check_pin(phone_number=number, pin=pin, source=SOURCE, at=at, at_the_server=True)
        by = audit.Actor(user_id=person.pk, source=SOURCE)
        if not authority.may(person, act_name):
            raise CommandError(f"{person}: {authority.refusal(act_name)}")
        if second_factor.enrolled(person):
            second_factor.check(user=person, code=getpass.getpass(f"Code of {number}: "), by=by, at=at)
        elif settings.STAFF_TOTP or second_factor.awaits_enrolment(person):
            raise CommandError(f"{person} has no authenticator app. Set one up in the console. Nothing was done.")
    except Refusal as refusal:
        raise CommandError(f"{refusal} Nothing was done.") from refusal
    return by
