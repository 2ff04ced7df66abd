"""How callers of the API and of the console are known: two edges over users.auth."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest
from django.utils import timezone
from knox.auth import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from users import auth, phone
from users.models import CustomUser
from users.source_address import source_address


class PinBackend(ModelBackend):
    """The console's login: the same PIN, the same count of wrong ones, the same lock as the API's."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **named: Any
    ) -> CustomUser | None:
        try:
            return auth.check_pin(
                phone_number=username or named.get(CustomUser.USERNAME_FIELD) or "",
                pin=password or "",
                source=(source_address(request) if request is not None else None) or "unknown",
                at=timezone.now(),
            )
        except (auth.WrongCredentials, auth.TooManyTries, phone.NotAPhoneNumber):
            return None


class BearerAuthentication(TokenAuthentication):
    """`Authorization: Bearer <token>`; a header that is not ASCII is a wrong token, not an error of ours."""

    def authenticate(self, request: Request) -> Any:
        try:
            return super().authenticate(request)
        except UnicodeError as error:
            raise AuthenticationFailed("Invalid token.") from error
