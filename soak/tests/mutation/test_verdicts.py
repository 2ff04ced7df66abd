"""Verdicts of earlier runs, and tests chosen from an older measurement."""

from pathlib import Path

import pytest

from soak.mutation import covering, mutants, verdicts

MODULE = "payments/due.py"
SOURCE = "def is_due(count):\n    return count > 1\n"
TEST = "payments/tests/test_due.py"


MUTANT = mutants.all_of(MODULE, SOURCE)[0]


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of the module and of the test in git, and the commit."""
    versions = {MODULE: "1", TEST: "1", "commit": "a"}
    monkeypatch.setattr(verdicts, "PLACE", tmp_path)
    monkeypatch.setattr(verdicts, "FILE", tmp_path / "verdicts.jsonl")
    monkeypatch.setattr(verdicts, "commit", lambda: versions["commit"])
    monkeypatch.setattr(verdicts, "_version", lambda _, path: versions[path])
    return versions


def test_noticed_mutant_is_not_judged_again_at_a_later_commit(versions: dict[str, str]) -> None:
    assert verdicts.Kept().of(MUTANT) is None
    verdicts.Kept().add(MUTANT, f"{TEST}::test_due")
    versions["commit"] = "b"
    assert verdicts.Kept().of(MUTANT) == f"{TEST}::test_due"


@pytest.mark.parametrize("changed", [MODULE, TEST])
def test_verdict_ends_with_a_change_and_leaves_a_hint(versions: dict[str, str], changed: str) -> None:
    verdicts.Kept().add(MUTANT, f"{TEST}::test_due")
    versions[changed] = "2"
    assert verdicts.Kept().of(MUTANT) is None
    assert verdicts.Kept().hint(MUTANT) == f"{TEST}::test_due"


def test_survivor_is_judged_again_at_the_next_commit(versions: dict[str, str]) -> None:
    verdicts.Kept().add(MUTANT, "")
    assert verdicts.Kept().of(MUTANT) == ""
    versions["commit"] = "b"
    assert verdicts.Kept().of(MUTANT) is None


def test_tests_of_a_moved_line_and_changed_files_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covering, "ROOT", tmp_path)
    (tmp_path / "payments").mkdir()
    (tmp_path / MODULE).write_text("# A new line.\n" + SOURCE)
    answers = {"show": SOURCE, "diff": "payments/due.py\npayments/tests/test_new.py\n"}
    monkeypatch.setattr(covering, "git", lambda command, *_: answers[command])
    for cached in (covering._lines_then, covering._changed_tests):
        cached.cache_clear()
    moved = mutants.all_of(MODULE, "# A new line.\n" + SOURCE)[0]
    tests = {MODULE: {1: ["far.py::a"], 2: ["far.py::b", f"{TEST}::c", f"{TEST}::d", "payments/tests/test_new.py::e"]}}
    measured = covering.Covering(tests, {f"{TEST}::c": 3, f"{TEST}::d": 2, "far.py::b": 1})
    chosen = [f"{TEST}::d", f"{TEST}::c", "payments/tests/test_new.py", "far.py::b"]
    assert measured.of(moved) == chosen
    assert measured.of(moved, at_most=5.5) == chosen[:2]
    assert measured.of(moved, first="far.py::b")[0] == "far.py::b"
    for cached in (covering._lines_then, covering._changed_tests):
        cached.cache_clear()
