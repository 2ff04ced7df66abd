"""Tests of markets/lookalikes.py."""

import pytest

from markets import lookalikes


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Yes", "Yes"),
        ("Yes", "YES"),
        ("Yes", "Yes."),
        ("Pelé", "Pele"),
        ("Over 1", "Over I"),
        ("Over 1", "Over l"),
        ("Mode 0", "Mode O"),
        ("modern", "modem"),
        ("A–B", "A-B"),
        ("Gor  Mahia", "Gor Mahia"),
        ("Ｙｅｓ", "Yes"),
        ("“Yes”", "Yes"),
        ("Over ∣", "Over 1"),
        ("Over 2○", "Over 20"),
        ("2∶1", "2:1"),
    ],
)
def test_names_that_look_alike_are_found(first: str, second: str) -> None:
    assert lookalikes.alike(["Draw", first, second]) == (first, second)


@pytest.mark.parametrize(
    "names", [("Yes", "No"), ("1-0", "0-1", "10"), ("+1.5", "-1.5"), ("Gor Mahia", "AFC Leopards"), ("Mali", "Mall")]
)
def test_different_names_are_accepted(names: tuple[str, ...]) -> None:
    assert lookalikes.alike(names) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Ye\u200bs", "ZERO WIDTH SPACE"),
        ("Ye\u200ds", "ZERO WIDTH JOINER"),
        ("\u202eoN", "RIGHT-TO-LEFT OVERRIDE"),
        ("No\u2066", "LEFT-TO-RIGHT ISOLATE"),
        ("Ye\u00ads", "SOFT HYPHEN"),
        ("Yes\x07", "U+0007"),
        ("Yes\x00", "U+0000"),
        ("Yes\nNo", "U+000A"),
        ("Yes\ue000", "U+E000"),
        ("Yes\u2028", "LINE SEPARATOR"),
        ("Yes\u2800", "BRAILLE PATTERN BLANK"),
        ("Yes\u3164", "HANGUL FILLER"),
    ],
)
def test_hidden_characters_are_found(text: str, name: str) -> None:
    assert lookalikes.hidden_character(text) == name


def test_line_breaks_are_allowed_where_lines_are() -> None:
    assert lookalikes.hidden_character("One.\r\n\tTwo.", lines=True) == ""
    assert lookalikes.hidden_character("One.\u200b\nTwo.", lines=True) == "ZERO WIDTH SPACE"


@pytest.mark.parametrize(("name", "character"), [("Yеs", "е"), ("Νo", "Ν"), ("Over ٥", "٥"), ("はい", "は")])
def test_letters_of_other_alphabets_are_found(name: str, character: str) -> None:
    assert lookalikes.foreign_character(name) == character


@pytest.mark.parametrize("name", ["Pelé", "Malmö FF", "Ærø", "Goal ⚽ 1–0", "Over 2½", "Ng'ombe"])
def test_latin_names_with_accents_and_signs_are_accepted(name: str) -> None:
    assert lookalikes.foreign_character(name) == ""
    assert lookalikes.hidden_character(name) == ""
