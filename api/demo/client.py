"""The demo's HTTP client. It prints each call as a curl command that the reader can type."""

import http.client
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from api.demo.supervisor import Stack, StackError

JSON_HEADER = "-H 'Content-Type: application/json'"


class Refused(StackError):
    """An HTTP call was answered with an error that the demo does not expect."""


@dataclass
class Client:
    """HTTP client of one base URL. It waits for a web process that is being restarted."""

    base_url: str
    running: Stack
    show: Callable[[Sequence[str]], None]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        who: tuple[str, str] | None = None,
        key: str = "",
        shown: bool = True,
    ) -> Any:
        """Make one call and return its JSON. `who` is the token's shell variable and the token.

        If the connection breaks or the answer is 503, the call is repeated. A repetition that is answered 409 succeeds,
        because an earlier call had arrived.
        Raises: Refused; StackError; supervisor.Interrupted.
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

    def _as_curl(self, method: str, path: str, body: Any, who: tuple[str, str] | None, key: str) -> list[str]:
        """Return the parts of the call's curl command, without --json, which curl 7.81 does not know."""
        parts = ["curl"]
        parts += [f'-H "Authorization: Bearer ${who[0]}"'] if who else []
        parts += [f"-H {shlex.quote(f'Idempotency-Key: {key}')}"] if key else []
        parts += [JSON_HEADER, f"-d {shlex.quote(json.dumps(body))}"] if method == "POST" else []
        return [*parts, shlex.quote(f"{self.base_url}{path}")]
