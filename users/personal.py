"""Personal texts under a key per member, so that destroying the key erases them everywhere.

Append-only rows keep such a text for ever, and the hashes of the audit trail cover it. So the rows hold the encrypted
text, and its key is made from two secrets: PERSONAL_DATA_KEY, which the database does not know, and a random secret in
`MemberKey`, which only the database knows. Without the second nobody can read the text again; the hashes still agree.
"""

import base64
import os
import re
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import connection, models

ERASED = "(erased)"
NONCE_BYTES, SECRET_BYTES = 12, 32
_SEALED = re.compile(r"sealed:([0-9]{1,18}):([A-Za-z0-9+/]+=*)")


@dataclass(frozen=True)
class Personal:
    """A personal text of one member, such as a phone number, among the values of an audit entry."""

    member_id: int
    text: str


class SealedTextField(models.TextField):
    """A column whose texts may be sealed. It reads them in clear. The writer knows the member, so it seals them."""

    def from_db_value(self, value: str | None, *_: Any) -> str | None:
        return None if value is None else opened(value)


def seal(member_id: int, text: str) -> str:
    """Encrypt a personal text. Without a key, because the member was erased, return ERASED. An empty text stays."""
    if not text:
        return text
    cipher = _cipher(member_id) or _new_cipher(member_id)
    if cipher is None:
        return ERASED
    nonce = os.urandom(NONCE_BYTES)
    encrypted = nonce + cipher.encrypt(nonce, text.encode(), None)
    return f"sealed:{member_id}:{base64.b64encode(encrypted).decode()}"


def opened(stored: str) -> str:
    """Return a text that `seal` made, in clear. Return ERASED if its key is gone, and any other text unchanged."""
    match = _SEALED.fullmatch(stored)
    if match is None:
        return stored
    cipher = _cipher(int(match[1]))
    if cipher is None:
        return ERASED
    try:
        encrypted = base64.b64decode(match[2])
        return cipher.decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], None).decode()
    except (InvalidTag, ValueError):
        return "(unreadable: PERSONAL_DATA_KEY is not the one that it was written with)"


def destroy(member_id: int) -> bool:
    """Destroy a member's key, for ever. Return False if it was destroyed before. Only the owner's role may do this."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO users_memberkey (user_id, secret, destroyed_at) VALUES (%s, NULL, statement_timestamp())"
            " ON CONFLICT (user_id) DO UPDATE SET secret = NULL, destroyed_at = statement_timestamp()"
            " WHERE users_memberkey.secret IS NOT NULL",
            [member_id],
        )
        return bool(cursor.rowcount)


def _new_cipher(member_id: int) -> AESGCM | None:
    """Make a secret if the member has no row, as after an import without triggers. Return None if it was destroyed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO users_memberkey (user_id, secret) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [member_id, os.urandom(SECRET_BYTES)],
        )
        return _cipher(member_id) if cursor.rowcount else None


def _cipher(member_id: int) -> AESGCM | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret FROM users_memberkey WHERE user_id = %s", [member_id])
        row = cursor.fetchone()
    if row is None or row[0] is None:
        return None
    derive = HKDF(hashes.SHA256(), length=32, salt=bytes(row[0]), info=f"personal texts of member {member_id}".encode())
    return AESGCM(derive.derive(settings.PERSONAL_DATA_KEY.encode()))
