"""Tests of users/admin.py: the form that adds a member."""

import pytest
from django.test import Client

from testing.builders import operator
from users.models import CustomUser


@pytest.mark.parametrize("typed", ["0712345678", "+254712345678", "+254 712 345 678"])
def test_admin_form_adds_a_member_from_any_form_of_the_phone(db: None, typed: str) -> None:
    console = Client()
    console.force_login(operator(is_superuser=True))
    form = {"phone_number": typed, "full_name": "Amina", "usable_password": "true", "password1": "Tembo-9182"}

    answer = console.post("/admin/users/customuser/add/", form | {"password2": "Tembo-9182"})

    assert answer.status_code == 302, answer.context["errors"]
    assert CustomUser.objects.get(full_name="Amina").phone_number == "254712345678"
