"""Serializer of Django's cache in Redis: signed JSON.

Django's own serializer is pickle, and whoever writes to Redis could then run code in our processes. A value that this
installation did not sign reads as missing, so a page computes it again.
"""

import json
from typing import Any

from django.core import signing

SALT = "kasoko.cache"
# The largest preview has a few thousand bytes. A value above this is not ours, and checking it would take long.
MOST_BYTES = 4 * 1024 * 1024


class SignedJson:
    """The interface that Django's Redis cache expects: `dumps` and `loads`. Values are JSON's own types."""

    def dumps(self, value: Any) -> bytes:
        """Return the signed JSON of a value. Raises: TypeError if it is not of JSON's types."""
        text = json.dumps(value, separators=(",", ":"))
        return signing.Signer(salt=SALT).sign(text).encode()

    def loads(self, stored: bytes) -> Any:
        """Return the value, or None if we did not sign it."""
        if len(stored) > MOST_BYTES:
            return None
        try:
            return json.loads(signing.Signer(salt=SALT).unsign(stored.decode()))
        except (signing.BadSignature, ValueError):
            return None
