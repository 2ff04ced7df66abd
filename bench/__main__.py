"""`python -m bench [--only NAME]`: ours against floors measured in the same run, written to docs/bench.md.

Each part is a process of its own, on an empty database of a PostgreSQL that is as durable as production's. BENCH=full
also measures what takes long, a million bets above all. --only NAME runs one part and leaves docs/ alone; --save puts
what it found beside what docs/bench.json has of the others, and writes the page anew. Only ratios carry over to another
machine. Exits 1 when a part ended without its figures or a figure missed what it must reach.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from bench import report, servers
from bench.figures import Measured, Row, handed_over
from testing.figures import HANDED_OVER, say
from testing.parts import ROOT, Ended, Part, commit, machine, run

DOCS = ROOT / "docs"
KEPT = DOCS / "bench.json"
PAGE = DOCS / "bench.md"


def parts(*, full: bool) -> tuple[Part, ...]:
    """What is run, in this order; each writes its rows through `bench.figures.hand_over`."""
    more = ("--full",) if full else ()
    return (
        Part("settle", ("bench.settle", *more), 120 if full else 30),
        Part("send", ("bench.send", *more), 25 if full else 15),
        Part("callbacks", ("bench.callbacks", *more), 15),
        Part("bets", ("bench.bets", *more), 10),
        Part("rush", ("bench.rush", *more), 15),
        Part("resolve_to_paid", ("bench.resolve_to_paid", *more), 10),
        Part("console", ("bench.console", *more), 40 if full else 15),
    )


@dataclass(frozen=True)
class Kept:
    """A part's figures with when and on what they were measured."""

    part: str
    measured: Measured
    at: str
    commit: str
    on: str
    ended: str


def measure(part: Part, environment: dict[str, str]) -> Kept:
    """Run one part on a database of its own."""
    on = f"{machine()}; {servers.conditions(environment)}"
    own = servers.fresh_database(environment, part.name)
    try:
        ended = run(part, own)
    finally:
        servers.drop_database(environment, part.name)
    at = datetime.now(ZoneInfo("Africa/Nairobi"))
    return Kept(part.name, _found(part, ended), f"{at:%d %B %Y at %H:%M}", commit(), on, ended.how)


def _found(part: Part, ended: Ended) -> Measured:
    for line in reversed(ended.lines):
        if found := handed_over(line):
            return found
    words = " / ".join(ended.lines[-3:])
    return Measured(rows=[Row("", f"{part.name} ended without its figures", ended.how, how_far=words, met=False)])


def kept() -> dict[str, Kept]:
    """What docs/bench.json has, by part."""
    if not KEPT.exists():
        return {}
    return {each["part"]: _read(each) for each in json.loads(KEPT.read_text())}


def _read(each: dict[str, Any]) -> Kept:
    measured = handed_over(HANDED_OVER + json.dumps(each["measured"]))
    return Kept(**each | {"measured": measured or Measured()})


def main(arguments: list[str]) -> int:
    """Run the parts and write the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    full = os.environ.get("BENCH") == "full"
    order = [part.name for part in parts(full=full)]
    parser.add_argument("--only", choices=order, help="this part alone")
    parser.add_argument("--save", action="store_true", help="with --only: write docs/ all the same")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    found: dict[str, Kept] = {}
    with servers.started() as environment:
        for part in parts(full=full):
            if asked.only in (None, part.name):
                found[part.name] = measure(part, environment)
    rows = [row for each in found.values() for row in each.measured.rows]
    for row in rows:
        say(report.spoken(row))
    if asked.only is None or asked.save:
        together = (kept() if asked.only else {}) | found
        ordered = [together[name] for name in order if name in together]
        KEPT.write_text(json.dumps([asdict(each) for each in ordered], indent=1) + "\n")
        report.write(ordered, DOCS)
        say(f"Written to {PAGE.relative_to(ROOT)} after {(time.monotonic() - began) / 60:.0f} minutes.")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
