"""Mutation testing: `python -m soak.mutation` changes the code in many small ways and sees if the tests notice.

Each mutant changes one place of one module, and runs the tests that reach this place. A mutant that no test notices is
a survivor: a guard without a test, or a change without an effect. `equivalent.json` names the changes without an
effect, each with its reason; they do not count. The exit status is 1 if fewer than 95 % of the others are noticed.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from soak.mutation import covering, mutants
from testing.figures import Figure, hand_over, say
from testing.parts import ROOT, git

# Modules of money, breakers, callbacks, audit and authentication.
MODULES = (
    "markets/parimutuel.py",
    "payments/ledger/journal.py",
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
SHARE = 95
EQUIVALENT = Path(__file__).parent / "equivalent.json"
# Most mutants are noticed by the first tests, so the first run has few of them.
FIRST_TESTS = 40
SECONDS_A_RUN = 900


@dataclass(frozen=True)
class Judged:
    """One mutant, with the test that noticed it, or with an empty text if it survived."""

    mutant: mutants.Mutant
    noticed_by: str
    seconds: float


def judge(mutant: mutants.Mutant, tests: list[str], place: Path) -> Judged:
    """Run the tests against a mutant in the checkout `place`, and return the first failure."""
    began = time.monotonic()
    path = place / mutant.path
    source = path.read_text()
    noticed_by = ""
    try:
        path.write_text(mutant.applied(source))
        for some in (tests[:FIRST_TESTS], tests[FIRST_TESTS:]):
            if some and (noticed_by := _first_failure(some, place)):
                break
    finally:
        path.write_text(source)
    return Judged(mutant, noticed_by, time.monotonic() - began)


def _first_failure(tests: list[str], place: Path) -> str:
    """Return the first test that fails, or an empty text. A run that ends in another way is named by its end."""
    command = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "--reuse-db", "--no-header", "--tb=no",
               "-p", "no:randomly", "-p", "no:cacheprovider", f"@{_argument_file(tests, place)}"]  # fmt: skip
    try:
        ended = subprocess.run(
            command, cwd=place, capture_output=True, text=True, check=False, timeout=SECONDS_A_RUN
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "the tests did not end"
    if ended.returncode == 0:
        return ""
    failures = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failures[0].split(" - ")[0].split(" ", 1)[1] if failures else f"pytest ended with {ended.returncode}"


def _argument_file(tests: Iterable[str], place: Path) -> Path:
    path = place / ".kasoko" / "mutation-tests.txt"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text("\n".join(tests) + "\n")
    return path


@contextmanager
def _checkouts(count: int) -> Iterator[list[Path]]:
    """Make `count` checkouts of the present commit, so that mutants can be judged at the same time."""
    with tempfile.TemporaryDirectory(prefix="kasoko-mutants-") as directory:
        places = [Path(directory, str(number)) for number in range(count)]
        try:
            for place in places:
                git("worktree", "add", "--quiet", "--detach", str(place))
                (place / ".venv").symlink_to(ROOT / ".venv")
            yield places
        finally:
            for place in places:
                subprocess.run([sys.executable, "-P", "api/embedded", "erase"], cwd=place, check=False)
                git("worktree", "remove", "--force", str(place))


def judge_all(drawn: list[mutants.Mutant], covered: covering.Covering, *, jobs: int) -> list[Judged]:
    """Judge every mutant, `jobs` at a time, and print each survivor at once."""
    waiting: queue.SimpleQueue[mutants.Mutant | None] = queue.SimpleQueue()
    for mutant in [*drawn, *[None] * jobs]:
        waiting.put(mutant)
    judged: list[Judged] = []

    def work(place: Path) -> None:
        while (mutant := waiting.get()) is not None:
            one = judge(mutant, covered.of(mutant), place)
            judged.append(one)
            if not one.noticed_by:
                say(f"  not noticed: {mutant.path}:{mutant.line}: {mutant.words}: {_cell(mutant.before)}")
            if len(judged) % 20 == 0:
                say(f"  {len(judged)} of {len(drawn)} mutants")

    with _checkouts(jobs) as places:
        threads = [threading.Thread(target=work, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sorted(judged, key=lambda one: (one.mutant.path, one.mutant.start))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


def report(judged: list[Judged], reasons: dict[str, str]) -> bool:
    """Print the table of survivors and hand over the figure. Return True if enough mutants were noticed."""
    counted = [one for one in judged if one.mutant.name not in reasons]
    noticed = Counter(one.mutant.path for one in counted if one.noticed_by)
    total = Counter(one.mutant.path for one in counted)
    say("| Module (noticed) | Line | Change that no test noticed | Reason |")
    say("|---|---|---|---|")
    for path in sorted(total):
        survivors = [one for one in judged if one.mutant.path == path and not one.noticed_by]
        module = f"{path} ({noticed[path]} of {total[path]})"
        for one in survivors:
            reason = reasons.get(one.mutant.name, "a test is missing")
            change = f"{one.mutant.words}: {one.mutant.before} → {one.mutant.replacement or 'nothing'}"
            say(f"| {module} | {one.mutant.line} | {_cell(change)} | {reason} |")
        if not survivors:
            say(f"| {module} | | none | |")
    passed = 100 * noticed.total() >= SHARE * total.total()
    seen = f"{noticed.total()} of {total.total()} mutants noticed, {len(judged) - len(counted)} without effect"
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
    options = parser.parse_args(arguments)
    covered = covering.measure(SUITE, PACKAGES)
    drawn = [
        mutant
        for path in options.module or MODULES
        for mutant in mutants.draw(path, (ROOT / path).read_text(), count=options.count, seed=options.seed)
    ]
    reasons = json.loads(EQUIVALENT.read_text())
    return 0 if report(judge_all(drawn, covered, jobs=options.jobs), reasons) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
