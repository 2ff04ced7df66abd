"""`python -m soak.simulation --pure`: the pure machine's seeds, one of them replayed, or its planted bugs."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from soak.simulation import pure
from soak.simulation.processes import in_processes
from soak.simulation.provider import RATES
from soak.simulation.pure_bugs import PURE_BUGS

MOST_SEEDS = 1_000
SHARE_OF = 200
BATCH = 100
SAY_EVERY = 10_000
# From so many seeds on, each fault must have struck.
ENOUGH = 1_000


def run_seeds(seeds: Iterable[int], bug: str | None, *, keep_trace: bool = False) -> Iterator[dict[str, Any]]:
    """Run each seed, and say what a batch of them came to, as JSON can carry it. `trace` sums their trace hashes up."""
    stats: Counter[str] = Counter()
    count, trace_hash = 0, 0
    failed: list[dict[str, Any]] = []
    lines: list[str] = []
    for seed in seeds:
        outcome = PURE_BUGS[bug].run(seed, keep_trace=keep_trace) if bug else pure.run(seed, keep_trace=keep_trace)
        count, trace_hash = count + 1, trace_hash ^ int(outcome.trace_hash, 16)
        stats.update(outcome.stats)
        lines += outcome.trace
        if outcome.violations:
            failed.append({"seed": seed, "violations": [str(violation) for violation in outcome.violations]})
        if count == BATCH:
            yield {"seeds": count, "stats": stats, "failed": failed, "trace": f"{trace_hash:064x}", "lines": lines}
            stats, count, trace_hash, failed, lines = Counter(), 0, 0, [], []
    yield {"seeds": count, "stats": stats, "failed": failed, "trace": f"{trace_hash:064x}", "lines": lines}


def report_seeds(found: Iterable[dict[str, Any]], bug: str | None) -> int:
    """Print what the seeds came to; 1 when one of them found something wrong."""
    began = time.monotonic()
    stats: Counter[str] = Counter()
    seeds = failed = trace_hash = 0
    for batch in found:
        seeds += batch["seeds"]
        stats.update(batch["stats"])
        trace_hash ^= int(batch["trace"], 16)
        if batch["lines"]:
            print(*batch["lines"], sep="\n")
        for each in batch["failed"]:
            failed += 1
            print(f"seed {each['seed']} found something wrong:", *each["violations"][:5], sep="\n    ")
            planted = f' --bug "{bug}"' if bug else ""
            print(f"    replay: python -m soak.simulation --pure --seed {each['seed']}{planted} -v", flush=True)
        if batch["seeds"] and seeds % SAY_EVERY < batch["seeds"]:
            print(f"{seeds:,} seeds, {failed} with something wrong", flush=True)
    seconds = time.monotonic() - began
    unseen = sorted(fault for fault in {*pure.WORLD_RATES, *RATES} if not stats[fault])
    print(f"{seeds} seeds in {seconds:.0f} s, {stats['steps']} steps, {stats['COMPLETED']} payouts completed", end=", ")
    print(f"of them {stats['to the wallet at last']} to the wallet at last, trace {trace_hash:064x}"[:-48], end=", ")
    print(f"{failed} seeds found something wrong")
    if seeds < ENOUGH or bug:
        return int(bool(failed))
    if unseen:
        print(f"Faults that never struck: {', '.join(unseen)}")
    return int(bool(failed or unseen))


def report_bugs() -> int:
    """Switch each guard off until a seed notices, and print the table; 1 when one of them got through."""
    print(f"| Guard of the pure machine switched off | Rule | First seed | Of {SHARE_OF} | Caught by |")
    print("|---|---|---|---|---|")
    missed = 0
    for name, bug in PURE_BUGS.items():
        caught = [seed for seed in range(SHARE_OF) if bug.run(seed).violations]
        first = caught[0] if caught else next((s for s in range(SHARE_OF, MOST_SEEDS) if bug.run(s).violations), None)
        missed += first is None
        rule = "**nothing**" if first is None else bug.run(first).violations[0].rule
        share = f"{len(caught) / SHARE_OF:.0%}"
        print(f"| {name} | {bug.rule} | {'none' if first is None else first} | {share} | {rule} |", flush=True)
    return int(bool(missed))


def main(argv: list[str]) -> int:
    """Parse the command line and do what it says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pure", action="store_true", required=True)
    parser.add_argument("--seeds", default="0:1000")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bug", choices=sorted(PURE_BUGS))
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.bugs:
        return report_bugs()
    first, _, last = given.seeds.partition(":")
    seeds = [given.seed] if given.seed is not None else range(int(first), int(last or int(first) + 1))
    part, _, parts = (given.part or "0/1").partition("/")
    if given.jobs > 1 and given.part is None:
        return report_seeds(in_processes(given.jobs, argv), given.bug)
    found = run_seeds(seeds[int(part) :: int(parts)], given.bug, keep_trace=given.verbose)
    if given.part is None:
        return report_seeds(found, given.bug)
    for batch in found:
        print(json.dumps(batch), flush=True)
    return 0
