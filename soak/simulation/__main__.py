"""Command line of the simulation: `python -m soak.simulation` runs seeds or planted bugs.

--seeds 0:1000          run these seeds; the exit status is 1 if a seed breaks a rule
--seed 17 -v            run one seed and print its trace
--bug NAME              run these seeds with one guard switched off
--bugs                  for each guard: switch it off, and run seeds until one finds the bug. Print the table of
                        docs/soak.md
--jobs 2                use this number of processes, each with its own scratch database
--conform               compare the services with the pure machine, event by event; each seed gives one sequence of
                        events
--outages               run outages of M-Pesa in the middle of a release at pace; each seed gives one outage
--staff                 run the world with people who hold, release and re-issue payouts
--pure                  run the pure machine in memory; accepts --seeds, --seed -v, --bug, --bugs, --jobs
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from soak.simulation.processes import in_processes
from soak.simulation.pure import command as pure_command

if __name__ == "__main__" and "--pure" in sys.argv:  # The pure machine needs neither Django nor servers.
    sys.exit(pure_command.main(sys.argv[1:]))

from testing import services

os.environ["DJANGO_SETTINGS_MODULE"] = "api.settings"
# ruff: noqa: E402 - the servers must run before Django is set up, and Django must be set up before models are imported.
import django

django.setup()

from soak.simulation import conformance, judge, outages, provider, staffed, world
from soak.simulation.bugs import BUGS
from soak.simulation.scratch import scratch_database, vacuum
from soak.simulation.seed_result import SeedResult

MOST_SEEDS = 1_000
SEEDS_FOR_SHARE = 20
VACUUM_EVERY_SEEDS = 10
# Seeds of other kinds than those of the simulated world, by option.
FAMILIES: dict[str, Callable[..., SeedResult]] = {
    "conform": conformance.run,
    "outages": outages.run,
    "staff": staffed.run,
}
ENOUGH = 200  # From this number of seeds on, each fault must have happened and few payouts may be held.
MOST_HELD = 0.01  # Units: share of all payouts.


def with_database(outcomes: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Make a scratch database, yield the results of all seeds, and remove the database."""
    with scratch_database():
        yield from outcomes


def run_seeds(
    seeds: Iterable[int], bug: str | None, *, keep_trace: bool, run: Callable[..., SeedResult] = world.run
) -> Iterator[dict[str, Any]]:
    """Run each seed, and yield its result as values that JSON can hold."""
    for number, seed in enumerate(seeds):
        if number % VACUUM_EVERY_SEEDS == 0:
            vacuum()
        outcome = BUGS[bug].run(seed, keep_trace=keep_trace) if bug else run(seed, keep_trace=keep_trace)
        yield {
            "seed": seed,
            "trace_hash": outcome.trace_hash,
            "violations": [str(violation) for violation in outcome.violations],
            "noticed": [violation.rule for violation in outcome.noticed],
            "stats": dict(outcome.stats),
            "trace": list(outcome.trace),
        }


def run_bugs(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Plant each bug. Yield the first seed that finds it, and the share of the first SEEDS_FOR_SHARE seeds that do.

    A seed finds a bug if the judge or PostgreSQL reports a broken rule. A seed that breaks a rule even without the bug
    is not taken as the first seed.
    """
    for name in names:
        first: dict[str, Any] | None = None
        caught = 0
        for outcome in run_seeds(range(MOST_SEEDS), name, keep_trace=False):
            caught += bool(outcome["noticed"])
            if first is None and outcome["noticed"] and not BUGS[name].run(outcome["seed"], planted=False).violations:
                first = outcome
            if first and outcome["seed"] >= SEEDS_FOR_SHARE - 1:
                break
        yield {
            "bug": name,
            "first": first,
            "share": caught / SEEDS_FOR_SHARE if first and first["seed"] < SEEDS_FOR_SHARE else None,
        }


def report_seeds(outcomes: Iterable[dict[str, Any]], bug: str | None, *, verbose: bool, family: str = "") -> int:
    """Print the results of the seeds, and return 1 if a seed broke a rule."""
    began = time.monotonic()
    stats: Counter[str] = Counter()
    failed = seeds = 0
    for outcome in outcomes:
        seeds += 1
        stats.update(outcome["stats"])
        if verbose:
            print(*outcome["trace"], sep="\n")
            print(f"seed {outcome['seed']}: {outcome['trace_hash']}")
        if outcome["violations"]:
            failed += 1
            print(f"seed {outcome['seed']} broke a rule:", *outcome["violations"][:5], sep="\n    ")
            planted = f' --bug "{bug}"' if bug else f" --{family}" if family else ""
            print(f"    replay: python -m soak.simulation --seed {outcome['seed']}{planted} -v", flush=True)
        elif seeds % 50 == 0:
            print(f"{seeds} seeds, {failed} broke a rule", flush=True)
    seconds = time.monotonic() - began
    if family == "outages":
        print(
            f"{seeds} outages in {seconds:.0f} s, {stats['winners']} winners,"
            f" {stats['requests in an outage']} requests left in an outage, {failed} outages broke a rule"
        )
        return int(bool(failed))
    if family == "conform":
        print(f"{seeds} sequences in {seconds:.0f} s, {stats['steps']} events, {failed} of them with a disagreement")
        return int(bool(failed))
    return report_totals(stats, seeds, failed, seconds, enough=seeds >= ENOUGH and not (bug or family))


def report_totals(stats: Counter[str], seeds: int, failed: int, seconds: float, *, enough: bool) -> int:
    """Print the totals, and return the exit status: 1 if a seed broke a rule.

    If `enough` is true, it is also 1 if a fault never happened, or if too many payouts were held.
    """
    payouts = {status: stats[status] for status in judge.FINAL}
    total = sum(payouts.values()) or 1
    held = stats["held, lost for too long"] / total
    unseen = sorted(fault for fault in {*world.WORLD_RATES, *provider.RATES} if not stats[fault])
    print(f"{seeds} seeds in {seconds:.0f} s, {stats['steps']} steps, payouts {payouts}", end=", ")
    print(f"held because the result was lost {held:.2%}", end=", ")
    print(f"held after a forgery {stats['held after a forgery'] / total:.2%}", end=", ")
    print(f"{failed} seeds broke a rule")
    if not enough:
        return int(bool(failed))
    if unseen:
        print(f"Faults that never happened: {', '.join(unseen)}")
    if held >= MOST_HELD:
        print(f"{held:.2%} of the payouts were held for a person; at most {MOST_HELD:.0%} may be held.")
    return int(bool(failed or unseen) or held >= MOST_HELD)


def report_bugs(rows: Iterable[dict[str, Any]]) -> int:
    """Print the table of planted bugs, and return 1 if at least one bug was found by no seed."""
    print(f"| Guard switched off | Rule | First seed | Share of {SEEDS_FOR_SHARE} seeds | Rule reported as broken |")
    print("|---|---|---|---|---|")
    missed = 0
    for row in rows:
        first = row["first"]
        missed += first is None
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        seed, rule = (first["seed"], first["noticed"][0]) if first else ("none", "**nothing**")
        print(f"| {row['bug']} | {BUGS[row['bug']].rule} | {seed} | {share} | {rule} |", flush=True)
    return int(bool(missed))


def main(argv: list[str]) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bug", choices=sorted(BUGS))
    parser.add_argument("--bugs", action="store_true")
    for family in FAMILIES:
        parser.add_argument(f"--{family}", dest="family", action="store_const", const=family, default="")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    outcomes = outcomes_of(options, argv)
    try:
        if options.part is not None:
            for outcome in outcomes:
                print(json.dumps(outcome), flush=True)
            return 0
        if options.bugs:
            return report_bugs(outcomes)
        return report_seeds(outcomes, options.bug, verbose=options.verbose, family=options.family)
    finally:
        services.embedded.leave(services.BASE_DIR, "fast")


def outcomes_of(options: argparse.Namespace, argv: list[str]) -> Iterator[dict[str, Any]]:
    """Return the results that the command line asks for, from this process or from several processes."""
    if options.jobs > 1 and options.part is None:
        return in_processes(options.jobs, argv)
    part, _, parts = (options.part or "0/1").partition("/")
    share = slice(int(part), None, int(parts))
    if options.bugs:
        return with_database(run_bugs(list(BUGS)[share]))
    first, _, last = options.seeds.partition(":")
    seeds = [options.seed] if options.seed is not None else list(range(int(first), int(last or int(first) + 1)))
    run = FAMILIES.get(options.family, world.run)
    return with_database(run_seeds(seeds[share], options.bug, keep_trace=options.verbose, run=run))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
