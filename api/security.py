"""Content security policy of the console: a browser loads nothing from other sites."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

# We serve every file. The theme uses Alpine, which compiles expressions (unsafe-eval) and sets styles (unsafe-inline).
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Return middleware that adds headers to the console's pages: no other sites, no framing, no caching."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["Cache-Control"] = "no-store"
        return response

    return answer
