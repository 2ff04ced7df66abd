"""Parser of request bodies.

The parser is apart from `errors`: REST framework loads it while it defines its views, before `errors` can be imported.
"""

from typing import Any

from rest_framework import exceptions
from rest_framework.parsers import BaseParser

from payments.mpesa import strict_json


class StrictJSONParser(BaseParser):
    """Parser of strict JSON objects (RFC 8259).

    Refuses encodings other than UTF-8, repeated keys, deep nesting, NaN, NUL and lone surrogates.
    """

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> dict[str, Any]:
        try:
            return strict_json.read_object(stream.read(), max_bytes=64 * 1024)
        except strict_json.Unreadable as error:
            raise exceptions.ParseError(f"The body must be a JSON object: {error}. Nothing was done.") from error
