"""The console's door: phone, PIN and code in one form, and the pages on which an app is set up."""

from typing import Any

import segno
from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login as log_in
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone
from django.utils.safestring import mark_safe
from unfold.forms import AuthenticationForm
from unfold.widgets import INPUT_CLASSES

from api.console import page, step_up
from users import audit, second_factor, source_address
from users.models import CustomUser

# One sentence for every way of failing: it says what to do, and not which part was wrong.
NOT_LET_IN = (
    "You were not let in. Check the phone number, the PIN and, if you have set up an app, its current code. "
    "After five wrong PINs the number is locked for a quarter of an hour; wrong codes make the next one wait."
)


class LoginForm(AuthenticationForm):
    """Phone and PIN; and the code of the member's app, where one is set up."""

    error_messages = {"invalid_login": NOT_LET_IN, "inactive": NOT_LET_IN}
    code = forms.CharField(
        label="Code of your app",
        required=False,
        max_length=30,
        help_text="Six digits, or a recovery code. Leave it empty if you have not set up an app yet.",
        widget=forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "class": " ".join(INPUT_CLASSES)}
        ),
    )

    def __init__(self, request: Any = None, *args: Any, **options: Any) -> None:
        super().__init__(request, *args, **options)
        number, pin = self.fields["username"], self.fields["password"]
        number.label, pin.label = "Phone number", "PIN"
        # As it is typed a number may be longer than as it is stored.
        number.max_length = 20
        number.widget.attrs |= {"maxlength": 20, "inputmode": "tel"}

    def confirm_login_allowed(self, user: Any) -> None:
        if not user.is_active or not user.is_staff:
            raise forms.ValidationError(NOT_LET_IN, code="invalid_login")
        if second_factor.enrolled(user):
            try:
                source = source_address.source_address(self.request) if self.request is not None else None
                by = audit.Actor(user_id=user.pk, source=source or "unknown")
                second_factor.check(user=user, code=self.cleaned_data.get("code", ""), by=by, at=timezone.now())
            except second_factor.WrongCode:
                raise forms.ValidationError(NOT_LET_IN, code="invalid_login") from None
            user.proved_by_code = True


def second_factor_page(request: HttpRequest) -> HttpResponse:
    """Set up the app (who has none), or show a code (whose session has not)."""
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
            second_factor.check(user=user, code=code, by=page.actor(request), at=timezone.now())
        except second_factor.WrongCode as refusal:
            problem = str(refusal)
        else:
            log_in(request, user, "users.backends.PinBackend")
            step_up.remember(request, by_code=True, at=timezone.now())
            return HttpResponseRedirect(reverse("admin:index"))
    return page.render(request, "console/code.html", {"title": "Your code", "problem": problem})


def _set_up(request: HttpRequest, user: CustomUser) -> HttpResponse:
    problem = ""
    if request.method == "POST":
        try:
            codes = second_factor.confirm(
                user=user, code=request.POST.get("code", ""), by=page.actor(request), at=timezone.now()
            )
        except second_factor.WrongCode as refusal:
            problem = str(refusal)
        else:
            request.session.cycle_key()
            step_up.remember(request, by_code=True, at=timezone.now())
            messages.success(request, "Your app is set up.")
            return page.render(request, "console/recovery_codes.html", {"title": "Recovery codes", "codes": codes})
    enrolment = second_factor.begin(user)
    # Our own text in, digits and path data out: nothing of it was typed by anybody.
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
