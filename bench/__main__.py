"""Command line of the bench, `python -m bench`, which writes docs/bench.md.

The bench compares our costs with floors. Each part runs in its own process, on an empty database of a PostgreSQL that
is as durable as in production. BENCH=full also measures the long parts, with a million bets. --only NAME runs one part
and does not write docs/. With --save as well, the part's new figures replace its old figures in docs/bench.json, and
the page is written again. On another machine only the ratios are valid. The exit status is 1 if a part ended without
figures, or if a figure missed the limit that it must reach.
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
SAVED = DOCS / "bench.json"
PAGE = DOCS / "bench.md"
# The part that runs on a PostgreSQL with its own default settings.
ON_DEFAULTS = "settle_defaults"


def parts(*, full: bool) -> tuple[Part, ...]:
    """Return the parts in the order of their runs. Each part reports its rows by `bench.figures.hand_over`."""
    more = ("--full",) if full else ()
    return (
        Part("settle", ("bench.settle", *more), 120 if full else 30),
        Part(ON_DEFAULTS, ("bench.settle_defaults", *more), 30 if full else 15),
        Part("send", ("bench.send", *more), 25 if full else 15),
        Part("callbacks", ("bench.callbacks", *more), 15),
        Part("bets", ("bench.bets", *more), 10),
        Part("burst", ("bench.burst", *more), 15),
        Part("resolve_to_paid", ("bench.resolve_to_paid", *more), 10),
        Part("outage", ("bench.outage", *more), 10),
        Part("console", ("bench.console", *more), 40 if full else 15),
    )


@dataclass(frozen=True)
class PartFigures:
    """A part's figures, with the time, commit and machine of their measurement."""

    part: str
    measured: Measured
    at: str
    commit: str
    on: str
    ended: str


def measure(part: Part, environment: dict[str, str]) -> PartFigures:
    """Run one part on its own database, and return its figures."""
    on = f"{machine()}; {servers.conditions(environment)}"
    own = servers.fresh_database(environment, part.name)
    try:
        ended = run(part, own)
    finally:
        servers.drop_database(environment, part.name)
    at = datetime.now(ZoneInfo("Africa/Nairobi"))
    return PartFigures(part.name, _figures(part, ended), f"{at:%d %B %Y at %H:%M}", commit(), on, ended.how)


def _figures(part: Part, ended: Ended) -> Measured:
    for line in reversed(ended.lines):
        if measured := handed_over(line):
            return measured
    words = " / ".join(ended.lines[-3:])
    return Measured(rows=[Row("", f"{part.name} ended without figures", ended.how, how_far=words, met=False)])


def saved() -> dict[str, PartFigures]:
    """Return the figures in docs/bench.json, by part."""
    if not SAVED.exists():
        return {}
    return {part["part"]: _read(part) for part in json.loads(SAVED.read_text())}


def _read(part: dict[str, Any]) -> PartFigures:
    measured = handed_over(HANDED_OVER + json.dumps(part["measured"]))
    return PartFigures(**part | {"measured": measured or Measured()})


def main(arguments: list[str]) -> int:
    """Run the parts, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    full = os.environ.get("BENCH") == "full"
    order = [part.name for part in parts(full=full)]
    parser.add_argument("--only", choices=order, help="run this part only")
    parser.add_argument("--save", action="store_true", help="with --only: write docs/ too")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    measured: dict[str, PartFigures] = {}
    for tuned in (True, False):
        chosen = [part for part in parts(full=full) if options.only in (None, part.name)]
        chosen = [part for part in chosen if (part.name != ON_DEFAULTS) == tuned]
        if chosen:
            with servers.started(tuned=tuned) as environment:
                measured |= {part.name: measure(part, environment) for part in chosen}
    rows = [row for part in measured.values() for row in part.measured.rows]
    for row in rows:
        say(report.terminal_line(row))
    if options.only is None or options.save:
        together = (saved() if options.only else {}) | measured
        ordered = [together[name] for name in order if name in together]
        SAVED.write_text(json.dumps([asdict(part) for part in ordered], indent=1) + "\n")
        report.write(ordered, DOCS)
        say(f"Written to {PAGE.relative_to(ROOT)} after {(time.monotonic() - began) / 60:.0f} minutes.")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
