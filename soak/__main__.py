"""Command line of the soak: `python -m soak` runs the long parts and writes docs/soak.md.

Each part runs in its own process with a time limit. The page names each part that was stopped or not run.
--quick runs about a tenth. --only NAME runs one part and does not write docs/. With --save as well, the part's new
figures replace its old figures in docs/soak.json, and the page is written again. The exit status is 1 if a figure
missed its limit.
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

from soak.simulation import seeds

# The import of `services` starts the tests' servers and removes a developer's settings from the environment.
from testing import services
from testing.figures import Figure, handed_over, say
from testing.parts import ROOT, Ended, Part, commit, machine, run

SAVED = ROOT / "docs" / "soak.json"
PAGE = ROOT / "docs" / "soak.md"
NO_ERROR = "0 lost, 0 paid twice, 0 paid in our books only, 0 stuck; all invariants hold after every step"
OUTAGE_BAR = (
    "unanswered: at most 20 requests and the pace × max(4 × the median answer, 1 s), then probes; a field of ours "
    "refused: 0 winners failed; acknowledged and silent: at most 20 requests and the pace × PAYOUT_QUERY_AFTER, then "
    "probes; afterwards each winner is paid once"
)
BUG_WORDS = (
    "Each guard is switched off, one at a time. The table shows the first seed that finds the bug, the share of the "
    "first seeds that find it, and the rule that is reported as broken."
)
# Guards without a planted bug. `page` prints them below the table of planted bugs.
ONLY_TESTED = (
    "No seed finds the loss of these guards. Only tests of their own prove them: the second person for a re-issue, for "
    "an undo, for the wallet and for a decision on a held payout; a proposed undo and a suspended sending, which stop "
    "every act "
    "on a payout; a dispute that keeps its own money back; the limit of the day across workers at once; the "
    "limit of failed requests of one payout; the order of locks; "
    "the rest of the dispatcher while Redis or PostgreSQL is away; the web edge, PINs and sessions. The "
    "procedure after a restore has planted bugs of its own in `soak/restore_bugs.py`. "
    "`soak/tests/test_restore_drill.py` finds them."
)
MUTANT_WORDS = (
    "Each mutant changes one place of the code or of its SQL. Then the tests of `make test` that reach this place run, "
    "the nearest first, up to 20 seconds of them. More tests may notice more, so the share is a lower bound. The table "
    "lists the changes that these tests did not notice. The other reasons say why a change has no effect. Such a "
    "change does not count."
)
# The parts that run seeds, each with its name in the report and its limit.
SEEDED = {
    "simulation": ("Simulation of the services on PostgreSQL", NO_ERROR),
    "pure machine": ("Simulation of the pure machine in memory", NO_ERROR),
    "conformance": (
        "The services and the pure machine, event by event",
        "0 disagreements on a state, time, question or balance",
    ),
    "outages": ("Outages of M-Pesa in the middle of a release at pace, on a virtual clock", OUTAGE_BAR),
    "people": ("Simulation with people who hold, release and re-issue payouts", NO_ERROR),
}


def parts(*, quick: bool, seed: int) -> tuple[Part, ...]:
    """Return the parts in the order of their runs. All parts draw their seeds from `seed`."""
    services_seeds, winners, count = (100, 1_000, 100_000) if quick else (1_000, 10_000, 1_000_000)
    outages, people = (20, 50) if quick else (120, 500)
    pure_seeds, sequences = (10_000, 200) if quick else (100_000, 2_000)
    fault_winners, fault_seconds = (200, 300) if quick else (2_000, 900)
    mutants_a_module, mutant_minutes = (4, 30) if quick else (40, 220)
    moments = 20 if quick else 200
    kill_seconds, callback_seconds, parser_seconds = (240, 120, 30) if quick else (1_200, 1_500, 300)
    jobs = f"--jobs={os.cpu_count() or 1}"
    simulation = ("soak.simulation", jobs)
    chance = f"--seed={seed}"
    # The kills stop some time before the part's time limit, so that the last payouts can be paid.
    return (
        Part("simulation", (*simulation, f"--seeds={seed}:{seed + services_seeds}"), 8 if quick else 60),
        Part("people", (*simulation, "--staff", f"--seeds={seed}:{seed + people}"), 8 if quick else 40),
        Part("outages", (*simulation, "--outages", f"--seeds={seed}:{seed + outages}"), 10 if quick else 40),
        Part("planted bugs", (*simulation, "--bugs"), 30 if quick else 90),
        Part("pure machine", (*simulation, "--pure", f"--seeds={seed}:{seed + pure_seeds}"), 5 if quick else 25),
        Part("planted bugs of the pure machine", (*simulation, "--pure", "--bugs"), 5),
        Part("conformance", (*simulation, "--conform", f"--seeds={seed}:{seed + sequences}"), 5 if quick else 25),
        Part("restores", ("soak.restores", f"--moments={moments}", chance), 10 if quick else 45),
        Part("kills", ("soak.kills", f"--winners={winners}", f"--seconds={kill_seconds}", chance), 10 if quick else 30),
        Part("faults", ("soak.faults", f"--winners={fault_winners}", f"--seconds={fault_seconds}", chance),
             7 if quick else 20),
        Part("callbacks", ("soak.callbacks", f"--count={count}", f"--seconds={callback_seconds}", chance),
             5 if quick else 30),
        Part("parser", ("soak.parser", f"--seconds={parser_seconds}"), 3 if quick else 8),
        Part("mutants", ("soak.mutation", f"--count={mutants_a_module}", f"--minutes={mutant_minutes}", jobs),
             mutant_minutes + 20),
    )  # fmt: skip


def figures(part: Part, ended: Ended) -> list[Figure]:
    """Return the figures of a part. If the part ended without figures, return one missed figure."""
    measured = [figure for line in ended.lines for figure in handed_over(line)]
    if part.name in SEEDED:
        name, bar = SEEDED[part.name]
        summary = next((line for line in reversed(ended.lines) if re.match(r"\d+ \w+ in", line)), ended.how)
        return [Figure(f"{name}, {part.command[-1].removeprefix('--')}", bar, summary, _passed(ended))]
    if part.name.startswith("planted bugs"):
        table = bug_table(ended.lines)
        missed = sum("**nothing**" in row for row in table)
        seen = f"{max(0, len(table) - 2)} bugs planted, {missed} not found; {ended.how}"
        return [
            Figure(
                f"Guards switched off, one at a time: {part.name}",
                "each bug is found within 1,000 seeds",
                seen,
                _passed(ended),
            )
        ]
    if measured:
        return measured
    return [Figure(part.name, "it runs to its end", f"{ended.how}: {' / '.join(ended.lines[-3:])}", False)]


def _passed(ended: Ended) -> bool:
    return ended.in_time and ended.status == 0


def bug_table(lines: list[str]) -> list[str]:
    """Return those lines that belong to the table of planted bugs."""
    return [line for line in lines if line.startswith("|")]


@dataclass(frozen=True)
class PartFigures:
    """A part's figures, with the time, commit, seed and machine of its run."""

    part: str
    figures: list[Figure]
    table: list[str]
    at: str
    commit: str
    on: str
    seed: int
    minutes: float
    quick: bool


def saved() -> dict[str, PartFigures]:
    """Return the figures in docs/soak.json, by part."""
    if not SAVED.exists():
        return {}
    return {
        part["part"]: PartFigures(**part | {"figures": [Figure(**figure) for figure in part["figures"]]})
        for part in json.loads(SAVED.read_text())
    }


def measure(part: Part, *, seed: int, quick: bool) -> PartFigures:
    """Run one part, and return its figures."""
    on, of = machine(), commit()
    ended = run(part)
    at = f"{datetime.now(ZoneInfo('Africa/Nairobi')):%d %B %Y at %H:%M}"
    return PartFigures(
        part.name, figures(part, ended), bug_table(ended.lines), at, of, on, seed, ended.seconds / 60, quick
    )


def page(parts_seen: Sequence[PartFigures]) -> str:
    """Return the text of docs/soak.md."""
    answers = {True: "yes", False: "**no**", None: "not run"}
    lines = [
        "# Figures of the long runs",
        "",
        "`make soak` writes this page. The figures of each part come from one run. The line below its title gives the "
        "commit and the end of that run (Nairobi time).",
    ]
    for part in parts_seen:
        size = "about a tenth of the full figures" if part.quick else "the full figures"
        lines += [
            "",
            f"## {part.part[0].upper()}{part.part[1:]}",
            "",
            f"{part.at}, commit {part.commit}, seed {part.seed}, {size}, in {part.minutes:.1f} minutes on {part.on}.",
            "",
            "| Figure | Passes at | Seen | Passed |",
            "|---|---|---|---|",
            *(f"| {f.name} | {f.bar} | {_cell(f.seen)} | {answers[f.passed]} |" for f in part.figures),
        ]
        if part.table:
            lines += ["", MUTANT_WORDS if part.part == "mutants" else BUG_WORDS, "", *part.table]
        if part.part == "planted bugs":
            lines += ["", ONLY_TESTED]
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:600]


def main(arguments: list[str]) -> int:
    """Run the parts, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in parts(quick=False, seed=0)]
    parser.add_argument("--quick", action="store_true", help="run about a tenth, in some minutes")
    parser.add_argument("--only", choices=names, help="run this part only")
    parser.add_argument("--save", action="store_true", help="with --only: write docs/ too")
    parser.add_argument("--seed", type=int, help="default: drawn from the commit")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else seeds.of_commit()
    seen = {} if options.only is None else saved()
    measured: list[Figure] = []
    for part in parts(quick=options.quick, seed=seed):
        if options.only in (None, part.name):
            seen[part.name] = measure(part, seed=seed, quick=options.quick)
            measured += seen[part.name].figures
            if options.only is None or options.save:
                ordered = [seen[name] for name in names if name in seen]
                SAVED.write_text(json.dumps([asdict(part) for part in ordered], indent=1) + "\n")
                PAGE.write_text(page(ordered))
    for figure in measured:
        say(f"{'-' if figure.passed is None else 'ok' if figure.passed else 'NO'}  {figure.name}: {figure.seen}")
    if options.only is None or options.save:
        say(f"Written to {PAGE.relative_to(ROOT)}.")
    services.embedded.leave(ROOT, "fast")
    return int(any(figure.passed is False for figure in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
