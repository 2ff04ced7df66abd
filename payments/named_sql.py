"""Loader of the `.sql` files beside their modules.

A file holds statements. Above each statement are a heading `-- name: <name>` and a comment that describes it. Python
adds nothing to a statement except its parameters. A person can therefore run a file of SELECTs without parameters with
`psql -f`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_HEADING = re.compile(r"^-- name: ([a-z0-9_]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """One statement without its closing semicolon. `comment` holds the comment lines below its heading."""

    name: str
    comment: tuple[str, ...]
    sql: str


def read(path: str | Path) -> dict[str, Statement]:
    """Read the statements of a `.sql` file by name, in the order of the file.

    Raises: ValueError, if two statements have the same name.
    """
    _, *parts = _HEADING.split(Path(path).read_text(encoding="utf-8"))
    statements = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        if name in statements:
            raise ValueError(f"{path} has two statements named {name}.")
        lines = text.strip().splitlines()
        first = next(number for number, line in enumerate(lines) if not line.startswith("--"))
        comment = tuple(line.removeprefix("--").strip() for line in lines[:first])
        statements[name] = Statement(name, comment, "\n".join(lines[first:]).rstrip().removesuffix(";"))
    return statements


def beside(module_file: str) -> dict[str, str]:
    """Return the SQL of each statement in the `.sql` file beside a module: `beside(__file__)["undo_costs"]`."""
    return {name: statement.sql for name, statement in read(Path(module_file).with_suffix(".sql")).items()}
