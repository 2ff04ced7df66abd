"""Named places where a process may die, compiled into the path so that tests can make it die exactly there.

Nothing happens at them unless a test arms one: in its own process by `arm`, in another by KASOKO_CRASH_AT=<name> or
<name>:<n> (the n-th time it is reached), which kills the process with SIGKILL and is ignored in production.
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
    "question put",
)

_armed: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Say that the process is at this place; a test may have it die here."""
    if _armed is not None:
        _armed(name)


def arm(crash: Callable[[str], None] | None) -> None:
    """Call `crash` with the name of each place reached from now on; None disarms."""
    global _armed
    _armed = crash


def arm_from_environment(production: bool) -> None:
    """Arm what KASOKO_CRASH_AT names, outside production. Raises: ValueError for a name that is none of NAMES."""
    wanted, _, count = os.environ.get("KASOKO_CRASH_AT", "").partition(":")
    if production or not wanted:
        return
    if wanted not in NAMES:
        raise ValueError(f"KASOKO_CRASH_AT must be one of {', '.join(NAMES)}, not {wanted!r}.")
    left = int(count or 1)

    def die_at(name: str) -> None:
        nonlocal left
        left -= name == wanted
        if name == wanted and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    arm(die_at)
