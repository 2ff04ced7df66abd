"""The demo's output: headings, wrapped sentences, commands, tables and one format for money."""

import textwrap
from collections.abc import Sequence
from decimal import Decimal

from rich import box
from rich.console import Console
from rich.table import Table

INDENT = "  "
# Keeps "KES" and its amount on one line. It becomes an ordinary space before printing.
_UNBREAKABLE_SPACE = "\N{NO-BREAK SPACE}"


def money(amount: Decimal | str, places: int = 2) -> str:
    """Return an amount in shillings as the demo prints it: KES 1,234.50."""
    return f"KES{_UNBREAKABLE_SPACE}{Decimal(amount):,.{places}f}"


class Screen:
    """A terminal, or a file without colours. Words are never broken."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def step(self, heading: str) -> None:
        """Print the heading of a chapter."""
        self._print(f"\n{heading}", "bold")

    def say(self, sentence: str, style: str = "") -> None:
        """Print a sentence, wrapped and indented."""
        self._print(self._wrap(sentence, INDENT), style)

    def conclude(self, sentence: str, style: str) -> None:
        """Print the last sentence, after an empty line."""
        self._print(f"\n{self._wrap(sentence)}", style)

    def command(self, lines: Sequence[str]) -> None:
        """Print a command in a form that can be pasted into a shell. A long command is broken between its parts."""
        self._print(f"{INDENT}$ " + as_shell_lines(lines, self.console.width - 4).replace("\n", f"\n{INDENT}  "), "dim")

    def plain(self, text: str = "") -> None:
        """Print lines exactly as they are, so that a reader can copy them."""
        self._print(text, "")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()) -> None:
        """Print a table. If the terminal is too narrow for it, print each row as a sentence instead."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(_printable, row))
        if total:
            table.add_section()
            table.add_row(*map(_printable, total), style="bold")
        if len(INDENT) + self.console.measure(table).maximum <= self.console.width:
            self.console.print(table)
            self.console.print()
            return
        for row in (*rows, *([total] if total else [])):
            values = ", ".join(f"{heading} {value}" for heading, value in zip(headings[1:], row[1:], strict=True))
            self.say(f"{row[0]}: {values}")

    def _wrap(self, text: str, indent: str = "") -> str:
        return textwrap.fill(
            text,
            max(self.console.width - 1, 20),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _print(self, text: str, style: str) -> None:
        # With soft_wrap, rich does not break lines, so a URL or a hash can be copied whole.
        self.console.print(_printable(text), style=style, markup=False, soft_wrap=True)


def as_shell_lines(parts: Sequence[str], width: int) -> str:
    """Join the parts of a shell command, with a backslash at the end of each line that is full."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) + 2 <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}")
    return " \\\n".join(lines)


def _printable(text: str) -> str:
    return text.replace(_UNBREAKABLE_SPACE, " ")
