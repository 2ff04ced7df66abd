"""The progress of a settlement: a bar on a terminal, otherwise a line for each change."""

from contextlib import nullcontext
from typing import Any

from django.db.models import QuerySet
from rich.progress import BarColumn, Progress, TextColumn

from api.demo.client import Client
from api.demo.screen import INDENT, Screen
from payments.models import Transaction

PAID_WITHIN_SECONDS = 150.0
WIDEST_BAR, NARROWEST_BAR = 24, 6
# For the words beside the bar: "10 of 12 payments completed, 1 pending, 1 in doubt, 0 failed".
WORDS_WIDTH = 64
UNDER_WAY = ("pending", "processing", "in_doubt")


def follow(
    client: Client,
    screen: Screen,
    market_id: int,
    *,
    who: tuple[str, str],
    payouts: QuerySet[Transaction, Transaction],
    noun: str,
) -> dict[str, Any]:
    """Follow a settlement until none of its payouts is under way, and return its last status.

    `payouts` are the payouts that the bar counts. All other payouts of the market must be completed already.
    `noun` is the word for them in the output. Raises: StackError, with the worker's log, after PAID_WITHIN_SECONDS.
    """
    path = f"/api/markets/admin/settlement-status/{market_id}/"
    statuses = [client.call("GET", path, who=who)]
    bar_width = min(WIDEST_BAR, max(NARROWEST_BAR, screen.console.width - WORDS_WIDTH))
    columns = (TextColumn(INDENT.rstrip()), BarColumn(bar_width=bar_width), TextColumn("{task.description}"))
    terminal = screen.console.is_terminal
    with Progress(*columns, console=screen.console, auto_refresh=False) if terminal else nullcontext() as bar:
        task = bar.add_task("", total=1) if bar else None
        printed = ""

        def finished() -> bool:
            nonlocal printed
            # The payouts are counted before the status is read, so the status includes all of them.
            total = payouts.count()
            status = client.call("GET", path, who=who, shown=False)
            statuses.append(status)
            counts = status["payout_count"]
            completed = total - sum(counts[state] for state in (*UNDER_WAY, "failed")) if total else 0
            words = (
                f"{completed} of {total} {noun}, {counts['pending'] + counts['processing']} pending,"
                f" {counts['in_doubt']} in doubt, {counts['failed']} failed"
            )
            if not total:
                words = "The pool is being divided."
            if bar is not None and task is not None:
                bar.update(task, total=total or 1, completed=completed, description=words, refresh=True)
            elif words != printed:
                screen.say(words)
            printed = words
            return bool(total) and status["status"] in {"SETTLED", "VOID"} and not any(counts[s] for s in UNDER_WAY)

        # If nothing moves, the worker's log gives the reason.
        worker = next(program for program in client.running.programs if program.name == "worker")
        client.running.until(
            finished, what=f"the payouts of market {market_id}", seconds=PAID_WITHIN_SECONDS, of=worker
        )
    return statuses[-1]
