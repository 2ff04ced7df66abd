"""Data of one version, and a program of another."""

import pytest

from testing.embedded_checkouts import Checkout

pytestmark = pytest.mark.servers


def test_database_of_another_version_is_not_ignored(checkout: Checkout) -> None:
    # given a database that another version made
    checkout.use()
    checkout.leave()
    directory = checkout.database
    directory.rename(checkout.place / "postgresql9")

    # when
    user = checkout.launch("postgres")
    _, errors = user.communicate()

    # then
    assert user.returncode == 1
    assert "postgresql9 was made by another version" in errors
    assert not directory.exists()
