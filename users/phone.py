"""Kenyan mobile numbers, as M-Pesa wants them: twelve digits, `2547XXXXXXXX` or `2541XXXXXXXX`."""

import re

from users.refusal import Refusal

STORED = r"^254[17][0-9]{8}$"
_TYPED = re.compile(r"(?:\+?254|0)?([17][0-9]{8})", re.ASCII)
_BLANKS = re.compile(r"[ \-().]")


class NotAPhoneNumber(Refusal, ValueError):
    """What was typed is no Kenyan mobile number."""


def normalise(typed: str) -> str:
    """Return a Kenyan mobile number as its twelve digits, however it was typed.

    Takes `0712 345 678`, `+254712345678`, `254-712-345-678`, `712345678`; blanks, dashes, dots, brackets are ignored.
    Whether the number is on M-Pesa cannot be told from its prefix: networks are portable and ranges grow.
    Raises: NotAPhoneNumber, for anything else, among them the slip `25407…`.
    """
    found = _TYPED.fullmatch(_BLANKS.sub("", typed)) if isinstance(typed, str) else None
    if found is None:
        raise NotAPhoneNumber("phone_number must be a Kenyan mobile number such as 0712345678 or 254712345678.")
    return "254" + found[1]


def masked(phone_number: str) -> str:
    """Return a stored number for logs and screens: `2547****678`."""
    return f"{phone_number[:4]}****{phone_number[-3:]}"
