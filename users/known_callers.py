"""Known devices and addresses of a member. They keep a way in while untrusted callers guess at the member's number.

A login gives its device a signed token (header `X-Device`, or the console's cookie) and remembers its address. Wrong
PINs from a known device count for this device only. A lock that untrusted callers cause does not concern it.
"""

import ipaddress
import secrets
from datetime import datetime, timedelta

from django.core import signing
from django.utils.crypto import salted_hmac

from users import source_address
from users.models import CustomUser, KnownAddress
from users.pin_counters import OVERALL

SALT = "users.known_callers"
DEVICE_LIFE = timedelta(days=180)
ADDRESSES_KEPT = 10


def counters(user: CustomUser | None, *, phone_number: str, source: str, device: str) -> tuple[str, ...]:
    """Return the keys of the counters for a login at this number. The first key is the number's or the device's.

    An unknown number has the same counters as a member's number, so a refusal does not show if a member has it.
    """
    nonce = _nonce(user, device)
    if nonce:
        return (f"device:{nonce}",)
    address = _digest("address", _network(source))
    by_address = () if source_address.parse(source) is None else (f"address:{address}",)
    known = KnownAddress.objects.filter(user_id=user.pk if user else 0, address=address).exists()
    if user is not None and known:
        return (f"known:{user.pk}:{address}", *by_address)
    return (number_counter(phone_number), *by_address, OVERALL)


def number_counter(phone_number: str) -> str:
    """Return the key of the counter that untrusted callers at this number share."""
    return f"number:{_digest('number', phone_number)}"


def inside_counter(user: CustomUser) -> str:
    """Return the key of the counter for PINs that a person types after the login."""
    return f"inside:{user.pk}"


def device_token(user: CustomUser, *, device: str = "") -> str:
    """Return a token for the device of a login: the given token if it is good, else a new one.

    All tokens end together with the member's sessions, for example at a change of the PIN.
    """
    if _nonce(user, device):
        return device
    return signing.dumps([user.pk, user.session_epoch, secrets.token_hex(16)], salt=SALT)


def remember_address(user: CustomUser, *, source: str, at: datetime) -> None:
    """Remember the address of a login. The newest ten are kept."""
    if source_address.parse(source) is None:
        return
    address = _digest("address", _network(source))
    KnownAddress.objects.update_or_create(user=user, address=address, defaults={"last_at": at})
    newest = KnownAddress.objects.filter(user=user).order_by("-last_at", "-pk").values("pk")[:ADDRESSES_KEPT]
    KnownAddress.objects.filter(user=user).exclude(pk__in=list(newest.values_list("pk", flat=True))).delete()


def _nonce(user: CustomUser | None, device: str) -> str:
    """Return the random part of a good device token of this member, or an empty text."""
    try:
        member, epoch, nonce = signing.loads(device[:300], salt=SALT, max_age=DEVICE_LIFE)
    except (signing.BadSignature, ValueError, TypeError):
        return ""
    return str(nonce) if user is not None and (member, epoch) == (user.pk, user.session_epoch) else ""


def _network(source: str) -> str:
    """Return the part of an address that one caller cannot change at will: IPv6 hosts choose their last 64 bits."""
    address = source_address.parse(source)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or source)


def _digest(kind: str, text: str) -> str:
    return salted_hmac(f"{SALT}.{kind}", text, algorithm="sha256").hexdigest()[:32]
