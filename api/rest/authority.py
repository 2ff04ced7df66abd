"""Rights of staff over REST: `@permission_classes([act("market.resolve")])` asks users.authority."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from api.rest.fields import actor, caller
from payments import wiring
from users import api_keys, authority, second_factor, tokens
from users.source_address import source_address

CODE_HEADER = "X-Authenticator-Code"


class Allowed(BasePermission):
    """Permission to do one act. A money act also needs a recent code of the authenticator app.

    A machine sends an API key in place of a token. Only here a key is read, so no other route accepts one.
    """

    act_name: str

    def has_permission(self, request: Request, view: Any) -> bool:
        secret = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if secret.startswith(api_keys.PREFIX):
            source = source_address(request) or "unknown"
            key = api_keys.admit(secret, act_name=self.act_name, source=source, at=wiring.now())
            request.api_key = key  # type: ignore[attr-defined]
            return True
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
