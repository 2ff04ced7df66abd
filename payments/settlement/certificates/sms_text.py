"""One sentence that fits into one SMS: at most 160 characters of the GSM 7-bit alphabet. Pure."""

import unicodedata
from collections.abc import Sequence
from decimal import Decimal

LONGEST = 160
SHORTEST_QUESTION = 12
LONGEST_OUTCOME = 20
# Of that alphabet only what is ASCII too and counts once: no accents, none of ^{}\[~]| that count twice.
ALPHABET = frozenset("@$_ !\"#%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "…": "...", "×": "x", "÷": "/", "`": "'"}
)


def plain(text: str) -> str:
    """The text in the alphabet: accents fall off, what has no likeness becomes a question mark."""
    apart = unicodedata.normalize("NFKD", " ".join(text.split()).translate(_PLAIN))
    letters = (letter for letter in apart if not unicodedata.combining(letter))
    return "".join(letter if letter in ALPHABET else "?" for letter in letters)


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 2].rstrip()}.."


def sms(head: str, question: str, tails: Sequence[str] = ()) -> str:
    """Head, question and tails in this order: the tails that fit, the first ones first, then of the question what fits.

    Raises: ValueError, where the head alone is too long.
    """
    text = plain(head)
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters do not fit into one SMS: {text}")
    room = LONGEST - len(text)
    kept = []
    for tail in map(plain, tails):
        if len(tail) + 1 <= room:
            kept.append(tail)
            room -= len(tail) + 1
    asked = ""
    if room >= SHORTEST_QUESTION + 3:
        asked = f' "{shortened(plain(question), room - 3)}"'
    return " ".join([text + asked, *kept])


def won(
    *, outcome: str, stake: Decimal, fund: Decimal, stakes: Decimal, dividend: Decimal, pool: Decimal, fee: Decimal,
    tax: Decimal, paid: str, question: str,
) -> str:  # fmt: skip
    """Why a bet won what it won; `paid` says how the money left."""
    head = f"You won KES {dividend:.2f} on {_outcome(outcome)}: {stake:.2f} x {fund:.2f} / {stakes:.2f}."
    return sms(head, question, [paid, f"Pool {pool:.2f}, fee {fee:.2f}, tax {tax:.2f}."])


def lost(*, outcome: str, stake: Decimal, winners: Sequence[str], pool: Decimal, question: str) -> str:
    """Why a bet won nothing."""
    head = f"Your KES {stake:.2f} on {_outcome(outcome)} did not win: {' and '.join(map(_outcome, winners[:2]))}"
    head += " won." if len(winners) <= 2 else " and others won."
    return sms(head, question, [f"Pool {pool:.2f}."])


def refunded(*, outcome: str, stake: Decimal, why: str, question: str) -> str:
    """Why a stake came back."""
    return sms(f"Your KES {stake:.2f} on {_outcome(outcome)} is back in your wallet: {why}.", question)


def pending(*, outcome: str, stake: Decimal, state: str, question: str) -> str:
    """What a bet without a result waits for."""
    return sms(f"Your KES {stake:.2f} on {_outcome(outcome)} stands: the market is {state}.", question)


def _outcome(name: str) -> str:
    return f'"{shortened(plain(name), LONGEST_OUTCOME)}"'
