"""`python manage.py forget_second_factor 0712345678`: a member of staff has lost their phone and recovery codes."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from users import audit, phone, second_factor
from users.models import CustomUser


class Command(BaseCommand):
    help = "Remove a member of staff's app and recovery codes; their next login sets up a new app. Recorded."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("phone_number")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            number = phone.normalise(options["phone_number"])
        except phone.NotAPhoneNumber as refusal:
            raise CommandError(f"{refusal} Nothing was done.") from refusal
        user = CustomUser.objects.filter(phone_number=number, is_staff=True).first()
        if user is None:
            raise CommandError(f"{phone.masked(number)} is no member of staff's. Nothing was done.")
        second_factor.forget(user=user, by=audit.Actor(user_id=None, source="command"), at=timezone.now())
        self.stdout.write(f"{user} sets up a new app at the next login.")
