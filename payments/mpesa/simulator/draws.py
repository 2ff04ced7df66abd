"""Repeatable random draws: the same parts give the same draw on every machine. Pure."""

import hashlib


def draw(*parts: object) -> int:
    """Draw a number of 64 bits."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8])


def fraction(*parts: object) -> float:
    """Draw a number from [0, 1)."""
    return (draw(*parts) >> 11) / (1 << 53)


def pick(options: tuple[str, ...], *parts: object) -> str:
    """Choose one of the options."""
    return options[draw(*parts) % len(options)]
