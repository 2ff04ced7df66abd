"""Command that creates a superuser and asks for a PIN: `python manage.py createsuperuser`."""

import getpass
from typing import Any

from django.contrib.auth.management.commands import createsuperuser
from django.core.management.base import CommandError

from users import phone
from users.models import CustomUser


class Command(createsuperuser.Command):
    help = (
        "Create a superuser: a member of staff with all permissions. Asks for a phone number, a name and a PIN. "
        "With --noinput, DJANGO_SUPERUSER_PASSWORD has the PIN."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask for the PIN and missing options, and create the superuser. Without a terminal, run Django's command."""
        if not options["interactive"] or not self.stdin.isatty():
            super().handle(*args, **options)
            return
        try:
            phone_number = options["phone_number"] or self._ask_phone_number(options["database"])
            full_name = options["full_name"]
            if full_name is None:
                full_name = input("Full name: ").strip()
            pin = self._ask_pin()
        except KeyboardInterrupt:
            raise CommandError("Cancelled. No superuser was created.") from None
        if refusal := self._refusal(phone_number, options["database"]):
            raise CommandError(f"{refusal} No superuser was created.")
        users = CustomUser.objects.db_manager(options["database"])
        try:
            superuser = users.create_superuser(phone_number=phone_number, full_name=full_name, pin=pin)
        except phone.NotAPhoneNumber as error:
            raise CommandError(f"{error} No superuser was created.") from error
        self.stdout.write(f"Superuser created: {superuser}.")

    def _refusal(self, phone_number: Any, database: str) -> str:
        """Return the reason why a new member cannot have this phone number, or an empty text."""
        # This is a method of Django's command that django-stubs does not declare.
        refusal: str | None = self._validate_username(phone_number, "phone number", database)  # type: ignore[attr-defined]
        return (refusal or "").removeprefix("Error: ")

    def _ask_phone_number(self, database: str) -> str:
        while True:
            phone_number = self.get_input_data(self.username_field, "Phone number: ")
            if phone_number is None:
                continue  # Django's command has printed the reason.
            if refusal := self._refusal(phone_number, database):
                self.stderr.write(refusal)
                continue
            return str(phone_number)

    def _ask_pin(self) -> str:
        while True:
            pin = getpass.getpass("PIN: ")
            if not pin.strip():
                self.stderr.write("The PIN must not be blank.")
            elif pin != getpass.getpass("PIN (again): "):
                self.stderr.write("The two PINs differ. Please type them again.")
            else:
                return pin
