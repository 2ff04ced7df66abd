"""Documents: every link, path and command in them exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.name not in ("bench.md", "soak.md")
]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
PATH = re.compile(r"`((?:api|users|markets|payments|testing|bench|soak|docs)/[\w./-]*)`")
COMMAND = re.compile(r"manage\.py (\w+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_of_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [target for target, _ in LINK.findall(text) if not target.startswith(("http://", "https://", "mailto:"))]
    missing = [target for target in links if not (document.parent / target).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert missing == []


def test_every_command_that_a_document_names_is_known() -> None:
    named = {command for document in DOCUMENTS for command in COMMAND.findall(document.read_text(encoding="utf-8"))}
    known = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "help", "--commands"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert named - set(known) == set()
    assert len(named) > 5
