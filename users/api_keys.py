"""API keys of machines: hashed, limited to some acts, addresses and a time. A key proposes; only people approve.

A key carries the rights of the person who made it, and no more. It stops with a revocation, at its expiry, and when its
maker is suspended or loses the right.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet

from users import audit, authority, source_address
from users.models import ApiKey
from users.refusal import Refusal

PREFIX = "kak_"
SHOWN = len(PREFIX) + 6
LONGEST_DAYS = 366
USE_NOTED_EVERY = timedelta(minutes=1)


class BadKey(Refusal):
    """The key that a person asks for has no name, no acts, or acts that it may not have."""


class KeyNotFound(Refusal):
    """There is no such key, or it is revoked already."""


class KeyRefused(Refusal):
    """The key is unknown, expired or revoked, or its address or its maker is not accepted."""


class KeyMayNot(Refusal):
    """The key is good, but does not hold the act."""


@dataclass(frozen=True)
class Request:
    """A key that a person asks for. `addresses` are networks from which it may be used; none means any."""

    name: str
    acts: Sequence[str]
    addresses: Sequence[str]
    days: int


def make(wanted: Request, *, may: Callable[[str], bool], by: audit.Actor, at: datetime) -> tuple[ApiKey, str]:
    """Make a key, and return it with its secret, which is shown once. Only the secret's digest is stored.

    `may` tells if the person may do an act, because nobody gives away more than they have.
    Locks: the end of the audit trail.
    Raises: BadKey.
    """
    _check(wanted, may)
    if by.user_id is None:
        raise BadKey("Only a member of staff can make a key. Nothing was made.")
    secret = PREFIX + secrets.token_urlsafe(32)
    with transaction.atomic(durable=True):
        key = ApiKey.objects.create(
            name=wanted.name.strip(),
            shown=secret[:SHOWN],
            digest=_digest(secret),
            acts=sorted(wanted.acts),
            addresses=list(wanted.addresses),
            made_by_id=by.user_id,
            made_at=at,
            expires_at=at + timedelta(days=wanted.days),
        )
        audit.record(
            action="api_key.make",
            by=by,
            subject=f"api_key:{key.pk}",
            before={},
            after={
                "name": key.name,
                "key": key.shown,
                "acts": key.acts,
                "addresses": key.addresses,
                "expires_at": key.expires_at,
            },
            at=at,
        )
    return key, secret


def _check(wanted: Request, may: Callable[[str], bool]) -> None:
    if not wanted.name.strip() or len(wanted.name) > 80 or "\x00" in wanted.name:
        raise BadKey("Give the key a name of at most 80 characters. Nothing was made.")
    if not wanted.acts:
        raise BadKey("Choose at least one act for the key. Nothing was made.")
    for name in wanted.acts:
        if name not in authority.ACTS or not authority.ACTS[name].machine:
            raise BadKey(f"A key cannot hold the act {name}. Nothing was made.")
        if not may(name):
            raise BadKey(f"{authority.refusal(name)} A key can do no more than the person who makes it.")
    if not 1 <= wanted.days <= LONGEST_DAYS:
        raise BadKey(f"A key is valid for 1 to {LONGEST_DAYS} days. Nothing was made.")
    for network in wanted.addresses:
        if not source_address.is_network(network):
            raise BadKey(f"{network} is neither an IP address nor a network such as 192.0.2.0/24. Nothing was made.")


def revoke(*, key_id: int, reason: str, by: audit.Actor, at: datetime) -> None:
    """Revoke a key at once.

    Locks: the key, the end of the audit trail.
    Raises: KeyNotFound.
    """
    with transaction.atomic(durable=True):
        key = ApiKey.objects.select_for_update(no_key=True).filter(pk=key_id, revoked_at=None).first()
        if key is None:
            raise KeyNotFound("There is no such key, or it is revoked already.")
        key.revoked_at = at
        key.save(update_fields=["revoked_at"])
        audit.record(
            action="api_key.revoke",
            by=by,
            subject=f"api_key:{key.pk}",
            before={"revoked_at": None},
            after={"revoked_at": at},
            at=at,
            reason=reason,
        )


def admit(secret: str, *, act_name: str, source: str, at: datetime) -> ApiKey:
    """Return the key of this secret, if it may do the act from this address now.

    Raises: KeyRefused, with one text for every cause; KeyMayNot.
    """
    key = ApiKey.objects.select_related("made_by").filter(digest=_digest(secret)).first()
    if key is None or not _is_good(key, source, at):
        raise KeyRefused("This API key is unknown, expired, revoked, or not accepted from your address.")
    if act_name not in key.acts or not authority.ACTS[act_name].machine or not authority.may(key.made_by, act_name):
        raise KeyMayNot(f"This API key does not hold the act {act_name}. Nothing was done.")
    unnoted = Q(last_used_at=None) | Q(last_used_at__lt=at - USE_NOTED_EVERY)
    ApiKey.objects.filter(unnoted, pk=key.pk).update(last_used_at=at)
    return key


def _is_good(key: ApiKey, source: str, at: datetime) -> bool:
    if key.revoked_at is not None or at >= key.expires_at or not key.made_by.is_active or not key.made_by.is_staff:
        return False
    address = source_address.parse(source)
    return not key.addresses or (address is not None and source_address.is_in(address, key.addresses))


def newest() -> QuerySet[ApiKey]:
    """Return all keys with their makers, newest first."""
    return ApiKey.objects.select_related("made_by").order_by("-pk")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
