"""Failpoints: named places in the code where a test can kill the process.

A failpoint does nothing unless it is armed. A test arms its own process with `arm`. For another process the test sets
KASOKO_CRASH_AT=<name> or KASOKO_CRASH_AT=<name>:<n>. That process is then killed with SIGKILL at the n-th hit.
Production ignores the variable.
"""

import os
import signal
from collections.abc import Callable

NAMES = (
    "bet before commit",
    "bet after commit",
    "settlement step before commit",
    "settlement step after commit",
    "undo step before commit",
    "undo step after commit",
    "claim before commit",
    "claim after commit",
    "request written",
    "answer read",
    "record after commit",
    "callback before store",
    "callback after store",
    "apply before evidence",
    "apply before commit",
    "sweep between rows",
    "question after commit",
    "status query posted",
)

_action: Callable[[str], None] | None = None


def hit(name: str) -> None:
    """Call the armed action with the failpoint's name. Do nothing if no action is armed."""
    if _action is not None:
        _action(name)


def arm(action: Callable[[str], None] | None) -> None:
    """Set the action that every later hit calls with the failpoint's name. None disarms all failpoints."""
    global _action
    _action = action


def arm_from_environment(production: bool) -> None:
    """Arm the failpoint that KASOKO_CRASH_AT names, unless this is production.

    Raises: ValueError, if the name is not one of NAMES.
    """
    name, _, count = os.environ.get("KASOKO_CRASH_AT", "").partition(":")
    if production or not name:
        return
    if name not in NAMES:
        raise ValueError(f"KASOKO_CRASH_AT must be one of {', '.join(NAMES)}, not {name!r}.")
    hits_left = int(count or 1)

    def kill_at(hit_name: str) -> None:
        nonlocal hits_left
        hits_left -= hit_name == name
        if hit_name == name and hits_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    arm(kill_at)
