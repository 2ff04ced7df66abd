"""Addresses that people give us and that we show or call: links to results, webhooks.

They are https, have no credentials, and do not lead into our own network.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from users.refusal import Refusal

LONGEST = 500
# Names that a resolver answers from the machine or the local network.
_LOCAL = ("localhost", ".localhost", ".localdomain", ".local", ".internal", ".intranet", ".lan", ".home.arpa")
# Browsers read %2e, \ and full-width digits in a host differently from Python. Other letters have an ASCII form.
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+", re.ASCII)
# IPv6 networks whose addresses contain an IPv4 address, in their last 32 bits.
_WITH_IPV4 = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
# Addresses of a translation inside one network. They may lead to any host of that network.
_TRANSLATED_LOCALLY = ipaddress.IPv6Network("64:ff9b:1::/48")


class NotAnOutgoingAddress(Refusal):
    """The address is not one that we would open."""


def check(url: str) -> str:
    """Return a public https address.

    Raises: NotAnOutgoingAddress.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise NotAnOutgoingAddress("This is not a web address.") from None
    if len(url) > LONGEST or not url.isprintable() or " " in url:
        raise NotAnOutgoingAddress(f"A web address has at most {LONGEST} characters and no blanks.")
    if parts.scheme != "https" or not host:
        raise NotAnOutgoingAddress("A web address must begin with https://.")
    if "@" in parts.netloc:
        raise NotAnOutgoingAddress("A web address must not contain a user name or a password.")
    if ":" not in host and "." in host and not _NAME.fullmatch(host):
        raise NotAnOutgoingAddress(
            "The host of a web address has letters from a to z, digits, dots and dashes only. Write another name in its"
            " xn-- form."
        )
    if host.endswith(_LOCAL) or ("." not in host and ":" not in host) or not is_public(host):
        raise NotAnOutgoingAddress("A web address must be public. This one leads into a private network.")
    return url


def is_public(host: str) -> bool:
    """Return True if a host is a name, or a public IP address. 2130706433 and 0x7f.1 are spellings of 127.0.0.1."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return not host.rpartition(".")[2].isdigit()
    if address in _TRANSLATED_LOCALLY:
        return False
    return all(part.is_global and not part.is_multicast for part in (address, *_ipv4_inside(address)))


def _ipv4_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 address that an IPv6 address leads to, if it is one of a translation or a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if any(address in network for network in _WITH_IPV4):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address.sixtofour] if address.sixtofour else []
