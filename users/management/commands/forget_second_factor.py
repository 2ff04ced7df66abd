"""Command that removes a lost second factor: `python manage.py forget_second_factor 0712345678`."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from users import audit, clock, phone, second_factor
from users.models import CustomUser


class Command(BaseCommand):
    help = (
        "Remove the authenticator app and recovery codes of a member of staff who lost both. "
        "Prints an enrolment code, with which their next login sets up a new app. The audit trail records the removal."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("phone_number")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            number = phone.normalise(options["phone_number"])
        except phone.NotAPhoneNumber as refusal:
            raise CommandError(f"{refusal} Nothing was done.") from refusal
        user = CustomUser.objects.filter(phone_number=number, is_staff=True).first()
        if user is None:
            raise CommandError(f"No member of staff has the number {phone.masked(number)}. Nothing was done.")
        code = second_factor.forget(user=user, by=audit.Actor(user_id=None, source="command"), at=clock.database_time())
        self.stdout.write(f"All sessions and tokens of {user} have ended. Their next login asks for this code:")
        self.stdout.write(code)
        self.stdout.write("Give it to this person alone. It is valid for 24 hours and for one new app.")
