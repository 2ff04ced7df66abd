"""The address a request came from."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def source_address(request: HttpRequest | Request) -> str | None:
    """The caller's address: the peer's, or the one our own outermost trusted proxy saw."""
    hops = settings.TRUSTED_PROXY_HOPS
    forwarded = [hop.strip() for hop in request.headers.get("X-Forwarded-For", "").split(",")]
    address = forwarded[-hops] if hops and len(forwarded) >= hops else request.META.get("REMOTE_ADDR", "")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None
