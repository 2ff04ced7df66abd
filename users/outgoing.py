"""Addresses that people give us and that we show or call: links to results, webhooks.

They are https, have no credentials, and do not lead into our own network.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from users.refusal import Refusal

LONGEST = 500
# Names that a resolver answers from the machine or the local network.
_LOCAL = ("localhost", ".localhost", ".local", ".internal", ".intranet", ".lan", ".home.arpa")


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
            return True
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global
