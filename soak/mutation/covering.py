"""Tests that run each line of a module, with their seconds, from one run of the suite with coverage.

The run takes some minutes, so its result is kept in `.kasoko/mutation/` for its commit.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coverage import CoverageData

from soak.mutation.mutants import Mutant
from testing.figures import say
from testing.parts import ROOT, commit

PLACE = ROOT / ".kasoko" / "mutation"
# A line of pytest's durations: "0.12s call     payments/tests/test_a.py::test_b".
_DURATION = re.compile(r"([0-9.]+)s (?:setup|call|teardown)\s+(\S.*)")


@dataclass(frozen=True)
class Covering:
    """Tests by module and line, and the seconds of each test."""

    tests: dict[str, dict[int, list[str]]]
    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests that can notice a mutant: those that run its lines, else all tests of its module.

        Code outside functions runs at import, so no test is recorded for it. The tests of a `.sql` file are those of
        the modules beside it. Tests of the module itself come first, then the fastest.
        """
        lines = self.tests.get(mutant.path, {})
        if not mutant.path.endswith(".py"):
            directory = str(Path(mutant.path).parent)
            chosen = {test for path, by_line in self.tests.items() if str(Path(path).parent) == directory
                      for tests in by_line.values() for test in tests}  # fmt: skip
        else:
            chosen = {test for line in range(mutant.line, mutant.last_line + 1) for test in lines.get(line, [])}
            chosen = chosen or {test for tests in lines.values() for test in tests}
        own = f"test_{Path(mutant.path).stem}"
        return sorted(chosen, key=lambda test: (own not in test, self.seconds.get(test, 1.0), test))


def measure(pytest_arguments: Sequence[str], packages: Sequence[str]) -> Covering:
    """Return the covering tests of this commit: from the last run if there is one, else from a new run.

    Raises: RuntimeError if a test fails, because then no mutant can be judged.
    """
    kept = PLACE / f"{commit()}.json"
    if kept.exists():
        loaded = json.loads(kept.read_text())
        tests = {path: {int(line): names for line, names in lines.items()} for path, lines in loaded["tests"].items()}
        return Covering(tests, loaded["seconds"])
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
    if ended.returncode != 0:
        raise RuntimeError("The tests fail without any mutant:\n" + ended.stdout[-3000:])
    seconds: dict[str, float] = defaultdict(float)
    for line in ended.stdout.splitlines():
        if match := _DURATION.match(line.strip()):
            seconds[match.group(2)] += float(match.group(1))
    covering = Covering(_tests_by_line(CoverageData(str(measured))), dict(seconds))
    kept.write_text(json.dumps({"tests": covering.tests, "seconds": covering.seconds}))
    return covering


def _tests_by_line(data: CoverageData) -> dict[str, dict[int, list[str]]]:
    data.read()
    tests: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        named = {line: sorted({name.rsplit("|", 1)[0] for name in names if name}) for line, names in contexts.items()}
        tests[str(Path(file).relative_to(ROOT))] = {line: names for line, names in named.items() if names}
    return tests
