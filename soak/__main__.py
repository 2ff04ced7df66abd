"""`python -m soak [--quick]`: the full figures, written to docs/soak.md as they were seen.

Each part is a process of its own with a bound on its time; what was cut short or not run is said so. --quick does about
a tenth. --only NAME runs one part and leaves docs/ alone; --save puts what it saw beside what docs/soak.json has of the
others, each with its commit, and writes the page anew. Exits 1 when a figure missed its bar.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

# Starts the tests' PostgreSQL and Redis, and takes a developer's settings out of the environment.
from testing import services
from testing.figures import Figure, handed_over, say
from testing.parts import ROOT, Ended, Part, commit, git, machine, run

KEPT = ROOT / "docs" / "soak.json"
PAGE = ROOT / "docs" / "soak.md"
SEED_DIGITS = 6
NOTHING_WRONG = "0 lost, 0 paid twice, 0 paid in our books only, 0 stuck; all invariants after every step"
# The parts that run seeds: what each is called in the report, and what it passes at.
SEEDED = {
    "simulation": ("Simulation of the services on PostgreSQL", NOTHING_WRONG),
    "pure machine": ("The payout machine stated a second time, in memory", NOTHING_WRONG),
    "conformance": (
        "The services beside that machine, event by event",
        "0 disagreements on any state, time, question or balance",
    ),
}


def parts(*, quick: bool, seed: int) -> tuple[Part, ...]:
    """What is run, in this order. The simulation's seeds and all chances come from `seed`."""
    seeds, winners, count = (100, 1_000, 100_000) if quick else (1_000, 10_000, 1_000_000)
    pure, sequences = (10_000, 200) if quick else (100_000, 2_000)
    struck, striking = (200, 300) if quick else (2_000, 900)
    killing, calling, parsing = (240, 120, 30) if quick else (1_200, 1_500, 300)
    jobs = f"--jobs={os.cpu_count() or 1}"
    simulation = ("soak.simulation", jobs)
    chance = f"--seed={seed}"
    # Killing ends, and what is left is paid in peace, a while before the part's own time is up.
    return (
        Part("simulation", (*simulation, f"--seeds={seed}:{seed + seeds}"), 4 if quick else 20),
        Part("planted bugs", (*simulation, "--bugs"), 20 if quick else 45),
        Part("pure machine", (*simulation, "--pure", f"--seeds={seed}:{seed + pure}"), 5 if quick else 25),
        Part("planted bugs of the pure machine", (*simulation, "--pure", "--bugs"), 5),
        Part("conformance", (*simulation, "--conform", f"--seeds={seed}:{seed + sequences}"), 5 if quick else 25),
        Part("kills", ("soak.kills", f"--winners={winners}", f"--seconds={killing}", chance), 10 if quick else 30),
        Part("faults", ("soak.faults", f"--winners={struck}", f"--seconds={striking}", chance), 7 if quick else 20),
        Part("callbacks", ("soak.callbacks", f"--count={count}", f"--seconds={calling}", chance), 5 if quick else 30),
        Part("parser", ("soak.parser", f"--seconds={parsing}"), 3 if quick else 8),
    )  # fmt: skip


def figures(part: Part, ended: Ended) -> list[Figure]:
    """What a part measured; where it ended before it could say, that is the figure."""
    found = [figure for line in ended.lines for figure in handed_over(line)]
    if part.name in SEEDED:
        name, bar = SEEDED[part.name]
        summary = next((line for line in reversed(ended.lines) if re.match(r"\d+ \w+ in", line)), ended.how)
        return [Figure(f"{name}, {part.command[-1].removeprefix('--')}", bar, summary, _passed(ended))]
    if part.name.startswith("planted bugs"):
        table = bug_table(ended.lines)
        missed = sum("**nothing**" in row for row in table)
        seen = f"{max(0, len(table) - 2)} planted, {missed} not caught; {ended.how}"
        return [
            Figure(
                f"Guards switched off, one at a time: {part.name}",
                "each is noticed within 1,000 seeds",
                seen,
                _passed(ended),
            )
        ]
    if found:
        return found
    return [Figure(part.name, "it runs to its end", f"{ended.how}: {' / '.join(ended.lines[-3:])}", False)]


def _passed(ended: Ended) -> bool:
    return ended.in_time and ended.status == 0


def bug_table(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("|")]


@dataclass(frozen=True)
class Kept:
    """What a part saw, with when, on what and how it was run."""

    part: str
    figures: list[Figure]
    table: list[str]
    at: str
    commit: str
    on: str
    seed: int
    minutes: float
    quick: bool


def kept() -> dict[str, Kept]:
    """What docs/soak.json has, by part."""
    if not KEPT.exists():
        return {}
    return {
        each["part"]: Kept(**each | {"figures": [Figure(**figure) for figure in each["figures"]]})
        for each in json.loads(KEPT.read_text())
    }


def watched(part: Part, *, seed: int, quick: bool) -> Kept:
    """Run one part."""
    on, of = machine(), commit()
    ended = run(part)
    at = f"{datetime.now(ZoneInfo('Africa/Nairobi')):%d %B %Y at %H:%M}"
    return Kept(part.name, figures(part, ended), bug_table(ended.lines), at, of, on, seed, ended.seconds / 60, quick)


def page(found: Sequence[Kept]) -> str:
    """The page docs/soak.md."""
    verdicts = {True: "yes", False: "**no**", None: "not run"}
    lines = [
        "# What a soak saw",
        "",
        "Written by `make soak`. Every figure is what that run saw, no more. Each part says when it ended (Nairobi) "
        "and of which commit it was.",
    ]
    for each in found:
        size = "about a tenth of the full figures" if each.quick else "the full figures"
        lines += [
            "",
            f"## {each.part[0].upper()}{each.part[1:]}",
            "",
            f"{each.at}, commit {each.commit}, seed {each.seed}, {size}, in {each.minutes:.1f} minutes on {each.on}.",
            "",
            "| Figure | Passes at | Seen | Passed |",
            "|---|---|---|---|",
            *(f"| {f.name} | {f.bar} | {_cell(f.seen)} | {verdicts[f.passed]} |" for f in each.figures),
        ]
        if each.table:
            words = "Each guard is switched off, one at a time, and the first seed that notices is written down."
            lines += ["", words, "", *each.table]
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:600]


def main(arguments: list[str]) -> int:
    """Run the parts and write the report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in parts(quick=False, seed=0)]
    parser.add_argument("--quick", action="store_true", help="about a tenth, in some minutes")
    parser.add_argument("--only", choices=names, help="this part alone")
    parser.add_argument("--save", action="store_true", help="with --only: write docs/ all the same")
    parser.add_argument("--seed", type=int, help="by default from the commit")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else int(git("rev-parse", "HEAD")[:SEED_DIGITS] or "1", 16)
    found = {} if asked.only is None else kept()
    measured: list[Figure] = []
    for part in parts(quick=asked.quick, seed=seed):
        if asked.only in (None, part.name):
            found[part.name] = watched(part, seed=seed, quick=asked.quick)
            measured += found[part.name].figures
            if asked.only is None or asked.save:
                ordered = [found[name] for name in names if name in found]
                KEPT.write_text(json.dumps([asdict(each) for each in ordered], indent=1) + "\n")
                PAGE.write_text(page(ordered))
    for figure in measured:
        say(f"{'-' if figure.passed is None else 'ok' if figure.passed else 'NO'}  {figure.name}: {figure.seen}")
    if asked.only is None or asked.save:
        say(f"Written to {PAGE.relative_to(ROOT)}.")
    services.embedded.leave(ROOT, "fast")
    return int(any(figure.passed is False for figure in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
