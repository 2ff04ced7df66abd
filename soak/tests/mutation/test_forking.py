"""Forks that judge mutants: replaced functions, time limits, and the tests chosen for a mutant."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from soak.mutation import forking

SOURCE = '''
LIMIT = 3


def is_over(amounts):
    """Return True if an amount is over the limit."""
    return any(amount > LIMIT for amount in amounts)


def counted(by=2):
    def inner(function):
        def wrapped(amount):
            return function(amount) * by

        return wrapped

    return inner


class Wallet:
    @counted()
    def take(amount):
        if amount:
            amount += 1
        return amount
'''


@pytest.fixture
def loaded(tmp_path: Path) -> ModuleType:
    path = tmp_path / "limits.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("limits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(module: ModuleType, before: str, after: str) -> None:
    assert module.__file__ is not None
    path = Path(module.__file__)
    loaded = forking.functions_of(path.parent)[str(path)]
    forking.replace_functions(loaded, path, SOURCE, SOURCE.replace(before, after))


def test_function_that_others_imported_has_the_mutated_code(loaded: ModuleType) -> None:
    imported = loaded.is_over
    assert not imported([3])
    _replace(loaded, "amount > LIMIT", "amount >= LIMIT")
    assert imported([3])


def test_decorated_method_and_its_decorator_have_the_mutated_code(loaded: ModuleType) -> None:
    assert loaded.Wallet.take(1) == 4
    _replace(loaded, "amount += 1", "amount += 2")
    assert loaded.Wallet.take(1) == 6
    _replace(loaded, "function(amount) * by", "function(amount) - by")
    assert loaded.Wallet.take(1) == 0


def test_lines_that_moved_do_not_matter(loaded: ModuleType) -> None:
    _replace(loaded, "        if amount:\n            amount += 1\n", "        pass\n")
    assert loaded.Wallet.take(1) == 2


def test_removed_inner_function_keeps_the_others(loaded: ModuleType) -> None:
    _replace(loaded, "any(amount > LIMIT for amount in amounts)", "True")
    assert loaded.is_over([])
    assert loaded.Wallet.take(1) == 4


def test_function_without_a_counterpart_is_refused(loaded: ModuleType) -> None:
    with pytest.raises(forking.CodeDiffers):
        _replace(loaded, "return function(amount) * by", "return 1")
    with pytest.raises(forking.CodeDiffers):
        forking.replace_functions([], Path("not_loaded.py"), SOURCE, SOURCE)


def test_imported_constant_has_the_mutated_value(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("other")
    vars(other)["LIMIT"] = loaded.LIMIT
    monkeypatch.setitem(sys.modules, "limits", loaded)
    monkeypatch.setitem(sys.modules, "other", other)
    assert loaded.__file__ is not None
    forking.replace_constant(Path(loaded.__file__), SOURCE, SOURCE.replace("LIMIT = 3", "LIMIT = 4"))
    assert vars(other)["LIMIT"] == 4
    assert not loaded.is_over([4])


@pytest.mark.parametrize(
    "source",
    [
        "LIMIT = 3\nDOUBLE = 2 * LIMIT\n",
        "LIMIT = 3\n\n\ndef is_over(amount, limit=LIMIT):\n    return amount > limit\n",
        "class Rules:\n    LIMIT = 3\n",
    ],
)
def test_constant_whose_old_value_is_held_elsewhere_is_refused(
    source: str, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "limits", loaded)
    assert loaded.__file__ is not None
    with pytest.raises(forking.CodeDiffers):
        forking.replace_constant(Path(loaded.__file__), source, source.replace("LIMIT = 3", "LIMIT = 4"))


def test_only_bodies_of_functions_are_replaced() -> None:
    body, constant = SOURCE.index("amount > LIMIT"), SOURCE.index("3")
    assert forking.is_in_function(SOURCE, body, body + 5)
    assert not forking.is_in_function(SOURCE, constant, constant + 1)


def test_endless_fork_is_ended_at_its_limit() -> None:
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    assert forking._status(child, 0.2) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_fork_that_ends_gives_its_status() -> None:
    child = os.fork()
    if child == 0:
        os._exit(3)
    assert forking._status(child, 60) == 3
