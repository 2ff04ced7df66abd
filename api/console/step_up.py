"""Checks of a console session: the second factor, and a recent PIN or code (step-up)."""

from datetime import datetime, timedelta

from django.conf import settings
from django.http import HttpRequest

from api.rest import fields
from payments import wiring
from users import auth, hashing, second_factor
from users.models import CustomUser

PROVEN_BY_CODE = "proven_by_code"
STEPPED_UP_AT = "stepped_up_at"
SEEN_AT = "seen_at"
NOTED_EVERY = timedelta(minutes=1)


def proven(request: HttpRequest) -> bool:
    """Return True if the session has shown a code or needs none.

    A session needs no code if STAFF_TOTP is off and the member of staff has no app. A person who lost an app must set
    up another first, so the PIN alone is not enough again.
    """
    if request.session.get(PROVEN_BY_CODE):
        return True
    member = _member(request)
    return not settings.STAFF_TOTP and not second_factor.enrolled(member) and not second_factor.awaits_enrolment(member)


def is_idle(request: HttpRequest) -> bool:
    """Return True if the person opened no page for IDLE_MINUTES. Else note this page, unless a script refreshes it."""
    if not settings.IDLE_MINUTES:
        return False
    at, limit = wiring.now(), timedelta(minutes=settings.IDLE_MINUTES)
    seen = datetime.fromisoformat(request.session.get(SEEN_AT, at.isoformat()))
    if at - seen > limit:
        return True
    if SEEN_AT not in request.session or ("X-Fragment" not in request.headers and at - seen > NOTED_EVERY):
        request.session[SEEN_AT] = at.isoformat()
    return False


def remember(request: HttpRequest, *, by_code: bool, at: datetime) -> None:
    """Note in the session that the person gave a valid PIN or code at this time."""
    if by_code:
        request.session[PROVEN_BY_CODE] = True
    request.session[STEPPED_UP_AT] = at.isoformat()


def proofs(request: HttpRequest) -> dict[str, object]:
    """Return the proofs that the session has shown, for a session that replaces it."""
    return {name: request.session[name] for name in (PROVEN_BY_CODE, STEPPED_UP_AT) if name in request.session}


def asks_for(request: HttpRequest) -> str:
    """Return the proof that a money action needs now: "code" or "pin". Return "" if the last proof is recent."""
    stepped_up_at = request.session.get(STEPPED_UP_AT)
    fresh = timedelta(minutes=settings.STEP_UP_MINUTES)
    if stepped_up_at and timedelta(0) <= wiring.now() - datetime.fromisoformat(stepped_up_at) <= fresh:
        return ""
    return "code" if second_factor.enrolled(_member(request)) else "pin"


def step_up(request: HttpRequest) -> str:
    """Check the PIN or code in a money action's form. Return the problem in words, or "" if there is none."""
    wanted = asks_for(request)
    if not wanted:
        return ""
    member, proof, by = _member(request), request.POST.get("proof", ""), fields.actor(request)
    try:
        if wanted == "code":
            second_factor.check(user=member, code=proof, by=by, at=wiring.now())
        else:
            auth.confirm_pin(user=member, pin=proof, source=by.source, at=wiring.now())
    except second_factor.WrongCode as refusal:
        return f"{refusal} Nothing was done."
    except (auth.TooManyTries, hashing.Busy) as refusal:
        return f"{refusal} Nothing was done."
    except auth.WrongCredentials:
        return "That is not your PIN. Nothing was done."
    remember(request, by_code=wanted == "code", at=wiring.now())
    return ""


def _member(request: HttpRequest) -> CustomUser:
    if not isinstance(request.user, CustomUser):
        raise TypeError("Step-up needs a logged-in member of staff.")
    return request.user
