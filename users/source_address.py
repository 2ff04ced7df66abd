"""Source address of a request."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def source_address(request: HttpRequest | Request) -> str | None:
    """Return the caller's address, or None if it is not an IP address.

    This is the peer's address. With TRUSTED_PROXY_HOPS it is the address that our outermost proxy saw.
    """
    hops = settings.TRUSTED_PROXY_HOPS
    forwarded = [hop.strip() for hop in request.headers.get("X-Forwarded-For", "").split(",")]
    address = forwarded[-hops] if hops and len(forwarded) >= hops else request.META.get("REMOTE_ADDR", "")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None
