"""What a browser may load for the console's pages: nothing from elsewhere."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

# Everything is served by us. Alpine, which the theme uses, compiles its expressions; styles are set by scripts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: the console's pages load nothing from elsewhere, and are framed by nobody."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["Cache-Control"] = "no-store"
        return response

    return answer
