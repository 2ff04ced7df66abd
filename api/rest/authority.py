"""Rights of staff over REST: `@permission_classes([act("market.resolve")])` asks users.authority."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from api.rest.fields import actor, caller
from payments import wiring
from users import authority, second_factor, tokens

CODE_HEADER = "X-Authenticator-Code"


class Allowed(BasePermission):
    """Permission to do one act. A money act also needs a recent code of the authenticator app."""

    act_name: str

    def has_permission(self, request: Request, view: Any) -> bool:
        user = caller(request)
        if not authority.may(user, self.act_name):
            raise PermissionDenied(authority.refusal(self.act_name))
        code = request.headers.get(CODE_HEADER, "")
        if authority.ACTS[self.act_name].money and (code or needs_code(request)):
            fresh = timedelta(minutes=settings.STEP_UP_MINUTES)
            tokens.prove(request.auth, code=code, fresh=fresh, by=actor(request), at=wiring.now())
        return True


def act(act_name: str) -> type[Allowed]:
    """Return the permission class of an act, by its name in users.authority."""
    return type("Allowed", (Allowed,), {"act_name": authority.ACTS[act_name].name})


def needs_code(request: Request) -> bool:
    """Return True if the caller must prove money acts: always with STAFF_TOTP, else anyone who has set up an app."""
    return settings.STAFF_TOTP or second_factor.enrolled(caller(request))
