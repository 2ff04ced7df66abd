"""Tests of the end of tokens and console sessions: change of the PIN, suspension, loss of a right."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from knox.models import AuthToken

from testing.builders import bearer, member
from testing.console_scenes import client_of, staff
from users.models import CustomUser, KnownAddress


def set_pin(user: CustomUser) -> None:
    user.set_password("7391")
    user.save()


def suspend_and_restore(user: CustomUser) -> None:
    for is_active in (False, True):
        user.is_active = is_active
        user.save()


def change_role(user: CustomUser) -> None:
    user.groups.clear()


def run_sql(user: CustomUser) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE users_customuser SET is_superuser = false, password = 'x' WHERE id = %s", [user.pk])


def demote(user: CustomUser) -> None:
    CustomUser.objects.filter(pk=user.pk).update(is_staff=False)


ENDS: list[Callable[[CustomUser], Any]] = [set_pin, suspend_and_restore, change_role, run_sql, demote]


@pytest.mark.parametrize("end", ENDS)
def test_tokens_and_sessions_end(db: None, at: datetime, end: Callable[[CustomUser], Any]) -> None:
    # given
    user = staff("viewer")
    headers, console = bearer(user), client_of(user)
    KnownAddress.objects.create(user=user, address="a", last_at=at)
    assert Client().get("/api/users/me/", headers=headers).status_code == 200
    assert console.get("/admin/").status_code == 200

    # when
    end(CustomUser.objects.get(pk=user.pk))

    # then: also after the member is active again
    assert Client().get("/api/users/me/", headers=headers).status_code == 401
    assert console.get("/admin/").status_code == 302
    assert not AuthToken.objects.exists()
    assert not KnownAddress.objects.exists()


def test_other_changes_end_no_session(db: None) -> None:
    user = staff("viewer")
    headers, console = bearer(user), client_of(user)
    user.full_name = "Another Name"
    user.balance = 5
    user.save()
    user.groups.add(*user.groups.all())
    assert Client().get("/api/users/me/", headers=headers).status_code == 200
    assert console.get("/admin/").status_code == 200


def test_object_read_before_cannot_bring_ended_sessions_back(db: None) -> None:
    user = member()
    earlier = CustomUser.objects.get(pk=user.pk)
    set_pin(user)
    earlier.full_name = "Written late"
    earlier.save(update_fields=["full_name", "session_epoch"])
    assert CustomUser.objects.get(pk=user.pk).session_epoch == 1
