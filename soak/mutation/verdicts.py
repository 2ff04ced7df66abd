"""Verdicts of earlier runs, so that a run can be continued and does not judge the same mutant again.

A mutant that a test noticed stays noticed while its module and this test are the same. A survivor is kept while its
module, the tests that it met and their files are the same.
"""

import ast
import hashlib
import json
from collections.abc import Sequence
from functools import cache

from soak.mutation.covering import PLACE
from soak.mutation.mutants import Mutant
from testing.parts import commit, git

FILE = PLACE / "verdicts.jsonl"


class Kept:
    """Verdicts in `.kasoko/mutation/`, one a line. The last one of a mutant counts."""

    def __init__(self) -> None:
        PLACE.mkdir(parents=True, exist_ok=True)
        self._commit = commit()
        lines = FILE.read_text().splitlines() if FILE.exists() else []
        self._by_name = {verdict["mutant"]: verdict for verdict in map(json.loads, lines)}

    def of(self, mutant: Mutant, tests: Sequence[str]) -> str | None:
        """Return the test that noticed this mutant, an empty text if it survived, or None if it must be judged.

        `tests` are those that would judge it now.
        """
        verdict = self._by_name.get(mutant.name)
        if verdict is None or verdict["for"] != self._scope(mutant, verdict["noticed_by"], tests):
            return None
        noticed_by: str = verdict["noticed_by"]
        return noticed_by

    def hint(self, mutant: Mutant) -> str:
        """Return the test that noticed this change in an older version of the module, or an empty text."""
        noticed_by: str = self._by_name.get(mutant.name, {"noticed_by": ""})["noticed_by"]
        return noticed_by if "::" in noticed_by else ""

    def add(self, mutant: Mutant, noticed_by: str, tests: Sequence[str]) -> None:
        """Keep one verdict. Threads may call this at the same time, because each adds one line at the end."""
        scope = self._scope(mutant, noticed_by, tests)
        with FILE.open("a") as file:
            file.write(json.dumps({"mutant": mutant.name, "noticed_by": noticed_by, "for": scope}) + "\n")

    def _scope(self, mutant: Mutant, noticed_by: str, tests: Sequence[str]) -> str:
        if noticed_by:
            judges = _digest_of_test(_version(self._commit, noticed_by.split("::")[0]), noticed_by)
        else:
            met = [f"{test} {_version(self._commit, test.split('::')[0])}" for test in tests]
            judges = hashlib.sha256("\n".join(met).encode()).hexdigest()[:16]
        return f"{_version(self._commit, mutant.path)} {judges}"


@cache
def _version(of: str, path: str) -> str:
    return git("rev-parse", "--verify", "--quiet", f"{of}:{path}")[:16]


@cache
def _digest_of_test(version: str, test: str) -> str:
    """Hash the code of a test in a version of its file. Without such a test, the version itself is the hash."""
    name = test.split("[")[0].split("::")[-1]
    for node in ast.walk(ast.parse(git("show", version) if version else "")):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]
    return version
