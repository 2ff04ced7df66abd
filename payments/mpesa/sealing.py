"""Sealing of short texts that are kept in Redis: encrypted, and bound to the key that they are stored under."""

import base64
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12


class Seal:
    """Encrypts and opens texts with keys that are derived from a secret, one pair for each `purpose`."""

    def __init__(self, secret: str, *, purpose: str) -> None:
        derived = HKDF(hashes.SHA256(), length=64, salt=None, info=purpose.encode()).derive(secret.encode())
        self._cipher, self._mark_key = AESGCM(derived[:32]), derived[32:]

    def close(self, text: str, *, place: str) -> str:
        """Encrypt a text. Only `open` with the same place returns it."""
        nonce = os.urandom(NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())).decode()

    def open(self, sealed: str, *, place: str) -> str:
        """Return the text, or an empty string if somebody else wrote or moved the sealed text."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], place.encode()).decode()
        except (ValueError, InvalidTag):
            return ""

    def mark(self, text: str) -> str:
        """Return a mark by which two texts are compared, and from which nobody learns the text."""
        return hmac.new(self._mark_key, text.encode(), hashlib.sha256).hexdigest()
