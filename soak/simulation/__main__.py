"""`python -m soak.simulation`: run seeds, replay one, or switch each guard off and see which seed notices.

--seeds 0:1000          these seeds; exits 1 when one of them finds something wrong
--seed 17 -v            one seed with its trace
--bug NAME              the same with one guard switched off
--bugs                  each guard in turn until a seed catches it; prints the table kept in docs/soak.md
--jobs 2                in so many processes, each with a scratch database of its own
--conform               the services beside the pure machine, event by event: each seed is one sequence
--pure                  the pure machine in its own world, in memory: with --seeds, --seed -v, --bug, --bugs, --jobs
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from soak.simulation import pure_runs
from soak.simulation.processes import in_processes

if __name__ == "__main__" and "--pure" in sys.argv:  # It needs neither Django nor servers.
    sys.exit(pure_runs.main(sys.argv[1:]))

from testing import services

os.environ["DJANGO_SETTINGS_MODULE"] = "api.settings"
# ruff: noqa: E402 - Django must be set up before anything that defines or uses a model is imported, servers before it.
import django

django.setup()

from soak.simulation import conformance, world
from soak.simulation.bugs import BUGS
from soak.simulation.outcome import Outcome

MOST_SEEDS = 1_000
SHARE_OF = 50
CLEAR_EVERY = 10
# From so many seeds on, each fault must have struck, and no more than this share be left to a person.
ENOUGH = 200
MOST_HELD = 0.01


def with_database(found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Go through `found` with a scratch database that is made before and removed after."""
    with world.scratch_database():
        yield from found


def run_seeds(
    seeds: Iterable[int], bug: str | None, *, keep_trace: bool, live: Callable[..., Outcome] = world.run
) -> Iterator[dict[str, Any]]:
    """Run each seed: what it came to, as JSON can carry it."""
    for number, seed in enumerate(seeds):
        if number % CLEAR_EVERY == 0:
            world.forget_dead_rows()
        outcome = BUGS[bug].run(seed, keep_trace=keep_trace) if bug else live(seed, keep_trace=keep_trace)
        yield {
            "seed": seed,
            "trace_hash": outcome.trace_hash,
            "violations": [str(violation) for violation in outcome.violations],
            "rules": [violation.rule for violation in outcome.violations],
            "stats": dict(outcome.stats),
            "trace": list(outcome.trace),
        }


def run_bugs(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Switch each guard off: the first seed that notices, by which rule, and the share of the first seeds that do."""
    for name in names:
        first: dict[str, Any] | None = None
        caught = 0
        for tried in run_seeds(range(MOST_SEEDS), name, keep_trace=False):
            caught += bool(tried["violations"])
            if first is None and tried["violations"] and not BUGS[name].run(tried["seed"], planted=False).violations:
                first = tried
            if first and tried["seed"] >= SHARE_OF - 1:
                break
        yield {"bug": name, "first": first, "share": caught / SHARE_OF if first and first["seed"] < SHARE_OF else None}


def report_seeds(found: Iterable[dict[str, Any]], bug: str | None, *, verbose: bool, conform: bool = False) -> int:
    """Print what the seeds came to; 1 when one of them found something wrong."""
    began = time.monotonic()
    stats: Counter[str] = Counter()
    failed = []
    seeds = 0
    for each in found:
        seeds += 1
        stats.update(each["stats"])
        if verbose:
            print(*each["trace"], sep="\n")
            print(f"seed {each['seed']}: {each['trace_hash']}")
        if each["violations"]:
            failed.append(each["seed"])
            print(f"seed {each['seed']} found something wrong:", *each["violations"][:5], sep="\n    ")
            planted = f' --bug "{bug}"' if bug else " --conform" if conform else ""
            print(f"    replay: python -m soak.simulation --seed {each['seed']}{planted} -v", flush=True)
        elif seeds % 50 == 0:
            print(f"{seeds} seeds, {len(failed)} with something wrong", flush=True)
    seconds = time.monotonic() - began
    if conform:
        print(
            f"{seeds} sequences in {seconds:.0f} s, {stats['steps']} events, {len(failed)} of them with a disagreement"
        )
        return int(bool(failed))
    payouts = {status: stats[status] for status in world.FINAL}
    total = sum(payouts.values()) or 1
    held = stats["held, lost for too long"] / total
    unseen = sorted({*world.WORLD_RATES, *world.RATES} - {fault for fault, times in stats.items() if times})
    print(f"{seeds} seeds in {seconds:.0f} s, {stats['steps']} steps, payouts {payouts}", end=", ")
    print(f"held as lost {held:.2%}, after a forgery {stats['held after a forgery'] / total:.2%}", end=", ")
    print(f"{len(failed)} seeds found something wrong")
    if seeds < ENOUGH or bug:
        return int(bool(failed))
    if unseen:
        print(f"Faults that never struck: {', '.join(unseen)}")
    if held >= MOST_HELD:
        print(f"More than {MOST_HELD:.0%} of the payouts were left to a person.")
    return int(bool(failed or unseen) or held >= MOST_HELD)


def report_bugs(found: Iterable[dict[str, Any]]) -> int:
    """Print the table of bugs; 1 when one of them got through."""
    print(f"| Guard switched off | Rule | First seed | Of {SHARE_OF} | Caught by |\n|---|---|---|---|---|")
    missed = 0
    for each in found:
        first = each["first"]
        missed += first is None
        share = "" if each["share"] is None else f"{each['share']:.0%}"
        seed, rule = (first["seed"], first["rules"][0]) if first else ("none", "**nothing**")
        print(f"| {each['bug']} | {BUGS[each['bug']].rule} | {seed} | {share} | {rule} |", flush=True)
    return int(bool(missed))


def main(argv: list[str]) -> int:
    """Parse the command line and do what it says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bug", choices=sorted(BUGS))
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--conform", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    first, _, last = given.seeds.partition(":")
    seeds = [given.seed] if given.seed is not None else list(range(int(first), int(last or int(first) + 1)))
    part, _, parts = (given.part or "0/1").partition("/")
    mine = slice(int(part), None, int(parts))

    found: Iterator[dict[str, Any]]
    if given.jobs > 1 and given.part is None:
        found = in_processes(given.jobs, argv)
    elif given.bugs:
        found = with_database(run_bugs(list(BUGS)[mine]))
    else:
        live = conformance.run if given.conform else world.run
        found = with_database(run_seeds(seeds[mine], given.bug, keep_trace=given.verbose, live=live))
    try:
        if given.part is not None:
            for each in found:
                print(json.dumps(each), flush=True)
            return 0
        return (
            report_bugs(found)
            if given.bugs
            else report_seeds(found, given.bug, verbose=given.verbose, conform=given.conform)
        )
    finally:
        services.embedded.leave(services.BASE_DIR, "fast")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
