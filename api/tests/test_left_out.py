"""Without Chromium, the tests that need it are left out, and the run reports this instead of failing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testing import browsing

ROOT = Path(__file__).resolve().parents[2]


def test_run_without_chromium_names_missing_tests_and_the_remedy(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "api/tests/console/test_browser.py"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "KASOKO_CHROMIUM"} | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, ended.stdout + ended.stderr
    assert re.search(r"no tests collected \([1-9]\d* deselected\)", ended.stdout)
    assert "sudo apt-get install chromium" in ended.stdout


def test_chromium_is_found_by_name_or_by_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KASOKO_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browsing.find() is None
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    assert browsing.find() == str(program)
    monkeypatch.setenv("KASOKO_CHROMIUM", "/opt/chromium")
    assert browsing.find() == "/opt/chromium"
