"""Scratch database for tests of the simulated world, and the check of one seed."""

from collections.abc import Callable, Iterator

import pytest
from pytest_django import DjangoDbBlocker

from soak.simulation.scratch import scratch_database, vacuum
from soak.simulation.seed_result import SeedResult


@pytest.fixture(scope="module")
def _scratch_database(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    # Each seed opens its own transaction and rolls it back, which is impossible inside the transaction of a test.
    with django_db_blocker.unblock(), scratch_database():
        yield


@pytest.fixture
def scratch(_scratch_database: None) -> None:
    vacuum()


@pytest.fixture
def assert_clean() -> Callable[..., None]:
    """Return a function that checks that a seed breaks no rule."""

    def check(seed: int, run: Callable[[int], SeedResult], option: str = "") -> None:
        violations = "\n".join(map(str, run(seed).violations))
        assert not violations, f"{violations}\nReplay it: python -m soak.simulation {option} --seed {seed} -v"

    return check
