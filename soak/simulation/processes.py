"""Processes that share the work of one command."""

import json
import subprocess
import sys
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any


def in_processes(jobs: int, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Run the command in `jobs` processes, each with its share of the work. Yield each result at once."""
    command = [sys.executable, "-m", "soak.simulation", *arguments, "--part"]
    children = [subprocess.Popen([*command, f"{job}/{jobs}"], stdout=subprocess.PIPE, text=True) for job in range(jobs)]
    lines: SimpleQueue[str] = SimpleQueue()

    def read(child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            lines.put(line)

    # All pipes are read at the same time, because a child waits if its pipe is full.
    readers = [Thread(target=read, args=[child]) for child in children]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers) or not lines.empty():
        try:
            yield json.loads(lines.get(timeout=0.2))
        except Empty:
            continue
    if any(child.wait() for child in children):
        raise SystemExit(2)
