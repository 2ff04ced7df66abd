"""The demo's HTTP client: what it calls it prints, as a line that the reader could type."""

import http.client
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from api.demo.supervisor import Stack, StackError


class Refused(StackError):
    """An HTTP call was answered with an error that the story does not expect."""


@dataclass
class Client:
    """Calls the web over HTTP and prints each call as a line for curl. A web that is being restarted is waited for."""

    base_url: str
    running: Stack
    show: Callable[[str], None]

    def call(
        self, method: str, path: str, body: Any = None, *, who: tuple[str, str] | None = None, key: str = "",
        shown: bool = True,
    ) -> Any:  # fmt: skip
        """Make one call and return its JSON. `who` is a name for the token in the printed line, and the token.

        A call whose connection broke is made again; a 409 to such a repetition says that the first one arrived.
        Raises: Refused; StackError; stack.Interrupted.
        """
        if shown:
            self.show(self._as_curl(method, path, body, who, key))
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {who[1]}"} if who else {}
        headers |= {"Idempotency-Key": key} if key else {}
        answers: list[tuple[int, bytes]] = []
        tries = 0

        def answered() -> bool:
            nonlocal tries
            tries += 1
            connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=20)
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                answers.append((response.status, response.read()))
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()
            return answers[-1][0] != 503

        self.running.until(answered, what=f"an answer to {method} {path}")
        status, raw = answers[-1]
        if status >= 400 and not (status == 409 and tries > 1):
            raise Refused(f"{method} {path} was answered {status}: {raw.decode(errors='replace')[:500]}")
        return json.loads(raw)

    def _as_curl(self, method: str, path: str, body: Any, who: tuple[str, str] | None, key: str) -> str:
        words = ["curl"]
        words += [f'-H "Authorization: Bearer ${who[0]}"'] if who else []
        words += [f"-H {shlex.quote(f'Idempotency-Key: {key}')}"] if key else []
        words += [f"--json {shlex.quote(json.dumps(body))}"] if method == "POST" else []
        return " ".join([*words, shlex.quote(f"{self.base_url}{path}")])
