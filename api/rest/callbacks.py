"""M-Pesa's door: callbacks. Each is stored, answered, and applied by a worker."""

import ipaddress
from functools import cache

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from api.rest.errors import envelope
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
    """The result of one B2C request, at the address that request was given.

    Without a token in the path it is the guide's plain callback (its part 4.4), which names the payout by
    `ExternalReference`: outside production it is applied at once, in production there is nothing at that address.
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
        return JsonResponse(envelope("unreadable_body", f"The body is no callback: {error}."), status=400)
    except callbacks.UnknownReference as error:
        return JsonResponse(envelope("unknown_reference", str(error)), status=404)
    except (OperationalError, InterfaceError):
        return _unavailable()
    return JsonResponse(ACCEPTED)


@csrf_exempt
@require_POST
def b2c_timeout_callback(request: HttpRequest, token: str) -> HttpResponse:
    """M-Pesa's queue gave up on a request of ours, or on a query: no proof of anything."""
    return _store(request, Callback.Kind.TIMEOUT, token)


@csrf_exempt
@require_POST
def status_result_callback(request: HttpRequest, token: str) -> HttpResponse:
    """The answer to one status query, at the address that query was given."""
    return _store(request, Callback.Kind.STATUS, token)


@csrf_exempt
@require_POST
def balance_result_callback(request: HttpRequest, token: str) -> HttpResponse:
    """The answer to one question about our float, at the address that question was given."""
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
        return _unavailable()  # Never 200 for what is not stored: a status query will find it.
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
    return JsonResponse(envelope("not_found", "There is nothing at this address."), status=404)


def _too_long() -> HttpResponse:
    return JsonResponse(envelope("body_too_large", f"The body may have {LONGEST_BODY} bytes."), status=400)


def _unavailable() -> HttpResponse:
    return JsonResponse(envelope("try_again", "The service is not available at the moment."), status=503)
