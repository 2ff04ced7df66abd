"""Middleware that refuses request bodies without a length, because Django would read them as empty."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, JsonResponse

from api.rest.errors import envelope

# These addresses read a body in chunks by themselves (callbacks.py).
CALLBACKS = ("b2c-callback/", "b2c-timeout/", "status-result/", "balance-result/")
CALLBACK_PATHS = tuple(f"/api/payments/{name}" for name in CALLBACKS)


def refuse_bodies_without_length(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Return middleware that answers 411 to a body in chunks, except at the addresses of callbacks.

    Django reads nothing of such a body. A call whose fields are all optional would then act on its defaults.
    """

    def answer(request: HttpRequest) -> HttpResponse:
        in_chunks = request.META.get("HTTP_TRANSFER_ENCODING") and not request.META.get("CONTENT_LENGTH")
        if in_chunks and not request.path.startswith(CALLBACK_PATHS):
            message = "Send the body with a Content-Length, not in chunks. It was not read, and nothing was done."
            return JsonResponse(envelope("length_required", message), status=411)
        return get_response(request)

    return answer
