"""Console login with phone, PIN and code, and the set-up of an authenticator app."""

from typing import Any, ClassVar

import segno
from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login as log_in
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.safestring import mark_safe
from unfold.forms import AuthenticationForm
from unfold.widgets import INPUT_CLASSES

from api.console import page, step_up
from payments import wiring
from users import auth, backends, hashing, known_callers, second_factor, source_address
from users.models import CustomUser
from users.refusal import Refusal

# One text for every failure. It says what to do, and does not reveal if the phone, the PIN or the code was wrong.
LOGIN_FAILED = (
    "Login failed. Check the phone number, the PIN and, if you have set up an app, its current code. "
    "Five wrong PINs lock the number for 15 minutes. After a wrong code you must wait before you try again."
)
DEVICE_COOKIE = "kasoko_device"
ENROLMENT_CODE = "enrolment_code"


class LoginForm(AuthenticationForm):
    """Phone number, PIN, and the code of the authenticator app if the person has set one up."""

    error_messages: ClassVar = {"invalid_login": LOGIN_FAILED, "inactive": LOGIN_FAILED}
    code = forms.CharField(
        label="Code from your app",
        required=False,
        max_length=30,
        help_text="Six digits, or a recovery code. Leave it empty if you have not set up an app yet.",
        widget=forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "class": " ".join(INPUT_CLASSES)}
        ),
    )

    def __init__(self, request: Any = None, *args: Any, **options: Any) -> None:
        super().__init__(request, *args, **options)
        phone_number, pin = self.fields["username"], self.fields["password"]
        phone_number.label, pin.label = "Phone number", "PIN"
        # A typed number may contain spaces and signs, so it may be longer than the stored number.
        phone_number.max_length = 20
        phone_number.widget.attrs |= {"maxlength": 20, "inputmode": "tel"}

    def clean(self) -> dict[str, Any]:
        """Check number, PIN and code by the same service as the REST API. Keep the member for the login.

        Raises: ValidationError, with the same text for every failure.
        """
        typed = self.cleaned_data
        credentials = auth.Credentials(
            phone_number=typed.get("username", ""),
            pin=typed.get("password", ""),
            code=typed.get("code", ""),
            source=(source_address.source_address(self.request) if self.request else None) or "unknown",
            device=self.request.COOKIES.get(DEVICE_COOKIE, "") if self.request else "",
        )
        try:
            # Staff without an app may enter: their session opens only the set-up of one.
            entered = auth.enter(credentials=credentials, rules=backends.login_rules(), at=wiring.now(), may_enrol=True)
        except hashing.Busy as refusal:
            raise forms.ValidationError(str(refusal), code="busy") from None
        except Refusal:
            raise forms.ValidationError(LOGIN_FAILED, code="invalid_login") from None
        if not entered.user.is_staff:
            raise forms.ValidationError(LOGIN_FAILED, code="invalid_login")
        self.user_cache = entered.user
        self.user_cache.entered = entered  # type: ignore[attr-defined]  # The console's login reads it after it has logged this user in.
        return typed


def remember_device(response: HttpResponse, token: str) -> None:
    """Give the browser the token of a known device. Wrong PINs of untrusted callers do not lock such a browser out."""
    response.set_cookie(
        DEVICE_COOKIE,
        token,
        max_age=known_callers.DEVICE_LIFE,
        path=reverse("admin:index"),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Strict",
    )


def second_factor_page(request: HttpRequest) -> HttpResponse:
    """Show the set-up of an app to a member of staff without one. Ask the others for a code, once a session."""
    user = request.user
    if not isinstance(user, CustomUser) or not (user.is_active and user.is_staff):
        return HttpResponseRedirect(reverse("admin:login"))
    if second_factor.enrolled(user):
        if step_up.proven(request):
            return HttpResponseRedirect(reverse("admin:index"))
        return _ask(request, user)
    return _set_up(request, user)


def _ask(request: HttpRequest, user: CustomUser) -> HttpResponse:
    problem = ""
    if request.method == "POST":
        try:
            code = request.POST.get("code", "")
            second_factor.check(user=user, code=code, by=page.actor(request), at=wiring.now())
        except second_factor.WrongCode as refusal:
            problem = str(refusal)
        else:
            log_in(request, user, "users.backends.PinBackend")
            step_up.remember(request, by_code=True, at=wiring.now())
            return HttpResponseRedirect(reverse("admin:index"))
    return page.render(request, "console/code.html", {"title": "Enter your code", "problem": problem})


def _set_up(request: HttpRequest, user: CustomUser) -> HttpResponse:
    enrolment_code = request.session.get(ENROLMENT_CODE, "")
    if not second_factor.may_enrol(user, enrolment_code, at=wiring.now()):
        return _ask_for_enrolment_code(request, user)
    problem = ""
    if request.method == "POST":
        try:
            codes = second_factor.confirm(
                user=user,
                code=request.POST.get("code", ""),
                by=page.actor(request),
                at=wiring.now(),
                enrolment_code=enrolment_code,
            )
        except second_factor.WrongCode as refusal:
            problem = str(refusal)
        else:
            request.session.pop(ENROLMENT_CODE, None)
            request.session.cycle_key()
            step_up.remember(request, by_code=True, at=wiring.now())
            messages.success(request, "Your app is set up.")
            return page.render(request, "console/recovery_codes.html", {"title": "Recovery codes", "codes": codes})
    enrolment = second_factor.begin(user, at=wiring.now(), enrolment_code=enrolment_code)
    # Safe: the SVG has only numbers and path data. It has no text that a person typed.
    picture = mark_safe(segno.make(enrolment.url, error="m").svg_inline(scale=5, border=2, light="#fff"))  # noqa: S308
    context = {
        "title": "Set up your app",
        "picture": picture,
        "secret": enrolment.secret,
        "problem": problem,
        "required": settings.STAFF_TOTP,
    }
    return page.render(request, "console/set_up.html", context)


def _ask_for_enrolment_code(request: HttpRequest, user: CustomUser) -> HttpResponse:
    """Ask a person who lost an app for the code that an engineer printed, before the secret of a new app is shown."""
    problem = ""
    if request.method == "POST":
        typed = request.POST.get("code", "")[:40]
        if second_factor.may_enrol(user, typed, at=wiring.now()):
            request.session[ENROLMENT_CODE] = typed
            return HttpResponseRedirect(reverse("admin:second_factor"))
        problem = second_factor.WRONG_ENROLMENT_CODE
    return page.render(
        request, "console/code.html", {"title": "Enter your enrolment code", "problem": problem, "enrols": True}
    )


urls = [path("second-factor/", second_factor_page, name="second_factor")]
