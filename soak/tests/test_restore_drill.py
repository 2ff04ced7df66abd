"""Drills of restores: every loss pays everybody once, and each planted bug is found."""

from pathlib import Path

import pytest

from soak import restore_drill
from soak.restore_bugs import BUGS
from testing import database_copies

pytestmark = pytest.mark.django_db(transaction=True)
DRILLS = ("short_loss", "long_loss")
PATIENCE = 12


def several_moments(drill: str, path: Path) -> None:
    """Run a drill at several moments, each on an empty database."""
    empty = database_copies.take()
    for moment in range(PATIENCE):
        getattr(restore_drill, drill)(moment, path)
        database_copies.put_back(empty)


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("drill", DRILLS)
def test_loss_at_any_moment_pays_everybody_once(drill: str, moment: int, tmp_path: Path) -> None:
    getattr(restore_drill, drill)(moment, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("moment", range(3, 13))
@pytest.mark.parametrize("drill", DRILLS)
def test_loss_at_further_moments_pays_everybody_once(drill: str, moment: int, tmp_path: Path) -> None:
    getattr(restore_drill, drill)(moment, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    """The bug may stay hidden at some moments, so the drill tries several on an empty database."""
    drill, plant = BUGS[name]
    with plant(), pytest.raises(restore_drill.RuleBroken):
        several_moments(drill, tmp_path)
