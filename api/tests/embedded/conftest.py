"""Checkouts with their own servers, erased after each test.

They are in a temporary directory that every user may enter, because root's servers run as another user.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import embedded
from testing.embedded_checkouts import Checkout, MakeCheckout


@pytest.fixture
def checkouts() -> Iterator[MakeCheckout]:
    made: list[Checkout] = []
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)

        def make(name: str, profile: embedded.Profile = "durable") -> Checkout:
            made.append(Checkout(Path(directory) / name, profile))
            return made[-1]

        yield make
        for checkout in made:
            checkout.end_users()
            embedded.erase(checkout.base_dir, checkout.profile)


@pytest.fixture
def checkout(checkouts: MakeCheckout) -> Checkout:
    return checkouts("checkout")
