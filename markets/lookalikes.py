"""Texts that a person could mistake for others: look-alike names, hidden characters.

The rule is bounded: a name has letters of the Latin alphabet only, and all names are compared in ASCII. A table of
every look-alike of every script is therefore not needed.
"""

import unicodedata
from collections.abc import Sequence

# Latin letters that Unicode does not decompose.
_FOLDED = {
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "þ": "th", "Þ": "TH", "ł": "l", "Ł": "L", "ı": "i", "ħ": "h", "Ħ": "H", "ŋ": "n", "Ŋ": "N",
}  # fmt: skip
# Punctuation that looks alike, by its ASCII character.
_MARKS = {
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-", "‘": "'", "’": "'", "‚": "'", "′": "'",
    "“": '"', "”": '"', "„": '"', "″": '"', "«": '"', "»": '"', "…": "...", "·": ".", "•": ".", "×": "x", "⁄": "/",
    "∕": "/", "∶": ":", "∙": ".", "⋅": ".", "∗": "*", "∣": "|", "¦": "|", "○": "o", "◯": "o", "✕": "x", "✖": "x",
}  # fmt: skip
# Characters that most fonts draw nearly alike.
_DRAWN_ALIKE = str.maketrans({"I": "l", "|": "l", "1": "l", "!": "l", "0": "o", "O": "o", "5": "s", "S": "s"})
_SEPARATORS = {"Zl", "Zp"}
# Letters and symbols that fonts draw as a blank: fillers of Hangul and Khmer, an empty Braille cell, an empty note.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U0001d159")


def hidden_character(text: str, *, lines: bool = False) -> str:
    """Return the name of the first character that is not seen, or an empty text.

    Controls, zero-width characters, direction marks, blank letters and characters without a meaning are not seen. With
    `lines`, line breaks and tabs are allowed.
    """
    for character in text:
        if lines and character in "\n\r\t":
            continue
        category = unicodedata.category(character)
        if category[0] == "C" or category in _SEPARATORS or character in _BLANK:
            return unicodedata.name(character, f"U+{ord(character):04X}")
    return ""


def foreign_character(name: str) -> str:
    """Return the first character of a name that is no Latin letter, ASCII digit or usual sign, or an empty text."""
    for character in _plain(name):
        if not character.isascii() and unicodedata.category(character)[0] in "LMN":
            return character
    return ""


def alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two names that a person could mistake for each other, or None."""
    seen: dict[str, str] = {}
    for name in names:
        forms = (_compared(name), _drawn(name))
        for form in forms:
            if form in seen:
                return seen[form], name
        seen.update(dict.fromkeys(forms, name))
    return None


def _compared(name: str) -> str:
    """Return the form in which names are compared as words: without case, accents and quotation marks."""
    words = _plain(name).casefold().replace('"', "").replace("'", "").split()
    return "word:" + " ".join(words).rstrip(" .!?,;:")


def _drawn(name: str) -> str:
    """Return the form in which names are compared as pictures."""
    drawn = _plain(name).translate(_DRAWN_ALIKE).casefold()
    return "drawn:" + "".join(drawn.split()).replace("rn", "m").replace("vv", "w")


def _plain(name: str) -> str:
    """Return a name in ASCII as far as possible: without accents, ligatures and typographic marks."""
    decomposed = unicodedata.normalize("NFKD", name)
    letters = (character for character in decomposed if unicodedata.category(character) != "Mn")
    return "".join(_MARKS.get(letter, _FOLDED.get(letter, letter)) for letter in letters)
