"""Planted bugs: a broken rule must reveal each bug, not only a crash."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from payments.payouts.sending import claims as sending_claims
from soak.simulation import __main__ as command
from soak.simulation import bugs as all_bugs
from soak.simulation import world
from soak.simulation.bugs import BUGS
from soak.simulation.planting import Bug, instead_of
from soak.simulation.world import World

PATIENCE = 50
pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.long
@pytest.mark.parametrize("name", BUGS)
def test_switched_off_guard_is_found(name: str) -> None:
    # given
    bug = BUGS[name]

    # when
    tried = range(bug.seed, bug.seed + PATIENCE)
    caught = next((seed for seed in tried if bug.run(seed).noticed), None)

    # then
    assert caught is not None, f"None of the seeds {tried.start} to {tried.stop - 1} finds the bug; run --bugs again."


def _raising(error: Exception) -> Bug:
    """Return a planted bug whose code raises this error instead of claiming payouts."""

    @contextmanager
    def plant(world: World) -> Iterator[None]:
        def claim(**_: Any) -> list[sending_claims.Claim]:
            raise error

        with instead_of(sending_claims, "claim", claim), instead_of(sending_claims, "claim_next", claim):
            yield

    return Bug("none: the planted code itself is broken", plant, {}, 0)


@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, KeyError, ValueError, AssertionError])
def test_crash_of_planted_code_is_a_violation_but_does_not_count(error: type[Exception]) -> None:
    # when
    outcome = _raising(error("the planted code is broken")).run(0)

    # then
    assert [violation.found_by for violation in outcome.violations] == ["crash"]
    assert outcome.noticed == ()


def test_planted_code_with_a_wrong_signature_does_not_count() -> None:
    # given: the dispatcher calls `claim` with arguments that the planted function does not take.
    @contextmanager
    def plant(world: World) -> Iterator[None]:
        with instead_of(sending_claims, "claim", lambda: []), instead_of(sending_claims, "claim_next", lambda: []):
            yield

    # when
    outcome = Bug("", plant, {}, 0).run(0)

    # then
    assert "TypeError" in outcome.violations[0].evidence
    assert outcome.noticed == ()


def test_wrong_statement_of_planted_code_does_not_count() -> None:
    # given
    @contextmanager
    def plant(world: World) -> Iterator[None]:
        def claim(**_: Any) -> list[sending_claims.Claim]:
            with connection.cursor() as cursor:
                cursor.execute("SELECT no_such_column FROM payments_attempt")
            return []

        with instead_of(sending_claims, "claim", claim), instead_of(sending_claims, "claim_next", claim):
            yield

    # when
    outcome = Bug("", plant, {}, 0).run(0)

    # then
    assert "ProgrammingError" in outcome.violations[0].evidence
    assert outcome.noticed == ()


def test_table_of_bugs_shows_broken_planted_code_as_not_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    broken = _raising(TypeError("the planted code is broken"))
    monkeypatch.setitem(all_bugs.BUGS, "broken", broken)
    monkeypatch.setattr(command, "MOST_SEEDS", 3)

    # when
    missed = command.report_bugs(command.run_bugs(["broken"]))

    # then
    assert missed == 1
    assert f"| broken | {broken.rule} | none |  | **nothing** |" in capsys.readouterr().out


def test_world_without_a_bug_runs_to_its_end() -> None:
    assert world.run(0).violations == ()
