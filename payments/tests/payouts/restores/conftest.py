"""Fixtures of the tests of restores: the copies of the heartbeat in a directory of the test."""

from pathlib import Path

import pytest

from payments import wiring
from payments.payouts.restores.copies import Copies


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    """The copies of the heartbeat in Redis and in the test's own directory."""
    return Copies(wiring.broker(), tmp_path / "heartbeat")
