"""The people of the demo: members with wallets and bets, and the operator with a login."""

import json
import os
import secrets
from decimal import Decimal
from pathlib import Path

from django.core.management import call_command

from api.demo import two_people
from api.demo.client import Client
from api.demo.screen import Screen, money
from payments import wiring
from users import audit, auth
from users.models import CustomUser

OPERATOR_NAME = "Demo Operator"
OPERATOR_NUMBER = 99
MEMBER_PIN = "1234"
WALLET = Decimal("5000.00")
PAYMENT_REFUSED, CALLBACK_LOST = "Baraka", "Chebet"

# (name, outcome, stake). Achieng bets twice and is paid once. Zawadi's dividend is too small for M-Pesa.
BETS = (
    ("Achieng", "Yes", "250.50"), ("Baraka", "Yes", "1000.00"), ("Chebet", "Yes", "340.75"), ("Dalmas", "No", "820.00"),
    ("Esther", "Yes", "99.99"), ("Fatuma", "No", "415.25"), ("Gitonga", "Yes", "512.10"), ("Halima", "No", "1250.00"),
    ("Imani", "Yes", "75.35"), ("Jelimo", "No", "300.00"), ("Kamau", "Yes", "628.00"), ("Lokwang", "No", "145.45"),
    ("Makena", "Yes", "181.20"), ("Njeri", "No", "90.00"), ("Otieno", "Yes", "433.33"), ("Pendo", "No", "267.80"),
    ("Rehema", "Yes", "50.05"), ("Salim", "No", "505.05"), ("Tabitha", "Yes", "214.15"), ("Umazi", "No", "33.33"),
    ("Wafula", "Yes", "166.67"), ("Yusuf", "No", "700.00"), ("Zawadi", "Yes", "4.40"), ("Zuhura", "No", "58.60"),
    ("Achieng", "Yes", "49.60"),
)  # fmt: skip
VOID_BETS = (("Dalmas", "Yes", "120.00"), ("Fatuma", "No", "80.50"), ("Njeri", "No", "45.25"))
NAMES = tuple(dict.fromkeys(name for name, _, _ in BETS))


class Cast:
    """One run's members and operator. Each run has new phone numbers."""

    def __init__(self, client: Client, screen: Screen, directory: Path) -> None:
        self.client, self.screen, self.directory = client, screen, directory
        self.run = _unused_run()
        self.tokens: dict[str, str] = {}
        # The shell variable that printed commands use for the token, and the token.
        self.operator_token = ("OPERATOR", "")
        self.operator_phone = self.operator_pin = ""

    @property
    def login_file(self) -> Path:
        """The file with the body of the operator's login request. A shell can post it without showing the PIN."""
        return self.directory / "login.json"

    def phone(self, name: str) -> str:
        """Return a member's phone number."""
        return self._phone_of(NAMES.index(name))

    def faults(self) -> list[str]:
        """Return the simulator's faults: it refuses one phone's payment once, and loses another phone's callback."""
        return [f"{self.phone(PAYMENT_REFUSED)}=fail:2040x1", f"{self.phone(CALLBACK_LOST)}=callback_lost"]

    def member_token(self, name: str) -> tuple[str, str]:
        """Return the shell variable that printed commands use for a member's token, and the token."""
        return ("MEMBER", self.tokens[name])

    def log_in_operator(self) -> None:
        """Create the operator if there is none, and log in. The PIN of an earlier run stays valid."""
        self.operator_pin = _read_or_choose_pin(self.directory / "operator-pin")
        operator = CustomUser.objects.filter(full_name=OPERATOR_NAME, is_superuser=True).first()
        if operator is None:
            phone = self._phone_of(OPERATOR_NUMBER)
            os.environ["DJANGO_SUPERUSER_PASSWORD"] = self.operator_pin
            call_command("createsuperuser", interactive=False, verbosity=0, phone_number=phone, full_name=OPERATOR_NAME)
            del os.environ["DJANGO_SUPERUSER_PASSWORD"]
            operator = CustomUser.objects.get(phone_number=phone)
        elif not operator.check_password(self.operator_pin) or not operator.is_active:
            operator.set_password(self.operator_pin)
            operator.is_active = True
            operator.save()
        auth.unlock(user=operator, by=audit.MACHINE, at=wiring.now())
        self.operator_phone = operator.phone_number
        self._write_login_file()
        self.operator_token = ("OPERATOR", self._log_in(operator.phone_number, self.operator_pin, shown=True))

    def colleagues(self) -> tuple[two_people.Colleague, two_people.Colleague]:
        """Create an operator and an approver with authenticator apps, and log them in."""
        pin = f"{secrets.randbelow(10**6):06d}"
        hired = (
            two_people.hire("Wanjiru", "operator", self._phone_of(OPERATOR_NUMBER - 1), pin),
            two_people.hire("Kiprop", "approver", self._phone_of(OPERATOR_NUMBER - 2), pin),
        )
        for colleague in hired:
            two_people.log_in(self.client, colleague, pin)
        self.screen.say("Wanjiru is an operator and Kiprop an approver. Each login had a PIN and a code.")
        return hired

    def make_members(self) -> None:
        """Create the members with their wallets and log each of them in."""
        for name in NAMES:
            member = CustomUser.objects.create_user(phone_number=self.phone(name), full_name=name, pin=MEMBER_PIN)
            member.balance = WALLET
            member.save()
            self.tokens[name] = self._log_in(member.phone_number, MEMBER_PIN, shown=name == NAMES[0])
        self.screen.say(
            f"{len(NAMES)} members with {money(WALLET)} each. Below, $OPERATOR is the operator's token, and $MEMBER is"
            " the token of the member who makes the call."
        )

    def wallets(self, names: tuple[str, ...]) -> dict[str, Decimal]:
        """Return the wallet balances of some members."""
        return {
            name: Decimal(
                self.client.call("GET", "/api/users/me/", who=self.member_token(name), shown=name == names[0])[
                    "balance"
                ]
            )
            for name in names
        }

    def _log_in(self, phone: str, pin: str, *, shown: bool) -> str:
        body = {"phone_number": phone, "pin": pin}
        return str(self.client.call("POST", "/api/users/login/", body, shown=shown)["token"])

    def _write_login_file(self) -> None:
        with open(os.open(self.login_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"phone_number": self.operator_phone, "pin": self.operator_pin}, file)

    def _phone_of(self, number: int) -> str:
        return f"{_prefix(self.run)}{number:02d}"


def _prefix(run: int) -> str:
    return f"25471{run:05d}"


def _unused_run() -> int:
    """Return a random run number, which is not yet part of any member's phone number."""
    while True:
        run = secrets.randbelow(100_000)
        if not CustomUser.objects.filter(phone_number__startswith=_prefix(run)).exists():
            return run


def _read_or_choose_pin(path: Path) -> str:
    """Return the operator's PIN. The first run chooses it at random.

    Later runs read it, so that a login printed by an earlier run still works.
    """
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.randbelow(10**6):06d}")
    except FileExistsError:
        pass
    return path.read_text()
