"""The demo's second act: a market that one member of staff cannot resolve alone.

The staff follow the rules of production: a role each, codes of an authenticator app, and two people above a threshold.
The members keep the rules of development, because production refuses the demo's assigned balances.
"""

import base64
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import Group
from django.db import transaction
from django_otp.oath import hotp

from api.demo.client import Client, Refused
from api.demo.screen import Screen
from api.demo.supervisor import StackError
from payments import wiring
from users import audit, figures, second_factor
from users.models import CustomUser

ACT = "market.resolve"
THRESHOLD = "1000"
BETS = (("Dalmas", "Yes", "900.00"), ("Fatuma", "No", "600.00"))
STEP_SECONDS = 30


@dataclass
class Colleague:
    """A member of staff with an authenticator app. Each code works once; `last` counts the code that was used last."""

    name: str
    user: CustomUser
    key: bytes
    last: int
    token: str = ""

    @property
    def who(self) -> tuple[str, str]:
        """The shell variable that printed commands use for the token, and the token."""
        return (self.name.upper(), self.token)

    def code(self) -> str:
        """Return the next code that the app shows. The server accepts it up to half a minute early."""
        self.last = max(self.last + 1, int(time.time()) // STEP_SECONDS)
        return f"{hotp(self.key, self.last):06d}"


def hire(name: str, role: str, phone: str, pin: str) -> Colleague:
    """Create a member of staff with one role, and set up the person's app."""
    user = CustomUser.objects.create_user(phone_number=phone, full_name=f"Demo {name}", pin=pin, is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    at = wiring.now()
    key = base64.b32decode(second_factor.begin(user, at=at).secret.replace(" ", ""))
    last = int(time.time()) // STEP_SECONDS - 1
    by = audit.Actor(user_id=user.pk, source="demo")
    second_factor.confirm(user=user, code=f"{hotp(key, last):06d}", by=by, at=at)
    return Colleague(name, user, key, last)


def set_threshold(value: str) -> None:
    """Set the pool above which a market takes two people. Idempotent: an equal value is not written again."""
    before = figures.latest(figures.THRESHOLD + ACT)
    if (before.value if before else figures.NEVER) == value:
        return
    with transaction.atomic():
        at = max(wiring.now(), before.valid_from + timedelta(microseconds=1)) if before else wiring.now()
        change = figures.Change(figures.THRESHOLD + ACT, value, at, "The demo's second act")
        figures.set_value(change, by=audit.MACHINE, at=at)


def log_in(client: Client, colleague: Colleague, pin: str) -> None:
    """Log a member of staff in with PIN and code."""
    body = {"phone_number": colleague.user.phone_number, "pin": pin, "code": colleague.code()}
    colleague.token = str(client.call("POST", "/api/users/login/", body)["token"])


def resolve(client: Client, screen: Screen, market_id: int, operator: Colleague, approver: Colleague) -> None:
    """Let the operator resolve the market, and the approver approve. Prints each call and its answer.

    Raises: StackError if one person was enough.
    """
    body: dict[str, Any] = {"market_id": market_id, "outcome": "Yes"}
    proposal = client.call("POST", "/api/markets/admin/resolve/", body, who=operator.who)
    if proposal["status"] != "proposed":
        raise StackError(f"One person resolved market {market_id}, although its pool is above the threshold.")
    screen.say(
        f"Nothing is decided yet: proposal {proposal['proposal_id']} waits for another person. {operator.name} tries to"
        " approve it alone."
    )
    body = {"proposal_id": proposal["proposal_id"], "preview_hash": proposal["preview_hash"]}
    try:
        client.call("POST", "/api/markets/admin/approve/", body, who=operator.who)
    except Refused as refused:
        screen.say(f"REFUSED: {refused.sentence}", "yellow")
    else:
        raise StackError(f"{operator.name} approved the proposal that {operator.name} had made.")
    client.call("POST", "/api/markets/admin/approve/", body, who=approver.who, code=approver.code())
    screen.say(f"{approver.name} has approved it with a code. The market is resolved.")
