"""Authentication backends: the console's login by PIN, and the REST API's bearer tokens."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest
from knox.auth import TokenAuthentication
from knox.settings import knox_settings
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from users import api_keys, auth, clock, hashing, phone, roles
from users.models import CustomUser
from users.pin_counters import Budget, Limits
from users.source_address import source_address


def login_rules() -> auth.Rules:
    """Return the rules of logins from the settings."""
    return auth.Rules(
        staff_need_code=settings.STAFF_TOTP,
        pin_rules=settings.PIN_RULES,
        staff_idle=timedelta(minutes=settings.IDLE_MINUTES) if settings.IDLE_MINUTES else None,
        limits=Limits(
            address=Budget(burst=20, an_hour=settings.WRONG_PINS_AN_HOUR_PER_ADDRESS),
            overall=Budget(burst=200, an_hour=settings.WRONG_PINS_AN_HOUR),
        ),
    )


class PinBackend(ModelBackend):
    """Login of the console. It shares the PIN, the count of wrong PINs and the lock with the REST API."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **named: Any
    ) -> CustomUser | None:
        try:
            return auth.check_pin(
                phone_number=username or named.get(CustomUser.USERNAME_FIELD) or "",
                pin=password or "",
                source=(source_address(request) if request is not None else None) or "unknown",
                at=clock.database_time(),
                limits=login_rules().limits,
            )
        except (auth.WrongCredentials, auth.TooManyTries, hashing.Busy, phone.NotAPhoneNumber):
            return None

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """Return the permissions of a person.

        In development, a member of staff without a role and without a permission may do every act, so that the guide's
        calls work with a token alone. Anyone with a role has only the rights of the role.
        """
        permissions = super().get_all_permissions(user_obj, obj)
        if permissions or settings.PROFILE != "development" or not (user_obj.is_active and user_obj.is_staff):
            return permissions
        return set() if user_obj.groups.exists() else {f"users.{codename}" for codename in roles.PERMISSIONS}


class BearerAuthentication(TokenAuthentication):
    """`Authorization: Bearer <token>`. A header that is not ASCII counts as a wrong token: 401, not 500."""

    def authenticate(self, request: Request) -> Any:
        header = request.headers.get("Authorization", "")
        if header.lower().startswith(f"bearer {api_keys.PREFIX}"):
            return None  # Only the routes of acts read API keys: see api/rest/authority.py.
        try:
            return super().authenticate(request)
        except UnicodeError as error:
            raise AuthenticationFailed("Invalid token.") from error

    def renew_token(self, auth_token: Any) -> None:
        """Extend a token of staff that is in use, up to TOKEN_HOURS. Without a call it ends after IDLE_MINUTES."""
        if not settings.IDLE_MINUTES or not auth_token.user.is_staff:
            return
        extended = clock.database_time() + timedelta(minutes=settings.IDLE_MINUTES)
        expiry = min(extended, auth_token.created + knox_settings.TOKEN_TTL)
        if expiry - auth_token.expiry >= timedelta(seconds=knox_settings.MIN_REFRESH_INTERVAL):
            auth_token.expiry = expiry
            auth_token.save(update_fields=["expiry"])
