"""Strict fields of request bodies, and the caller of a request.

A wrong or unknown field is refused with its name, so that a typing error is never ignored.
"""

import re
from decimal import Decimal
from typing import Any, ClassVar

from django.http import HttpRequest
from rest_framework import serializers
from rest_framework.exceptions import NotAuthenticated
from rest_framework.fields import empty
from rest_framework.request import Request

from users import audit, source_address
from users.models import ApiKey, CustomUser

LARGEST_ID = 2**63 - 1
_PERCENTAGE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?", re.ASCII)
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,2})?", re.ASCII)


class StrictInteger(serializers.IntegerField):
    """A JSON integer. Floats, texts and booleans are refused."""

    def to_internal_value(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail("invalid")
        return super().to_internal_value(value)


class StrictText(serializers.CharField):
    """A JSON string. Numbers are refused."""

    def to_internal_value(self, value: object) -> str:
        if not isinstance(value, str):
            self.fail("invalid")
        return super().to_internal_value(value)


class Body(serializers.Serializer):
    """A request's body. It refuses unknown fields, so that a misspelt field is not ignored."""

    def run_validation(self, body: object = empty) -> object:
        if isinstance(body, dict):
            unknown = sorted(set(body) - set(self.fields))
            if unknown:
                raise serializers.ValidationError({unknown[0]: ["This call has no such field. Check the spelling."]})
        return super().run_validation(body)


class Shillings(serializers.Field):
    """An amount in shillings with at most two decimals, as a JSON number or string. Refuses blanks, 1_000 and 1e9."""

    default_error_messages: ClassVar = {
        "invalid": "Must be an amount such as 100 or 99.50, with at most two decimals.",
        "low": "Must be at least {low}.",
        "high": "Must be at most {high}.",
    }

    def __init__(self, *, low: Decimal, high: Decimal, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = low, high

    def to_internal_value(self, value: object) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal) or not _AMOUNT.fullmatch(str(value)):
            self.fail("invalid")
        amount = Decimal(str(value))
        if amount < self.low:
            self.fail("low", low=self.low)
        if amount > self.high:
            self.fail("high", high=self.high)
        return amount

    def to_representation(self, value: Decimal) -> str:
        return f"{value:.2f}"


class Percentage(serializers.Field):
    """A percentage from 0 to 100 with at most two decimals, as a JSON number or string."""

    default_error_messages: ClassVar = {
        "invalid": "Must be a percentage from 0 to 100, such as 5 or 4.50, with at most two decimals.",
    }

    def to_internal_value(self, value: object) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal) or not _AMOUNT.fullmatch(str(value)):
            self.fail("invalid")
        percentage = Decimal(str(value))
        if percentage > 100:
            self.fail("invalid")
        return percentage

    def to_representation(self, value: Decimal) -> str:
        return f"{value:.2f}"


class Weights(serializers.Field):
    """Percentages of at least one outcome, such as {"A": 50, "B": "50"}, with at most four decimals."""

    default_error_messages: ClassVar = {
        "invalid": "Must be an object with a percentage such as 50 or 33.3 for each outcome.",
        "many": "May have at most {most} outcomes.",
    }
    most = 200

    def to_internal_value(self, value: object) -> dict[str, Decimal]:
        if not isinstance(value, dict) or not value:
            self.fail("invalid")
        if len(value) > self.most:
            self.fail("many", most=self.most)
        for weight in value.values():
            if isinstance(weight, bool) or not isinstance(weight, str | int | Decimal):
                self.fail("invalid")
            if not _PERCENTAGE.fullmatch(str(weight)):
                self.fail("invalid")
        return {outcome: Decimal(str(weight)) for outcome, weight in value.items()}

    def to_representation(self, value: dict[str, Decimal]) -> dict[str, str]:
        return {outcome: str(weight) for outcome, weight in value.items()}


def checked(body: serializers.Serializer) -> dict[str, Any]:
    """Validate a body and return its values.

    Raises: serializers.ValidationError, which names the wrong fields.
    """
    body.is_valid(raise_exception=True)
    return body.validated_data


def caller(request: Request) -> CustomUser:
    """Return the member who sent the request.

    Raises: NotAuthenticated.
    """
    if not isinstance(request.user, CustomUser):
        raise NotAuthenticated
    return request.user


def actor(request: HttpRequest | Request) -> audit.Actor:
    """Return the caller and the caller's address for the audit trail. A machine is named by its API key."""
    source = source_address.source_address(request) or "unknown"
    key: ApiKey | None = getattr(request, "api_key", None)
    if key is not None:
        return audit.Actor(user_id=None, source=f"{key.shown} {source}", key_id=key.pk)
    return audit.Actor(user_id=request.user.pk, source=source)
