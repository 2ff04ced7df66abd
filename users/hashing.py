"""Bound on simultaneous PIN checks in one process, so that a flood of logins leaves threads for callbacks.

argon2 takes 100 MB and all of a core for each check (Django's parameters). A web process has eight threads.
"""

import threading

from django.contrib.auth.hashers import check_password, make_password

from users.refusal import Refusal

AT_ONCE = 2
AT_ONCE_OR_WAITING = 4
# Hash of a PIN that nobody has. The PIN for an unknown number is checked against this hash, so that the refusal takes
# as long as for a known number.
_UNUSED_PIN = make_password("not a PIN")
_checking = threading.BoundedSemaphore(AT_ONCE)
_places = threading.BoundedSemaphore(AT_ONCE_OR_WAITING)


class Busy(Refusal):
    """Too many logins are being checked at this moment."""


def matches(pin: str, encoded: str | None) -> bool:
    """Return True if the PIN has this hash. None stands for a member who does not exist.

    Raises: Busy, at once, if two PINs are being checked and two more wait.
    """
    if not _places.acquire(blocking=False):
        raise Busy("Too many people are logging in at this moment. Nothing was done. Try again in a few seconds.")
    try:
        with _checking:
            return check_password(pin, encoded or _UNUSED_PIN) and encoded is not None
    finally:
        _places.release()
