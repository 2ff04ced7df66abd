"""Command line of the pure world: `python -m soak.simulation --pure`."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from soak.simulation.processes import in_processes
from soak.simulation.provider import RATES
from soak.simulation.pure import world
from soak.simulation.pure.bugs import PURE_BUGS, PureBug

MOST_SEEDS = 1_000
SEEDS_FOR_SHARE = 200
BATCH = 100
REPORT_EVERY = 10_000
ENOUGH = 1_000  # From this number of seeds on, each fault must have happened.


def run_seeds(seeds: Iterable[int], bug: str | None, *, keep_trace: bool = False) -> Iterator[dict[str, Any]]:
    """Run each seed, and yield the results of each batch as values that JSON can hold.

    `trace` combines the trace hashes of the batch.
    """
    stats: Counter[str] = Counter()
    count, trace_hash = 0, 0
    failed: list[dict[str, Any]] = []
    lines: list[str] = []
    for seed in seeds:
        outcome = PURE_BUGS[bug].run(seed, keep_trace=keep_trace) if bug else world.run(seed, keep_trace=keep_trace)
        count, trace_hash = count + 1, trace_hash ^ int(outcome.trace_hash, 16)
        stats.update(outcome.stats)
        lines += outcome.trace
        if outcome.violations:
            failed.append({"seed": seed, "violations": [str(violation) for violation in outcome.violations]})
        if count == BATCH:
            yield {"seeds": count, "stats": stats, "failed": failed, "trace": f"{trace_hash:064x}", "lines": lines}
            stats, count, trace_hash, failed, lines = Counter(), 0, 0, [], []
    yield {"seeds": count, "stats": stats, "failed": failed, "trace": f"{trace_hash:064x}", "lines": lines}


def report_seeds(batches: Iterable[dict[str, Any]], bug: str | None) -> int:
    """Print the results of the seeds, and return 1 if a seed broke a rule.

    If enough seeds ran without a bug, also return 1 if a fault never happened.
    """
    began = time.monotonic()
    stats: Counter[str] = Counter()
    seeds = failed = trace_hash = 0
    for batch in batches:
        seeds += batch["seeds"]
        stats.update(batch["stats"])
        trace_hash ^= int(batch["trace"], 16)
        if batch["lines"]:
            print(*batch["lines"], sep="\n")
        for outcome in batch["failed"]:
            failed += 1
            print(f"seed {outcome['seed']} broke a rule:", *outcome["violations"][:5], sep="\n    ")
            planted = f' --bug "{bug}"' if bug else ""
            print(f"    replay: python -m soak.simulation --pure --seed {outcome['seed']}{planted} -v", flush=True)
        if batch["seeds"] and seeds % REPORT_EVERY < batch["seeds"]:
            print(f"{seeds:,} seeds, {failed} broke a rule", flush=True)
    seconds = time.monotonic() - began
    unseen = sorted(fault for fault in {*world.WORLD_RATES, *RATES} if not stats[fault])
    print(f"{seeds} seeds in {seconds:.0f} s, {stats['steps']} steps, {stats['COMPLETED']} payouts completed", end=", ")
    print(f"{stats['to the wallet at last']} of them to the wallet in the end, trace {trace_hash:064x}"[:-48], end=", ")
    print(f"{failed} seeds broke a rule")
    if seeds < ENOUGH or bug:
        return int(bool(failed))
    if unseen:
        print(f"Faults that never happened: {', '.join(unseen)}")
    return int(bool(failed or unseen))


def report_bugs() -> int:
    """Plant each bug until a seed finds it, and print the table. Returns 1 if no seed finds one of the bugs."""
    print(
        f"| Guard switched off in the pure machine | Rule | First seed "
        f"| Share of {SEEDS_FOR_SHARE} seeds | Rule reported as broken |"
    )
    print("|---|---|---|---|---|")
    missed = 0
    for name, bug in PURE_BUGS.items():
        share = sum(bool(bug.run(seed).noticed) for seed in range(SEEDS_FOR_SHARE)) / SEEDS_FOR_SHARE
        first = first_noticed(bug)
        missed += first is None
        rule = "**nothing**" if first is None else bug.run(first).noticed[0].rule
        print(f"| {name} | {bug.rule} | {'none' if first is None else first} | {share:.0%} | {rule} |", flush=True)
    return int(bool(missed))


def first_noticed(bug: PureBug) -> int | None:
    """Return the first seed that finds a planted bug, or None."""
    return next((seed for seed in range(MOST_SEEDS) if bug.run(seed).noticed), None)


def main(argv: list[str]) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pure", action="store_true", required=True)
    parser.add_argument("--seeds", default="0:1000")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bug", choices=sorted(PURE_BUGS))
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.bugs:
        return report_bugs()
    first, _, last = options.seeds.partition(":")
    seeds = [options.seed] if options.seed is not None else range(int(first), int(last or int(first) + 1))
    part, _, parts = (options.part or "0/1").partition("/")
    if options.jobs > 1 and options.part is None:
        return report_seeds(in_processes(options.jobs, argv), options.bug)
    batches = run_seeds(seeds[int(part) :: int(parts)], options.bug, keep_trace=options.verbose)
    if options.part is None:
        return report_seeds(batches, options.bug)
    for batch in batches:
        print(json.dumps(batch), flush=True)
    return 0
