"""Test of the bench of the console. Its figures depend on the machine, so they are not judged here."""

import subprocess
import sys

import pytest

from testing.parts import ROOT


@pytest.mark.long
def test_every_page_of_the_console_is_visited() -> None:
    # when
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "console"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    # then
    assert "ended without figures" not in ended.stdout, ended.stdout[-3000:]
    assert "broken invariants" in ended.stdout
