"""Tests of users/roles.py: migrations create exactly the permissions and roles of the tables."""

from importlib import import_module

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission

from users import roles


@pytest.fixture
def renaming() -> object:
    return import_module("users.migrations.0006_permission_names")


def stored_names() -> dict[str, str]:
    codenames = roles.PERMISSIONS.keys()
    return dict(Permission.objects.filter(codename__in=codenames).values_list("codename", "name"))


def test_migrated_permissions_have_their_display_names(db: None) -> None:
    assert stored_names() == roles.PERMISSIONS


def test_migrated_roles_have_their_permissions(db: None) -> None:
    for name, codenames in roles.ROLES.items():
        held = Group.objects.get(name=name).permissions.values_list("codename", flat=True)
        assert set(held) == codenames


@pytest.mark.usefixtures("as_owner")
def test_renaming_migration_replaces_old_name_and_roles_keep_permission(db: None, renaming: object) -> None:
    # given
    Permission.objects.filter(codename="view_console").update(name="See payouts and limbo")
    holders = set(Group.objects.filter(permissions__codename="view_console").values_list("name", flat=True))

    # when
    renaming.rename_permissions(apps, None)

    # then
    assert stored_names() == roles.PERMISSIONS
    assert set(Group.objects.filter(permissions__codename="view_console").values_list("name", flat=True)) == holders
    assert holders == set(roles.ROLES)
