"""Endpoints for M-Pesa's callbacks. Each callback is stored and answered; a worker applies it later."""

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]

from api.rest.errors import NO_SUCH_ADDRESS, UNAVAILABLE, envelope
from payments import wiring
from payments.models import Callback
from payments.mpesa import strict_json
from payments.payouts.evidence import callbacks
from users import source_address

LONGEST_BODY = strict_json.MAX_BYTES
INCOMPLETE = "The connection or the body ended too early. Nothing was stored."
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
    if isinstance(body, HttpResponse):
        return body
    try:
        callbacks.apply_plain(
            body=body,
            source_ip=source_address.source_address(request),
            at=wiring.now(),
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
    if isinstance(body, HttpResponse):
        return body
    source = source_address.source_address(request)
    try:
        callbacks.store(
            kind=kind,
            token=token,
            body=body,
            source_ip=source,
            trusted=_is_mpesa(source),
            at=wiring.now(),
            addresses=wiring.addresses(),
        )
    except callbacks.UnknownAddress:
        return _nothing_here()
    except callbacks.TooManyBodies as error:
        return JsonResponse(envelope("too_many_callbacks", str(error)), status=429)
    except (OperationalError, InterfaceError):
        # M-Pesa must not get 200 for a callback that is not stored. A status query will ask for the result.
        return _unavailable()
    wiring.after_callback()
    return JsonResponse(ACCEPTED)


def _body(request: HttpRequest) -> bytes | HttpResponse:
    """Return the complete body, or the refusal of a body that is empty, too long or not read to its end.

    M-Pesa takes 200 as our receipt, so a callback that we did not read completely must not get 200.
    """
    declared = request.META.get("CONTENT_LENGTH") or ""
    # A body in chunks has no length. Django reads nothing of it, but the web server may mark its end.
    if not declared and not request.META.get("wsgi.input_terminated"):
        return _refused("length_required", "The request has no Content-Length, so the body was not read.", 411)
    try:
        body = request.read(LONGEST_BODY + 1) if declared else _read_to_end(request)
    except (OSError, ParseException):  # gunicorn raises ParseException for a malformed chunk.
        return _refused("incomplete_body", INCOMPLETE, 400)
    if len(body) > LONGEST_BODY:
        return _refused("body_too_large", f"The body is larger than {LONGEST_BODY} bytes. It was not stored.", 400)
    if declared.isdecimal() and len(body) < int(declared):
        return _refused("incomplete_body", INCOMPLETE, 400)
    return body or _refused("empty_body", "The body is empty. Nothing was stored.", 400)


def _read_to_end(request: HttpRequest) -> bytes:
    """Read a body whose end the web server marks, but at most one byte more than the longest body."""
    stream, body = request.META["wsgi.input"], b""
    while len(body) <= LONGEST_BODY and (part := stream.read(LONGEST_BODY + 1 - len(body))):
        body += part
    return body


def _is_mpesa(source: str | None) -> bool:
    address = source_address.parse(source or "")
    return address is not None and source_address.is_in(address, settings.MPESA_CALLBACK_SOURCES)


def _nothing_here() -> HttpResponse:
    return JsonResponse(envelope("not_found", NO_SUCH_ADDRESS), status=404)


def _refused(code: str, message: str, status: int) -> HttpResponse:
    return JsonResponse(envelope(code, message), status=status)


def _unavailable() -> HttpResponse:
    return JsonResponse(envelope("try_again", UNAVAILABLE), status=503)
