"""The command line of the embedded servers."""

from __future__ import annotations

import sys
from pathlib import Path

from . import control, keeper
from .state import Profile

PROFILES: tuple[Profile, Profile] = ("durable", "fast")


def main(arguments: list[str], *, default_checkout: Path, usage: str) -> int:
    """Run one command and return the exit status.

    `status`, `stop` and `erase` take a checkout as an optional second argument. To start the keeper,
    the arguments are a state directory and a profile.
    """
    base_dir = Path(arguments[1]) if len(arguments) > 1 else default_checkout
    match arguments:
        case ["status", *_]:
            print(*(control.describe(base_dir, profile) for profile in PROFILES), sep="\n")  # noqa: T201 - a command
        case ["stop", *_]:
            for profile in PROFILES:
                state = "stopped" if control.stop(base_dir, profile) else "not running"
                print(f"{profile}: {state}")  # noqa: T201 - a command
        case ["erase", *_]:
            for profile in reversed(PROFILES):
                control.erase(base_dir, profile)
        case [state_path, "durable" | "fast" as profile_name]:
            keeper.start(Path(state_path), "fast" if profile_name == "fast" else "durable")
        case _:
            sys.stderr.write(f"{usage}\n")
            return 2
    return 0
