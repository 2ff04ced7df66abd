"""Sentences that fit into one SMS: 160 characters of the GSM 7-bit alphabet. Pure."""

import unicodedata
from collections.abc import Sequence
from decimal import Decimal

LONGEST = 160
SHORTEST_QUESTION = 12
LONGEST_OUTCOME = 20
# The characters that are in both the GSM 7-bit alphabet and ASCII, and that count once. We leave out ^{}\[~]|, which
# count twice.
ALPHABET = frozenset("@$_ !\"#%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "…": "...", "×": "x", "÷": "/", "`": "'"}
)


def plain(text: str) -> str:
    """Write a text in ALPHABET, without accents. A question mark replaces each character that has no equivalent."""
    apart = unicodedata.normalize("NFKD", " ".join(text.split()).translate(_PLAIN))
    letters = (letter for letter in apart if not unicodedata.combining(letter))
    return "".join(letter if letter in ALPHABET else "?" for letter in letters)


def shortened(text: str, longest: int) -> str:
    """Shorten a text to `longest` characters. It ends in two dots if a part was cut off."""
    return text if len(text) <= longest else f"{text[: longest - 2].rstrip()}.."


def sms(head: str, question: str, tails: Sequence[str] = ()) -> str:
    """Join head, question and tails into one SMS.

    The head is always whole. Then as many tails as fit are added, earlier tails first. The question is shortened to fit
    into the remaining characters, or omitted.
    Raises: ValueError, if the head alone is too long.
    """
    text = plain(head)
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters do not fit into one SMS: {text}")
    room = LONGEST - len(text)
    chosen = []
    for tail in map(plain, tails):
        if len(tail) + 1 <= room:
            chosen.append(tail)
            room -= len(tail) + 1
    asked = ""
    if room >= SHORTEST_QUESTION + 3:
        asked = f' "{shortened(plain(question), room - 3)}"'
    return " ".join([text + asked, *chosen])


def won(  # noqa: PLR0913 - one keyword for each figure in the sentence
    *, outcome: str, stake: Decimal, fund: Decimal, stakes: Decimal, dividend: Decimal, pool: Decimal, fee: Decimal,
    tax: Decimal, paid: str, question: str,
) -> str:  # fmt: skip
    """Explain a winning bet. `paid` is the sentence about its first payment."""
    head = f"You won KES {dividend:.2f} on {_outcome(outcome)}: {stake:.2f} x {fund:.2f} / {stakes:.2f}."
    return sms(head, question, [paid, f"Pool {pool:.2f}, fee {fee:.2f}, tax {tax:.2f}."])


def lost(*, outcome: str, stake: Decimal, winners: Sequence[str], pool: Decimal, question: str) -> str:
    """Explain a losing bet."""
    head = f"Your KES {stake:.2f} on {_outcome(outcome)} did not win: {' and '.join(map(_outcome, winners[:2]))}"
    head += " won." if len(winners) <= 2 else " and others won."
    return sms(head, question, [f"Pool {pool:.2f}."])


def refunded(*, outcome: str, stake: Decimal, why: str, question: str) -> str:
    """Explain a refund. `why` is the reason for it."""
    return sms(f"Your KES {stake:.2f} on {_outcome(outcome)} is back in your wallet: {why}.", question)


def pending(*, outcome: str, stake: Decimal, state: str, question: str) -> str:
    """Explain a bet that has no result yet."""
    return sms(f"Your KES {stake:.2f} on {_outcome(outcome)} stands: the market is {state}.", question)


def _outcome(name: str) -> str:
    return f'"{shortened(plain(name), LONGEST_OUTCOME)}"'
