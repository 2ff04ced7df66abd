"""Source address of a request: the peer's, or the address that our own proxies saw."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# With TRUSTED_PROXY_HOPS alone, a proxy is a peer on this machine or in a private network. A caller from the internet
# never has such an address, so it cannot name another source.
PRIVATE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


def source_address(request: HttpRequest | Request) -> str | None:
    """Return the caller's address, or None if it is not an IP address.

    This is the peer's address, unless the peer is one of our proxies. Then the entries of X-Forwarded-For are read from
    the right, up to the first one that is not one of our proxies. With TRUSTED_PROXY_HOPS exactly that number of
    entries was added by our proxies, and no further entry is read.
    """
    peer = request.META.get("REMOTE_ADDR", "")
    address = parse(peer)
    proxies = _proxies()
    # A peer on a local socket has no address. Only a process on this machine can be such a peer.
    if not proxies or (address is not None and not is_in(address, proxies)) or (address is None and peer.strip()):
        return None if address is None else str(address)
    header = request.headers.get("X-Forwarded-For", "")
    entries = [entry for entry in header.split(",") if entry.strip()]
    hops = settings.TRUSTED_PROXY_HOPS
    if len(entries) < hops:
        return None if address is None else str(address)
    for entry in reversed(entries[-hops:] if hops else entries):
        address = parse(entry)
        if address is None or not is_in(address, proxies):
            break
    return None if address is None else str(address)


def parse(text: str) -> Address | None:
    """Return the IP address in a text, or None.

    The text may have a port (`1.2.3.4:80`, `[::1]:80`), brackets, quotes or a scope (`fe80::1%eth0`). An IPv4 address
    inside IPv6 (`::ffff:1.2.3.4`) is returned as IPv4.
    """
    text = text.strip().strip('"')
    if match := _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text):
        text = match.group(1)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_network(text: str) -> bool:
    """Return True if the text is an IP address or a network such as 192.0.2.0/24."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def is_in(address: Address, networks: Sequence[str]) -> bool:
    """Return True if the address is in one of the networks."""
    return any(address in network for network in _parsed(tuple(networks)))


@lru_cache
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, networks))


def _proxies() -> Sequence[str]:
    if settings.TRUSTED_PROXIES:
        return list(settings.TRUSTED_PROXIES)
    return PRIVATE if settings.TRUSTED_PROXY_HOPS else ()
