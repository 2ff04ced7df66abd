"""Repeatable draws."""

import hashlib


def draw(*parts: object) -> int:
    """Draw 64 bits, the same for the same parts on every machine."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8])


def fraction(*parts: object) -> float:
    """Draw from [0, 1) the same number for the same parts."""
    return (draw(*parts) >> 11) / (1 << 53)


def pick(options: tuple[str, ...], *parts: object) -> str:
    """Choose the same option for the same parts."""
    return options[draw(*parts) % len(options)]
