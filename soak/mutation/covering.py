"""Tests that run each line of a module, with their seconds, from one run of the suite with coverage.

The run takes some minutes, so its result is kept in `.kasoko/mutation/`. It serves later commits too: lines that moved
are found again, and tests that were written since then are added.
"""

import ast
import difflib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from coverage import CoverageData

from soak.mutation.mutants import Mutant
from testing.figures import say
from testing.parts import ROOT, git

PLACE = ROOT / ".kasoko" / "mutation"
# A line of pytest's durations: "0.12s call     payments/tests/test_a.py::test_b".
_DURATION = re.compile(r"([0-9.]+)s (?:setup|call|teardown)\s+(\S.*)")


@dataclass(frozen=True)
class Covering:
    """Tests by module and line as they were measured at a commit, and the seconds of each test."""

    tests: dict[str, dict[int, list[str]]]
    seconds: dict[str, float] = field(default_factory=dict)
    commit: str = ""

    def of(self, mutant: Mutant, *, at_most: float = math.inf) -> list[str]:
        """Return the tests that can notice a mutant: those that run its lines, else all tests of its module.

        `at_most` are the seconds of the tests. One test is always returned.
        Code outside functions runs at import, so no test is recorded for it. A new line has the tests of its function.
        A new module has the tests of the files that name it. The tests of a `.sql` file are those of the modules
        beside it. Tests written since the measurement are added if
        their file is new, or if another of its tests runs the module. Tests of the module itself come first. Then the
        tests come whose names share most words with the mutated function, above all rare words. The third and later
        variants of a test come last.
        """
        lines = self.tests.get(mutant.path, {})
        if not mutant.path.endswith(".py"):
            directory = str(Path(mutant.path).parent)
            chosen = {test for path, by_line in self.tests.items() if str(Path(path).parent) == directory
                      for tests in by_line.values() for test in tests}  # fmt: skip
        else:
            measured = _lines_then(self.commit, mutant.path)
            chosen = self._running(lines, measured, range(mutant.line, mutant.last_line + 1))
            chosen = chosen or self._running(lines, measured, _function_around(mutant.path, mutant.line))
            chosen = chosen or {test for tests in lines.values() for test in tests}
            chosen = chosen or set(_tests_that_name(Path(mutant.path).stem))
        files = {test.split("::")[0] for tests in lines.values() for test in tests}
        chosen = chosen | {
            test for test, is_file_new in _new_tests(self.commit) if is_file_new or test.split("::")[0] in files
        }
        package, *directories = Path(mutant.path).parent.parts
        own = re.compile(rf"{package}/.*/test_{Path(mutant.path).stem}(_\w+)?\.py")
        beside = "/".join([package, "tests", *directories]) + "/"
        likeness = _likeness(mutant, chosen)

        def distance(test: str) -> tuple[bool, float, bool, float, str]:
            return not own.match(test), -likeness[test], not test.startswith(beside), self.seconds.get(test, 0.0), test

        ordered = _variants_last(sorted(chosen, key=distance))
        ends = itertools.accumulate(self.seconds.get(test, 1.0) for test in ordered)
        nearest = [test for test, end in zip(ordered, ends, strict=True) if end <= at_most]
        return nearest or ordered[:1]

    @staticmethod
    def _running(lines: dict[int, list[str]], measured: dict[int, int], wanted: range) -> set[str]:
        return {test for line in wanted for test in lines.get(measured.get(line, 0), [])}


@cache
def _lines_then(measured_at: str, path: str) -> dict[int, int]:
    """Return the line that each present line of a module had at the measurement. New lines are left out."""
    then = git("show", f"{measured_at}:{path}").splitlines()
    now = Path(ROOT, path).read_text().rstrip().splitlines()
    blocks = difflib.SequenceMatcher(None, now, then, autojunk=False).get_matching_blocks()
    return {block.a + n + 1: block.b + n + 1 for block in blocks for n in range(block.size)}


def _function_around(path: str, line: int) -> range:
    """Return the lines of the smallest function around a line, or no lines."""
    around = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(Path(ROOT, path).read_text()))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return min(around, key=len, default=range(0))


def _likeness(mutant: Mutant, tests: Set[str]) -> dict[str, float]:
    """Return for each test the sum of the words that its name shares with the mutated function. Rare words weigh more.

    A test that names the rule of a function notices its change sooner than a test that only passes through it.
    """
    lines = Path(ROOT, mutant.path).read_text().splitlines()
    around = _function_around(mutant.path, mutant.line) or range(mutant.line, mutant.last_line + 1)
    function = _words("\n".join(lines[around.start - 1 : around.stop - 1]))
    named = {test: _words(test.split("[")[0]) for test in tests}
    frequency = Counter(word for words in named.values() for word in words)
    return {
        test: round(sum(math.log(len(tests) / frequency[word]) for word in words & function), 1)
        for test, words in named.items()
    }


def _variants_last(tests: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    rank = {}
    for test in tests:
        name = test.split("[")[0]
        rank[test] = seen[name] >= 2
        seen[name] += 1
    return sorted(tests, key=rank.__getitem__)


@cache
def _words(text: str) -> frozenset[str]:
    """Return the words of a text without endings of plurals. Short words are left out."""
    return frozenset(word.lower().rstrip("s") for word in re.findall(r"[A-Za-z][a-z]{3,}", text))


@cache
def _new_tests(measured_at: str) -> tuple[tuple[str, bool], ...]:
    """Return the tests that were written since a measurement, each with True if its file is new."""
    changes = git("diff", "--name-status", "--no-renames", "--diff-filter=d", measured_at, "HEAD").splitlines()
    new = []
    for change in changes:
        status, path = change.split("\t")
        if Path(path).name.startswith("test_"):
            then = set() if status == "A" else _test_names(git("show", f"{measured_at}:{path}"))
            written = _test_names(Path(ROOT, path).read_text()) - then
            new += [(f"{path}::{name}", status == "A") for name in sorted(written)]
    return tuple(new)


@cache
def _tests_that_name(module: str) -> frozenset[str]:
    paths = git("ls-files", "*/test_*.py").splitlines()
    sources = {path: Path(ROOT, path).read_text() for path in paths}
    return frozenset(
        f"{path}::{name}"
        for path, source in sources.items()
        if re.search(rf"\b{module}\b", source)
        for name in _test_names(source)
    )


def _test_names(source: str) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def measure(pytest_arguments: Sequence[str], packages: Sequence[str], *, again: bool = False) -> Covering:
    """Return the covering tests: from the last measurement if there is one, or from a new run if `again` is True.

    A test that fails without any mutant judges none, so it is left out.
    Raises: RuntimeError if the tests do not run to their end.
    """
    earlier = sorted(PLACE.glob("covering-*.json"), key=lambda path: path.stat().st_mtime)
    if earlier and not again:
        loaded = json.loads(earlier[-1].read_text())
        tests = {path: {int(line): names for line, names in lines.items()} for path, lines in loaded["tests"].items()}
        return Covering(tests, loaded["seconds"], loaded["commit"])
    PLACE.mkdir(parents=True, exist_ok=True)
    say("Running the tests with coverage, to learn which tests run which lines.")
    measured = PLACE / "coverage"
    command = [
        sys.executable, "-m", "pytest", "--quiet", "--durations=0", "--durations-min=0", "-vv", "--no-header",
        "--numprocesses=2", "--dist=loadfile", "--cov-context=test", "--cov-report=",
        *(f"--cov={package}" for package in packages), *pytest_arguments,
    ]  # fmt: skip
    environment = os.environ | {"COVERAGE_FILE": str(measured)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError("The tests did not run to their end:\n" + ended.stdout[-3000:])
    failed = {line.split(" - ")[0].split(" ", 1)[1] for line in ended.stdout.splitlines() if line.startswith("FAILED ")}
    for test in sorted(failed):
        say(f"  fails without any mutant, so it judges none: {test}")
    seconds: dict[str, float] = defaultdict(float)
    for line in ended.stdout.splitlines():
        if match := _DURATION.match(line.strip()):
            seconds[match.group(2)] += float(match.group(1))
    covering = Covering(_tests_by_line(CoverageData(str(measured)), failed), dict(seconds), git("rev-parse", "HEAD"))
    Path(PLACE, f"covering-{covering.commit[:10]}.json").write_text(json.dumps(asdict(covering)))
    return covering


def _tests_by_line(data: CoverageData, failed: Set[str]) -> dict[str, dict[int, list[str]]]:
    data.read()
    tests: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        named = {
            line: sorted({name.rsplit("|", 1)[0] for name in names if name} - failed)
            for line, names in contexts.items()
        }
        tests[str(Path(file).relative_to(ROOT))] = {line: names for line, names in named.items() if names}
    return tests
