"""Endpoints for M-Pesa's callbacks. Each callback is stored and answered; a worker applies it later."""

import ipaddress
from functools import cache

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from api.rest.errors import NO_SUCH_ADDRESS, UNAVAILABLE, envelope
from payments import wiring
from payments.models import Callback
from payments.mpesa import strict_json
from payments.payouts.evidence import callbacks
from users.source_address import source_address

LONGEST_BODY = strict_json.MAX_BYTES
ACCEPTED = {"ResultCode": 0, "ResultDesc": "Accepted"}


@csrf_exempt
@require_POST
def b2c_result_callback(request: HttpRequest, token: str | None = None) -> HttpResponse:
    """Store the result of one B2C request. M-Pesa sends it to the address that we gave with the request.

    Without a token in the path, this is the plain callback of the guide's part 4.4, which names the payout by
    `ExternalReference`. Outside production it is applied at once. In production the plain address answers 404.
    """
    if token is not None:
        return _store(request, Callback.Kind.RESULT, token)
    if settings.MPESA_PRODUCTION:
        return _nothing_here()
    body = _body(request)
    if body is None:
        return _too_long()
    try:
        callbacks.apply_plain(
            body=body,
            source_ip=source_address(request),
            at=timezone.now(),
            policy=wiring.policy(),
            addresses=wiring.addresses(),
        )
    except strict_json.Unreadable as error:
        return JsonResponse(envelope("unreadable_body", f"The body is not a callback: {error}."), status=400)
    except callbacks.UnknownReference as error:
        return JsonResponse(envelope("unknown_reference", str(error)), status=404)
    except (OperationalError, InterfaceError):
        return _unavailable()
    return JsonResponse(ACCEPTED)


@csrf_exempt
@require_POST
def b2c_timeout_callback(request: HttpRequest, token: str) -> HttpResponse:
    """Store a timeout: M-Pesa's queue dropped our request or query. A timeout proves nothing about the money."""
    return _store(request, Callback.Kind.TIMEOUT, token)


@csrf_exempt
@require_POST
def status_result_callback(request: HttpRequest, token: str) -> HttpResponse:
    """Store the answer to one status query. M-Pesa sends it to the address that we gave with the query."""
    return _store(request, Callback.Kind.STATUS, token)


@csrf_exempt
@require_POST
def balance_result_callback(request: HttpRequest, token: str) -> HttpResponse:
    """Store the answer to one balance query. M-Pesa sends it to the address that we gave with the query."""
    return _store(request, Callback.Kind.BALANCE, token)


def _store(request: HttpRequest, kind: str, token: str) -> HttpResponse:
    body = _body(request)
    if body is None:
        return _too_long()
    source = source_address(request)
    try:
        callbacks.store(
            kind=kind,
            token=token,
            body=body,
            source_ip=source,
            trusted=_is_mpesa(source),
            at=timezone.now(),
            addresses=wiring.addresses(),
        )
    except callbacks.UnknownAddress:
        return _nothing_here()
    except (OperationalError, InterfaceError):
        # M-Pesa must not get 200 for a callback that is not stored. A status query will ask for the result.
        return _unavailable()
    wiring.after_callback()
    return JsonResponse(ACCEPTED)


def _body(request: HttpRequest) -> bytes | None:
    body = request.read(LONGEST_BODY + 1)
    return body if len(body) <= LONGEST_BODY else None


@cache
def _mpesa_networks() -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(source) for source in settings.MPESA_CALLBACK_SOURCES)


def _is_mpesa(source: str | None) -> bool:
    return source is not None and any(ipaddress.ip_address(source) in network for network in _mpesa_networks())


def _nothing_here() -> HttpResponse:
    return JsonResponse(envelope("not_found", NO_SUCH_ADDRESS), status=404)


def _too_long() -> HttpResponse:
    return JsonResponse(
        envelope("body_too_large", f"The body is larger than {LONGEST_BODY} bytes. It was not stored."), status=400
    )


def _unavailable() -> HttpResponse:
    return JsonResponse(envelope("try_again", UNAVAILABLE), status=503)
