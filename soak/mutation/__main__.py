"""Mutation testing: `python -m soak.mutation` changes the code in many small ways and sees if the tests notice.

Each mutant changes one place of one module, and runs the tests that reach this place: the nearest ones, up to a number
of seconds (--nearest). A mutant that they do not notice is a survivor: a guard without a test near it, or a change
without an effect. `equivalent.json` names the changes without an effect, each with its reason; they do not count. The
exit status is 1 if fewer than 95 % of the others are noticed.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from soak.mutation import covering, forking, mutants, verdicts
from testing.figures import Figure, hand_over, say
from testing.parts import ROOT, commit, git

# Modules of money, breakers, callbacks, audit and authentication.
MODULES = (
    "markets/parimutuel.py",
    "payments/ledger/journal.py",
    "payments/ledger/debt_decisions.py",
    "payments/ledger/receivables.py",
    "payments/settlement/division.py",
    "payments/settlement/settling.py",
    "payments/settlement/undo.py",
    "payments/settlement/resolutions.py",
    "payments/payouts/attempts.py",
    "payments/payouts/breakers.py",
    "payments/payouts/eligibility.py",
    "payments/payouts/evidence/rules.py",
    "payments/payouts/evidence/booking.py",
    "payments/payouts/evidence/callbacks.py",
    "payments/payouts/evidence/status_queries.py",
    "payments/payouts/sending/canary.py",
    "payments/payouts/sending/claims.py",
    "payments/payouts/sending/responses.py",
    "payments/payouts/operations/actions.py",
    "payments/payouts/operations/decisions.py",
    "users/audit.py",
    "users/auth.py",
)
PACKAGES = ("markets", "payments", "users")
SUITE = ("-m", "not long")
# These tests read the source instead of running it, so the measurement does not know that they reach it.
READING = ("payments/tests/test_row_locks.py::test_row_locks_leave_the_key_alone",)
SHARE = 95
EQUIVALENT = Path(__file__).parent / "equivalent.json"


@dataclass(frozen=True)
class Judged:
    """One mutant, with the test that noticed it, or with an empty text if it survived."""

    mutant: mutants.Mutant
    noticed_by: str
    seconds: float


class Session:
    """A checkout of the present commit, with a pytest session that judges its mutants."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._process, self._channel = forking.start(place, SUITE)

    def judge(self, mutant: mutants.Mutant, tests: list[str], seconds: float) -> Judged:
        """Run the tests against a mutant, at most so many seconds, and return the first failure."""
        began = time.monotonic()
        path = self.place / mutant.path
        source = path.read_text()
        mutated = mutant.applied(source)
        noticed_by = forking.CodeDiffers.__name__
        # Processes that tests start read the file. Bytecode of an earlier mutant can have the same second and size.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        path.write_text(mutated)
        try:
            if mutant.path.endswith(".py"):
                in_function = forking.is_in_function(source, mutant.start, mutant.end)
                noticed_by = self._ask(mutant.path, source, mutated, tests, seconds, in_function=in_function)
            if noticed_by == forking.CodeDiffers.__name__:
                noticed_by = _first_failure(tests, self.place, seconds)
        finally:
            path.write_text(source)
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        return Judged(mutant, noticed_by, time.monotonic() - began)

    def passes_unchanged(self, test: str, path: str, seconds: float) -> bool:
        """Return True if a test passes without any change of a module."""
        source = (self.place / path).read_text()
        return not self._ask(path, source, source, [test], seconds, in_function=True)

    def _ask(
        self, path: str, source: str, mutated: str, tests: list[str], seconds: float, *, in_function: bool
    ) -> str:  # fmt: skip
        cpu_seconds = math.ceil(seconds / 20)
        self._channel.send(forking.Question(path, source, mutated, in_function, tests, seconds, cpu_seconds))
        answer: str = self._channel.recv()
        return answer

    def end(self) -> None:
        with contextlib.suppress(OSError):  # The session has ended already.
            self._channel.send(None)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:  # The run was stopped in the middle of a mutant.
            self._process.kill()
            self._process.wait()


def _first_failure(tests: list[str], place: Path, seconds: float) -> str:
    """Run the tests in a new session, for a mutant outside functions, and return the first that fails.

    A run that ends in another way is named by its end. An empty text means that all tests passed.
    """
    tests_path = place / ".kasoko" / "mutation-tests.txt"
    tests_path.write_text("\n".join(tests) + "\n")
    command = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "--create-db", "--no-header", "--tb=no",
               "-p", "no:cacheprovider", *SUITE, f"@{tests_path}"]  # fmt: skip
    try:
        ended = subprocess.run(
            command, cwd=place, capture_output=True, text=True, check=False, timeout=seconds + 60
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return forking.NOT_IN_TIME
    if ended.returncode == 0:
        return ""
    failures = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failures[0].split(" - ")[0].split(" ", 1)[1] if failures else f"pytest ended with {ended.returncode}"


@contextlib.contextmanager
def _sessions(count: int) -> Iterator[list[Session]]:
    """Make `count` checkouts of the present commit, so that mutants can be judged at the same time."""
    with tempfile.TemporaryDirectory(prefix="kasoko-mutants-") as directory:
        places = [Path(directory, str(number)) for number in range(count)]
        sessions: list[Session] = []
        try:
            for place in places:
                git("worktree", "add", "--quiet", "--detach", str(place))
                (place / ".venv").symlink_to(ROOT / ".venv")
                sessions.append(Session(place))
            yield sessions
        finally:
            for session in sessions:
                session.end()
            for place in places:
                subprocess.run([sys.executable, "-P", "api/embedded", "erase"], cwd=place, check=False)
                git("worktree", "remove", "--force", str(place))


class _Choice:
    """The tests of each mutant, without those that fail without any mutant."""

    def __init__(self, covered: covering.Covering, kept: verdicts.Kept, nearest: float) -> None:
        self._covered, self._kept, self._nearest = covered, kept, nearest
        self._fit, self._unfit = set(covered.seconds), set[str]()

    def of(self, mutant: mutants.Mutant) -> list[str]:
        """Return the tests that judge a mutant."""
        nearest = self._covered.of(mutant, at_most=self._nearest)
        return [test for test in dict.fromkeys((*READING, *nearest)) if test not in self._unfit]

    def judge(self, session: Session, mutant: mutants.Mutant) -> Judged:
        """Judge a mutant. A test that the measurement does not know must pass without the mutant to notice it."""
        while True:
            hint = self._kept.hint(mutant)
            tests = [*([hint] if hint and hint not in self._unfit else []), *self.of(mutant)]
            seconds = 600 + 20 * sum(self._covered.seconds.get(test, 1) for test in tests)
            one = session.judge(mutant, tests, seconds)
            if "::" not in one.noticed_by or one.noticed_by in self._fit:
                return one
            if session.passes_unchanged(one.noticed_by, mutant.path, seconds):
                self._fit.add(one.noticed_by)
                return one
            say(f"  fails without any mutant, so it judges none: {one.noticed_by}")
            path, *_, name = one.noticed_by.split("[")[0].split("::")
            self._unfit |= {one.noticed_by, f"{path}::{name}"}


def judge_all(drawn: list[mutants.Mutant], *, jobs: int, nearest: float, until: float, measure: bool) -> list[Judged]:
    """Judge every mutant, `jobs` at a time, print each survivor at once, and keep each verdict for the next run."""
    kept = verdicts.Kept()
    choice = _Choice(covering.measure(SUITE, PACKAGES, again=measure), kept, nearest)
    verdicts_known = ((mutant, kept.of(mutant, choice.of(mutant))) for mutant in drawn)
    judged = [Judged(mutant, noticed_by, 0) for mutant, noticed_by in verdicts_known if noticed_by is not None]
    known = {one.mutant for one in judged}
    waiting: queue.SimpleQueue[mutants.Mutant | None] = queue.SimpleQueue()
    for mutant in [*(mutant for mutant in drawn if mutant not in known), *[None] * jobs]:
        waiting.put(mutant)
    if len(known) == len(drawn) or time.monotonic() >= until:
        return judged

    def work(session: Session) -> None:
        while (mutant := waiting.get()) is not None and time.monotonic() < until:
            one = choice.judge(session, mutant)
            judged.append(one)
            if one.noticed_by != forking.NOT_IN_TIME:  # On a busy machine it may end next time.
                kept.add(mutant, one.noticed_by, choice.of(mutant))
            if not one.noticed_by:
                say(f"  not noticed: {mutant.path}:{mutant.line}: {mutant.words}: {_cell(mutant.before)}")
            if len(judged) % 20 == 0:
                say(f"  {len(judged)} of {len(drawn)} mutants")

    with _sessions(jobs) as sessions:
        threads = [threading.Thread(target=work, args=(session,), daemon=True) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sorted(judged, key=lambda one: (one.mutant.path, one.mutant.start))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


def report(
    judged: list[Judged], excused: list[mutants.Mutant], reasons: dict[str, str], *, nearest: float, left: int
) -> bool:
    """Print the table of survivors and hand over the figure. `left` mutants have no verdict yet.

    `nearest` are the seconds of tests that each mutant met. More tests may notice more, so the share is a lower bound.

    Returns True if every mutant was judged and enough were noticed.
    """
    noticed = Counter(one.mutant.path for one in judged if one.noticed_by)
    total = Counter(one.mutant.path for one in judged)
    say("| Module (noticed) | Line | Change that no test noticed | Reason |")
    say("|---|---|---|---|")
    survivors = [(one.mutant, "no test near it") for one in judged if not one.noticed_by]
    survivors += [(mutant, reasons[mutant.name]) for mutant in excused]
    for path in sorted({mutant.path for mutant, _ in survivors} | total.keys()):
        module = f"{path} ({noticed[path]} of {total[path]})"
        here = sorted(
            ((mutant, reason) for mutant, reason in survivors if mutant.path == path), key=lambda one: one[0].start
        )
        for mutant, reason in here:
            change = f"{mutant.words}: {mutant.before} → {mutant.replacement or 'nothing'}"
            say(f"| {module} | {mutant.line} | {_cell(change)} | {reason} |")
        if not here:
            say(f"| {module} | | none | |")
    passed = left == 0 and 100 * noticed.total() >= SHARE * total.total()
    tests = "all tests that reach them" if nearest == math.inf else f"the nearest {nearest:g} s of tests"
    seen = (
        f"{noticed.total()} of {total.total()} mutants noticed by {tests}, {len(excused)} without effect, "
        f"{left} not judged"
    )
    hand_over([Figure("Mutants of the modules of money", f"at least {SHARE} % are noticed", seen, passed)])
    say(seen)
    return passed


def main(arguments: list[str]) -> int:
    """Draw the mutants, judge them, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="only this module (may be repeated)")
    parser.add_argument("--count", type=int, default=40, help="mutants a module (default 40)")
    parser.add_argument("--seed", type=int, default=11, help="the same seed draws the same mutants (default 11)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--nearest", type=float, default=20, metavar="SECONDS",
        help="only the nearest tests of each mutant, so many seconds of them (default 20, inf for all)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no mutant after so many minutes")
    parser.add_argument("--measure", action="store_true", help="learn again which tests run which lines")
    options = parser.parse_args(arguments)
    if commit().endswith("with changes"):
        parser.error("Commit your changes first, because the mutants are judged in checkouts of the commit.")
    drawn = [
        mutant
        for path in options.module or MODULES
        for mutant in mutants.draw(path, (ROOT / path).read_text(), count=options.count, seed=options.seed)
    ]
    reasons = json.loads(EQUIVALENT.read_text())
    counted = [mutant for mutant in drawn if mutant.name not in reasons]
    until = time.monotonic() + 60 * options.minutes
    judged = judge_all(counted, jobs=options.jobs, nearest=options.nearest, until=until, measure=options.measure)
    excused = [mutant for mutant in drawn if mutant.name in reasons]
    return 0 if report(judged, excused, reasons, nearest=options.nearest, left=len(counted) - len(judged)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
