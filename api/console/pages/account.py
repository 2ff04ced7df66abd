"""Pages of a person's own login: change of the PIN, and the end of all sessions."""

from django.contrib.auth import login as log_in
from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse

from api.console import login, page, step_up
from payments import wiring
from users import auth, backends
from users.models import CustomUser
from users.refusal import Refusal

BACKEND = "users.backends.PinBackend"


def change_pin(request: HttpRequest) -> HttpResponse:
    """Ask for the present and the new PIN, and change it. All other sessions and all tokens end."""
    problem = ""
    if request.method == "POST":
        new_pin = request.POST.get("new_pin", "")[:128]
        if not new_pin or new_pin != request.POST.get("again", ""):
            problem = "The two new PINs differ. Type the new PIN twice. Your PIN was not changed."
        else:
            try:
                return _change(request, new_pin)
            except auth.WrongCredentials:
                problem = "That is not your PIN. Nothing was done."
            except Refusal as refusal:
                problem = str(refusal)
    context = {"title": "Change your PIN", "problem": problem}
    return page.render(request, "console/change_pin.html", context, status=409 if problem else 200)


def _change(request: HttpRequest, new_pin: str) -> HttpResponse:
    proofs = step_up.proofs(request)
    entered = auth.change_pin(
        user=_member(request),
        pin=request.POST.get("pin", "")[:128],
        new_pin=new_pin,
        rules=backends.login_rules(),
        source=page.actor(request).source,
        at=wiring.now(),
    )
    log_in(request, entered.user, BACKEND)
    # The new session keeps the old proofs. The PIN that was typed here is none, because an app's owner needs a code.
    request.session.update(proofs)
    response = page.render(request, "console/pin_changed.html", {"title": "Your PIN is changed"})
    login.remember_device(response, entered.device)
    return response


@page.page("console.view", posts=True)
def log_out_everywhere(request: HttpRequest) -> HttpResponse:
    """Ask for confirmation and end all sessions and tokens of the person, this session too."""
    question = page.Question(
        title="Log out everywhere",
        effects=[
            "All your sessions in the console end, this one too.",
            "All your tokens of the REST API end.",
            "Your devices are no longer known: on each you log in as on a new device.",
        ],
        text_to_type="everywhere",
        button="Log out everywhere",
        back=reverse("admin:index"),
    )

    def act(answers: dict[str, str]) -> str:
        auth.end_sessions(user=_member(request), source=page.actor(request).source, at=wiring.now())
        return "All your sessions and tokens have ended."

    return page.ask(request, question, act, done=reverse("admin:login"))


def _member(request: HttpRequest) -> CustomUser:
    if not isinstance(request.user, CustomUser):
        raise TypeError("This page needs a logged-in member of staff.")
    return request.user


urls = [path("log-out-everywhere/", log_out_everywhere, name="log_out_everywhere")]
