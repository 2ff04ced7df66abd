"""Verdicts of earlier runs, and tests chosen from an older measurement."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from soak.mutation import covering, mutants, verdicts

MODULE = "payments/due.py"
SOURCE = "def is_due(count):\n    return count > 1\n"
TEST = "payments/tests/test_due.py"
NEW = "payments/tests/test_new.py"


MUTANT = mutants.all_of(MODULE, SOURCE)[0]


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of the module and of the test in git, and the commit."""
    versions = {MODULE: "1", TEST: "1", "commit": "a"}
    monkeypatch.setattr(verdicts, "PLACE", tmp_path)
    monkeypatch.setattr(verdicts, "FILE", tmp_path / "verdicts.jsonl")
    monkeypatch.setattr(verdicts, "commit", lambda: versions["commit"])
    monkeypatch.setattr(verdicts, "_version", lambda _, path: versions[path])
    monkeypatch.setattr(verdicts, "_digest_of_test", lambda version, _: version)
    return versions


def test_noticed_mutant_is_not_judged_again_at_a_later_commit(versions: dict[str, str]) -> None:
    assert verdicts.Kept().of(MUTANT, []) is None
    verdicts.Kept().add(MUTANT, f"{TEST}::test_due", [])
    versions["commit"] = "b"
    assert verdicts.Kept().of(MUTANT, []) == f"{TEST}::test_due"


@pytest.mark.parametrize("changed", [MODULE, TEST])
def test_verdict_ends_with_a_change_and_leaves_a_hint(versions: dict[str, str], changed: str) -> None:
    verdicts.Kept().add(MUTANT, f"{TEST}::test_due", [])
    versions[changed] = "2"
    assert verdicts.Kept().of(MUTANT, []) is None
    assert verdicts.Kept().hint(MUTANT) == f"{TEST}::test_due"


def test_new_test_beside_it_leaves_a_test_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "1": "def test_due(): assert 1\n",
        "2": "def test_fee(): ...\n\n\ndef test_due(): assert 1\n",
        "3": "def test_due(): assert 2\n",
        "4": "def test_fee(): ...\n",
    }
    monkeypatch.setattr(verdicts, "git", lambda _, version: files[version])
    verdicts._digest_of_test.cache_clear()
    same, again, changed, gone = (verdicts._digest_of_test(version, f"{TEST}::test_due[1]") for version in "1234")
    verdicts._digest_of_test.cache_clear()
    assert same == again
    assert len({same, changed, gone}) == 3


def test_survivor_is_judged_again_by_other_tests_or_a_changed_file(versions: dict[str, str]) -> None:
    met = [f"{TEST}::test_due", f"{TEST}::test_fee"]
    verdicts.Kept().add(MUTANT, "", met)
    versions["commit"] = "b"
    assert verdicts.Kept().of(MUTANT, met) == ""
    assert verdicts.Kept().of(MUTANT, [*met, f"{TEST}::test_new"]) is None
    versions[TEST] = "2"
    assert verdicts.Kept().of(MUTANT, met) is None


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mutants.Mutant]:
    """A mutant of a module with a new line, and two files of tests with new tests since the measurement."""
    source = "# A new line.\n" + SOURCE
    for path, text in ((MODULE, source), (TEST, "def test_c(): ...\ndef test_f(): ...\n"), (NEW, "def test_e(): ...")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    then = {MODULE: SOURCE, TEST: "def test_c(): ...\ndef test_d(): ...\n"}
    answers = {"show": lambda of: then[of.split(":")[1]], "diff": lambda *_: f"M\t{MODULE}\nM\t{TEST}\nA\t{NEW}\n"}
    monkeypatch.setattr(covering, "ROOT", tmp_path)
    monkeypatch.setattr(covering, "git", lambda command, *arguments: answers[command](*arguments))
    cached = (covering._lines_then, covering._new_tests)
    for one in cached:
        one.cache_clear()
    yield mutants.all_of(MODULE, source)[0]
    for one in cached:
        one.cache_clear()


def test_tests_of_a_moved_line_and_new_tests_are_chosen(moved: mutants.Mutant) -> None:
    tests = {MODULE: {1: ["far.py::a"], 2: ["far.py::b", f"{TEST}::test_c", f"{TEST}::test_d"]}}
    measured = covering.Covering(tests, {f"{TEST}::test_c": 3, f"{TEST}::test_d": 2, "far.py::b": 1})
    chosen = [f"{TEST}::test_f", f"{TEST}::test_d", f"{TEST}::test_c", f"{NEW}::test_e", "far.py::b"]
    assert measured.of(moved) == chosen
    assert measured.of(moved, at_most=6.5) == chosen[:3]
    assert measured.of(moved, at_most=0.5) == chosen[:1]


def test_test_that_names_the_words_of_the_function_comes_first(moved: mutants.Mutant) -> None:
    tests = {MODULE: {2: ["far.py::test_fee", "far.py::test_payout_is_due", "far.py::test_counts_at_once"]}}
    measured = covering.Covering(tests, {"far.py::test_fee": 1, "far.py::test_counts_at_once": 9})
    assert measured.of(moved) == [
        "far.py::test_counts_at_once",
        f"{NEW}::test_e",
        "far.py::test_payout_is_due",
        "far.py::test_fee",
    ]


def test_later_variants_of_a_test_come_last(moved: mutants.Mutant) -> None:
    variants = [f"far.py::test_counts[{number}]" for number in range(4)]
    tests = {MODULE: {2: [*variants, "far.py::test_fee"]}}
    assert covering.Covering(tests).of(moved) == [*variants[:2], f"{NEW}::test_e", "far.py::test_fee", *variants[2:]]


def test_new_line_has_the_tests_of_its_function(moved: mutants.Mutant) -> None:
    tests = {MODULE: {1: [f"{TEST}::test_d"], 9: [f"{TEST}::test_c"]}}
    measured = covering.Covering(tests, {f"{TEST}::test_c": 3, f"{TEST}::test_d": 2})
    assert measured.of(moved) == [f"{TEST}::test_f", f"{TEST}::test_d", f"{NEW}::test_e"]
