"""Rules for a PIN that a person chooses: its length, and no PIN that many others choose too.

The rules refuse about one four-digit PIN in six, and all of the 400 most common ones. A block-list needs about a tenth
of all PINs to be of use (Markert et al., "This PIN Can Be Easily Guessed", IEEE S&P 2020).
"""

from users.refusal import Refusal

SHORTEST = 4
SHORTEST_OF_STAFF = 6
LONGEST = 12
# Common four-digit PINs that no rule below refuses (Nick Berry's count of 3.4 million PINs, datagenetics.com, 2012).
COMMON = frozenset(
    """
    1233 1324 5150 1235 1318 4200 1236 7942 5425 1092 1232 1052 2848 1243 1314 1423 1254 1321 1492 1256
    1290 1346 1432 4862 0083 1200 1453 1066 1323 1776 3117 7894 9981 0024 1415 5683 0012 1080 1134 2356
    1248 1437 2123 3211 3214 4001
    """.split()  # noqa: SIM905 - a list of short texts is easier to read this way
)
_RUNS = ("01234567890123456789", "98765432109876543210", "0246802468", "8642086420", "1357913579", "9753197531")
# Lines and corners of a phone's keypad.
_KEYPAD = ("147", "258", "369", "159", "357", "2580", "1379", "1397", "7931", "1245", "4568", "2486", "1470", "3690")


class BadPin(Refusal):
    """The chosen PIN is too short, not made of digits, or one that many people choose."""


def check(pin: str, *, phone_number: str, is_staff: bool) -> None:
    """Refuse a PIN that is easy to guess.

    Raises: BadPin.
    """
    shortest = SHORTEST_OF_STAFF if is_staff else SHORTEST
    if not (pin.isascii() and pin.isdigit() and shortest <= len(pin) <= LONGEST):
        raise BadPin(f"A PIN has {shortest} to {LONGEST} digits, and nothing else. Your PIN was not changed.")
    if is_common(pin):
        raise BadPin(
            "Many people choose this PIN: a year, a date, a row of digits or a pattern. Please choose another. Your PIN"
            " was not changed."
        )
    if any(pin[at : at + 4] in phone_number for at in range(len(pin) - 3)):
        raise BadPin(
            "Your phone number contains four digits of this PIN. Please choose another. Your PIN was not changed."
        )


def is_common(pin: str) -> bool:
    """Return True if many people choose this PIN."""
    return (
        pin in COMMON
        or len(set(pin)) <= 2
        or any(pin in run for run in _RUNS)
        or _repeats(pin)
        or _is_year(pin)
        or _is_date(pin)
        or any(line in pin or line[::-1] in pin for line in _KEYPAD)
    )


def _repeats(pin: str) -> bool:
    """Return True if a part repeats (123123), if the PIN reads the same backwards, or if each digit comes twice."""
    halves = any(len(pin) % part == 0 and pin[:part] * (len(pin) // part) == pin for part in (1, 2, 3))
    pairs = len(pin) % 2 == 0 and pin[::2] == pin[1::2]
    return halves or pairs or pin == pin[::-1]


def _is_year(pin: str) -> bool:
    return len(pin) == 4 and "1900" <= pin <= "2039"


def _is_date(pin: str) -> bool:
    """Return True for a day and a month in either order, with or without a year."""
    years = {4: ("",), 6: (pin[4:], pin[:2]), 8: (pin[4:], pin[:4])}.get(len(pin), ())
    for year in years:
        rest = pin.removeprefix(year) if year and pin.startswith(year) else pin[: len(pin) - len(year)]
        day, month = rest[:2], rest[2:]
        if _is_day_of_month(day, month) or _is_day_of_month(month, day):
            return True
    return False


def _is_day_of_month(day: str, month: str) -> bool:
    return "01" <= month <= "12" and "01" <= day <= "31"
