"""Command that ends the lock of a number after wrong PINs: `python manage.py unlock_login 0712345678`."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from users import audit, auth, clock, phone
from users.models import CustomUser


class Command(BaseCommand):
    help = (
        "End the lock of a member's number after wrong PINs, so that its owner may log in from a new device at once. "
        "The audit trail records it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("phone_number")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            number = phone.normalise(options["phone_number"])
        except phone.NotAPhoneNumber as refusal:
            raise CommandError(f"{refusal} Nothing was done.") from refusal
        user = CustomUser.objects.filter(phone_number=number).first()
        if user is None:
            raise CommandError(f"No member has the number {phone.masked(number)}. Nothing was done.")
        auth.unlock(user=user, by=audit.Actor(user_id=None, source="command"), at=clock.database_time())
        self.stdout.write(f"{user} may try again at once.")
