"""Kenyan mobile numbers in M-Pesa's form: twelve digits, `2547XXXXXXXX` or `2541XXXXXXXX`."""

import re

from users.refusal import Refusal

STORED = r"^254[17][0-9]{8}$"
_TYPED = re.compile(r"(?:\+?254|0)?([17][0-9]{8})", re.ASCII)
_BLANKS = re.compile(r"[ \-().]")


class NotAPhoneNumber(Refusal, ValueError):
    """The text is not a Kenyan mobile number."""


def normalise(typed: str) -> str:
    """Return a Kenyan mobile number as twelve digits.

    Accepts `0712 345 678`, `+254712345678`, `254-712-345-678` and `712345678`. Ignores blanks, dashes, dots, brackets.
    The prefix does not show if a number is on M-Pesa. Members can change network and keep the number, and networks get
    new ranges.
    Raises: NotAPhoneNumber for anything else, for example the common typing error `25407…`.
    """
    match = _TYPED.fullmatch(_BLANKS.sub("", typed)) if isinstance(typed, str) else None
    if match is None:
        raise NotAPhoneNumber("phone_number must be a Kenyan mobile number such as 0712345678 or 254712345678.")
    return "254" + match[1]


def masked(phone_number: str) -> str:
    """Mask a stored number for logs and screens: `2547****678`."""
    return f"{phone_number[:4]}****{phone_number[-3:]}"
