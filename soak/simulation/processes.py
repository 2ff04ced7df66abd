"""The same command in several processes, each with its part of the work."""

import json
import subprocess
import sys
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any


def in_processes(jobs: int, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """The same command in `jobs` processes, each with its part of the work; what they found, as they find it."""
    command = [sys.executable, "-m", "soak.simulation", *arguments, "--part"]
    running = [subprocess.Popen([*command, f"{job}/{jobs}"], stdout=subprocess.PIPE, text=True) for job in range(jobs)]
    lines: SimpleQueue[str] = SimpleQueue()

    def read(part: subprocess.Popen[str]) -> None:
        for line in part.stdout or ():
            lines.put(line)

    # All of them are read at once: one whose pipe is full would wait for the others to end.
    readers = [Thread(target=read, args=[part]) for part in running]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers) or not lines.empty():
        try:
            yield json.loads(lines.get(timeout=0.2))
        except Empty:
            continue
    if any(each.wait() for each in running):
        raise SystemExit(2)
