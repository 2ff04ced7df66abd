"""Pytest plugin that judges many mutants in one session: each in a fork that already holds all modules and tests.

`soak.mutation` starts pytest with this plugin in a checkout, and sends one `Question` after the other. A fork replaces
the code of the mutated module's functions, or the value of its constant. Then it runs the tests, and tells the first
that fails. Each fork gets a new copy of a database that was migrated once. So a mutant costs the seconds of its tests,
without any start-up.
"""

import ast
import contextlib
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis
import pytest
import redis
from django.conf import settings
from django.db import connection
from django.db.backends.base.creation import BaseDatabaseCreation
from pytest_django.plugin import blocking_manager_key

# The descriptor of the connection to `soak.mutation`.
CHANNEL = "KASOKO_MUTATION_CHANNEL"
NOT_IN_TIME = "the tests did not end"


@dataclass(frozen=True)
class Question:
    """A mutated module, its tests in the order of their run, and the limits of the run.

    `seconds` are those of the clock. `cpu_seconds` end a mutant that never stops, on a busy machine too.
    """

    path: str
    source: str
    mutated: str
    in_function: bool
    tests: list[str]
    seconds: float
    cpu_seconds: int


class CodeDiffers(ValueError):
    """The functions and constants of a mutant cannot take the place of those of the module."""


def functions_of(root: Path) -> dict[str, list[FunctionType]]:
    """Return all functions of the loaded modules below a directory, by the path of their file."""
    found: dict[str, list[FunctionType]] = defaultdict(list)
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(root)):
            found[one.__code__.co_filename].append(one)
    return found


def replace_functions(loaded: Sequence[FunctionType], path: Path, source: str, mutated: str) -> None:
    """Give every function of a loaded module the code that it has in the mutated source.

    Raises: CodeDiffers if a loaded function has no counterpart, or if the module is not loaded.
    """
    pairs = _pairs(compile(source, str(path), "exec"), compile(mutated, str(path), "exec"))
    placed = {(old.co_qualname, old.co_firstlineno): new for old, new in pairs}
    if not loaded:
        raise CodeDiffers(str(path))
    for function in loaded:
        try:
            function.__code__ = placed[function.__code__.co_qualname, function.__code__.co_firstlineno]
        except (KeyError, ValueError) as error:
            raise CodeDiffers(f"{path}: {function.__code__.co_qualname}") from error


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Yield each function of the old code with its counterpart, unless the change took an inner function away."""
    yield old, new
    inner_old, inner_new = ([one for one in code.co_consts if isinstance(one, CodeType)] for code in (old, new))
    if [one.co_name for one in inner_old] == [one.co_name for one in inner_new]:
        for pair in zip(inner_old, inner_new, strict=True):
            yield from _pairs(*pair)


def replace_constant(path: Path, source: str, mutated: str) -> None:
    """Give a loaded module the constant that its mutated source assigns, and every module that imported it.

    Raises: CodeDiffers if the change is not in one constant, or if another part of a module may hold its old value.
    """
    statements, changed = ast.parse(source).body, ast.parse(mutated).body
    places = [n for n, pair in enumerate(zip(statements, changed, strict=True)) if len(set(map(ast.dump, pair))) == 2]
    module = next((one for one in list(sys.modules.values()) if getattr(one, "__file__", None) == str(path)), None)
    if module is None or len(places) != 1:
        raise CodeDiffers(str(path))
    old, new = statements[places[0]], changed[places[0]]
    if not isinstance(old, ast.Assign) or not isinstance(new, ast.Assign) or not isinstance(old.targets[0], ast.Name):
        raise CodeDiffers(str(path))
    name = old.targets[0].id
    if any(name in _names_at_import(statement) for statement in statements[places[0] + 1 :]):
        raise CodeDiffers(f"{path}: {name}")
    before = vars(module)[name]
    exec(compile(ast.Module([new], []), str(path), "exec"), vars(module))  # noqa: S102 - our own source
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is before:
            setattr(other, name, vars(module)[name])


def _names_at_import(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module reads when it is loaded: not those in the bodies of functions."""
    waiting: list[ast.AST] = [statement]
    names = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            waiting += [*node.decorator_list, node.args]
        else:
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Name):
            names.add(node.id)
    return names


def is_in_function(source: str, start: int, end: int) -> bool:
    """Return True if the text from `start` to `end` belongs to the body of a function."""
    first, last = source.count("\n", 0, start) + 1, source.count("\n", 0, end) + 1
    return any(
        function.body[0].lineno <= first and last <= (function.end_lineno or 0)
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
    )


def start(place: Path, suite: Sequence[str]) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Start a session in a checkout, and return its process and the connection for questions.

    Raises: RuntimeError with the end of its output if it cannot start.
    """
    ours, theirs = socket.socketpair()
    output = place / ".kasoko" / "mutation.log"
    output.parent.mkdir(mode=0o700, exist_ok=True)
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "--tb=native", "-p", "no:cacheprovider", "-p", __name__, *suite],
            cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | {CHANNEL: str(theirs.fileno())}, pass_fds=[theirs.fileno()],
        )  # fmt: skip
    theirs.close()
    channel = Connection(ours.detach())
    try:
        channel.recv()
    except EOFError:
        raise RuntimeError(f"The session did not start:\n{output.read_text()[-3000:]}") from None
    return process, channel


# --- the session -----------------------------------------------------------------------------------------------------


def pytest_configure() -> None:
    """Look for no smaller example of a failure, because the first one already says that a test noticed the mutant."""
    hypothesis.settings.register_profile("mutation", phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate))
    hypothesis.settings.load_profile("mutation")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Answer each question instead of running the tests. An empty answer means that all tests passed."""
    channel = Connection(int(os.environ[CHANNEL]))
    judge = _Judge(session, _migrated_once(session), functions_of(session.config.rootpath))
    # Collections in forks would copy the memory of all modules.
    gc.freeze()
    channel.send("ready")
    while (question := channel.recv()) is not None:
        channel.send(judge.answer(question))
    with session.config.stash[blocking_manager_key].unblock():
        _statement(f'DROP DATABASE "{judge.template}" WITH (FORCE)')
    return True


@dataclass(frozen=True)
class _Judge:
    session: pytest.Session
    template: str
    functions: dict[str, list[FunctionType]]

    def answer(self, question: Question) -> str:
        """Run the tests of a question in a fork, and return the first failure, or how the fork ended."""
        notice = Path(self.session.config.rootpath, ".kasoko", "mutation-notice")
        notice.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()
                notice.write_text(self._first_failure(question))
                status = 0
            finally:
                os._exit(status)
        ended = _status(child, question.seconds)
        if ended is None:
            return NOT_IN_TIME
        return notice.read_text() if ended == 0 else f"the tests ended with {ended}"

    def _first_failure(self, question: Question) -> str:
        path = Path(self.session.config.rootpath, question.path)
        try:
            if question.in_function:
                replace_functions(self.functions.get(str(path), []), path, question.source, question.mutated)
            else:
                replace_constant(path, question.source, question.mutated)
        except CodeDiffers:
            return CodeDiffers.__name__
        resource.setrlimit(resource.RLIMIT_CPU, (question.cpu_seconds, question.cpu_seconds))
        _copy_for_each_run(self.template)
        for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"):
            with redis.Redis.from_url(os.environ[name]) as client:
                client.flushdb()
        failed: list[str] = []

        class Watch:
            def pytest_runtest_logreport(self, report: Any) -> None:
                if report.failed:
                    failed.append(report.nodeid)

        self.session.config.pluginmanager.register(Watch())
        items = self._items()
        chosen = list(dict.fromkeys(item for test in question.tests for item in items.get(test, [])))
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if failed:
                return failed[0]
        return ""

    def _items(self) -> dict[str, list[pytest.Item]]:
        items: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in self.session.items:
            # A test written since the measurement is named without its class and parameters.
            name = f"{item.nodeid.split('::')[0]}::{getattr(item, 'originalname', item.name)}"
            for one in {item.nodeid, name}:
                items[one].append(item)
        return items


def _status(child: int, seconds: float) -> int | None:
    """Wait for a fork, end all its processes, and return its exit status, or None if it took too long."""
    deadline = time.monotonic() + seconds
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):  # The fork was the only process.
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


# --- databases -------------------------------------------------------------------------------------------------------


def _migrated_once(session: pytest.Session) -> str:
    """Make a test database by its migrations, and return its name. Only copies of it are used."""
    child = os.fork()
    template = f"kept_{connection.settings_dict['NAME']}"
    if child == 0:
        status = 1
        try:
            with session.config.stash[blocking_manager_key].unblock():
                _statement(f'DROP DATABASE IF EXISTS "{template}" WITH (FORCE)')
                name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
                connection.close()
                _statement(f'ALTER DATABASE "{name}" RENAME TO "{template}"')
            status = 0
        finally:
            os._exit(status)
    if _status(child, 600) != 0:
        raise RuntimeError("No test database can be made.")
    return template


def _copy_for_each_run(template: str) -> None:
    def copied(self: Any, *_: object, **__: object) -> str:
        name: str = self._get_test_db_name()
        self.connection.close()
        _statement(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        _statement(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        settings.DATABASES[self.connection.alias]["NAME"] = name
        self.connection.settings_dict["NAME"] = name
        return name

    BaseDatabaseCreation.create_test_db = copied  # type: ignore[method-assign]


def _statement(sql: str) -> None:
    creation: Any = connection.creation
    with creation._nodb_cursor() as cursor:
        cursor.execute(sql)
