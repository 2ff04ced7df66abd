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
    """An HTTP call was answered with an error. `sentence` is the message of the answer."""

    def __init__(self, call: str, status: int, raw: bytes) -> None:
        text = raw.decode(errors="replace")
        super().__init__(f"{call} was answered {status}: {text[:500]}")
        try:
            self.sentence = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            self.sentence = text[:500]


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
        code: str = "",
        shown: bool = True,
    ) -> Any:
        """Make one call and return its JSON. `who` is the token's shell variable and the token.

        `key` is the call's Idempotency-Key, and `code` a code of the caller's authenticator app.

        If the connection breaks or the answer is 503, the call is repeated. A repetition that is answered 409 succeeds,
        because an earlier call had arrived.
        Raises: Refused; StackError; supervisor.Interrupted.
        """
        if shown:
            self.show(self._as_curl(method, path, body, who, _extra(key, code)))
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {who[1]}"} if who else {}
        headers |= _extra(key, code)
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
            raise Refused(f"{method} {path}", status, raw)
        return json.loads(raw)

    def _as_curl(
        self, method: str, path: str, body: Any, who: tuple[str, str] | None, extra: dict[str, str]
    ) -> list[str]:
        """Return the parts of the call's curl command, without --json, which curl 7.81 does not know."""
        parts = ["curl"]
        parts += [f'-H "Authorization: Bearer ${who[0]}"'] if who else []
        parts += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in extra.items()]
        parts += [JSON_HEADER, f"-d {shlex.quote(json.dumps(body))}"] if method == "POST" else []
        return [*parts, shlex.quote(f"{self.base_url}{path}")]


def _extra(key: str, code: str) -> dict[str, str]:
    """Return the headers that only some calls have."""
    return {name: value for name, value in (("Idempotency-Key", key), ("X-Authenticator-Code", code)) if value}
