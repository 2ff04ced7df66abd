"""Security headers: a content security policy for the console, no caching of private answers, no browser features."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

# We serve every file. The theme uses Alpine, which compiles expressions (unsafe-eval) and sets styles (unsafe-inline).
# The theme has no build of Alpine that does without.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# An answer of the API is data. A browser that shows it as a page may load nothing.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
FEATURES = "accelerometer=(), camera=(), geolocation=(), gyroscope=(), microphone=(), payment=(), usb=()"


def security_headers(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Return middleware that adds the headers. A view may allow the caching of a public answer itself."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers["Permissions-Policy"] = FEATURES
        if request.path.startswith("/admin/"):
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["Cache-Control"] = "no-store"
        elif request.path.startswith("/api/"):
            response.headers["Content-Security-Policy"] = DATA_POLICY
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return answer
