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
from users import audit, second_factor, source_address
from users.models import CustomUser

# One text for every failure. It says what to do, and does not reveal if the phone, the PIN or the code was wrong.
LOGIN_FAILED = (
    "Login failed. Check the phone number, the PIN and, if you have set up an app, its current code. "
    "Five wrong PINs lock the number for 15 minutes. After a wrong code you must wait before you try again."
)


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

    def confirm_login_allowed(self, user: Any) -> None:
        """Check that the user is active staff. If the user has set up an app, check the code too.

        Raises: ValidationError, with the same text for every failure.
        """
        if not user.is_active or not user.is_staff:
            raise forms.ValidationError(LOGIN_FAILED, code="invalid_login")
        if second_factor.enrolled(user):
            try:
                source = source_address.source_address(self.request) if self.request is not None else None
                by = audit.Actor(user_id=user.pk, source=source or "unknown")
                second_factor.check(user=user, code=self.cleaned_data.get("code", ""), by=by, at=wiring.now())
            except second_factor.WrongCode:
                raise forms.ValidationError(LOGIN_FAILED, code="invalid_login") from None
            user.proved_by_code = True


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
    problem = ""
    if request.method == "POST":
        try:
            codes = second_factor.confirm(
                user=user, code=request.POST.get("code", ""), by=page.actor(request), at=wiring.now()
            )
        except second_factor.WrongCode as refusal:
            problem = str(refusal)
        else:
            request.session.cycle_key()
            step_up.remember(request, by_code=True, at=wiring.now())
            messages.success(request, "Your app is set up.")
            return page.render(request, "console/recovery_codes.html", {"title": "Recovery codes", "codes": codes})
    enrolment = second_factor.begin(user)
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


urls = [path("second-factor/", second_factor_page, name="second_factor")]
