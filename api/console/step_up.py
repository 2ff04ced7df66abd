"""Who stands at the console's door: logged in, proven by a second factor where one is asked for, and proven lately."""

from datetime import datetime, timedelta

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone

from api.rest import fields
from users import auth, phone, second_factor
from users.models import CustomUser

PROVEN_BY_CODE = "proven_by_code"
STEPPED_UP_AT = "stepped_up_at"


def proven(request: HttpRequest) -> bool:
    """Whether the session has shown a code, where the member has an app set up or the setting asks for one."""
    if request.session.get(PROVEN_BY_CODE):
        return True
    return not settings.STAFF_TOTP and not second_factor.enrolled(_member(request))


def remember(request: HttpRequest, *, by_code: bool, at: datetime) -> None:
    """The member has just proven themselves."""
    if by_code:
        request.session[PROVEN_BY_CODE] = True
    request.session[STEPPED_UP_AT] = at.isoformat()


def asks_for(request: HttpRequest) -> str:
    """What a money action needs now: "code", "pin", or "" where they proved themselves a moment ago."""
    said = request.session.get(STEPPED_UP_AT)
    fresh = timedelta(minutes=settings.STEP_UP_MINUTES)
    if said and timedelta(0) <= timezone.now() - datetime.fromisoformat(said) <= fresh:
        return ""
    return "code" if second_factor.enrolled(_member(request)) else "pin"


def step_up(request: HttpRequest) -> str:
    """Check the proof that came with a money action's form. Returns what is wrong with it, or nothing."""
    wanted = asks_for(request)
    if not wanted:
        return ""
    member, proof, by = _member(request), request.POST.get("proof", ""), fields.actor(request)
    try:
        if wanted == "code":
            second_factor.check(user=member, code=proof, by=by, at=timezone.now())
        else:
            auth.check_pin(phone_number=member.phone_number, pin=proof, source=by.source, at=timezone.now())
    except second_factor.WrongCode as refusal:
        return f"{refusal} Nothing was done."
    except auth.TooManyTries as refusal:
        return f"{refusal} Nothing was done."
    except (auth.WrongCredentials, phone.NotAPhoneNumber):
        return "That is not your PIN. Nothing was done."
    remember(request, by_code=wanted == "code", at=timezone.now())
    return ""


def _member(request: HttpRequest) -> CustomUser:
    if not isinstance(request.user, CustomUser):
        raise TypeError("Only a member of staff has proven anything.")
    return request.user
