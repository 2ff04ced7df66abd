"""Tests of `manage.py createsuperuser`: it asks twice for a PIN, and calls it a PIN."""

import getpass
import sys
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from users.models import CustomUser

Typed = Callable[..., list[str]]


class Terminal(StringIO):
    """Standard input that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Answer the prompts of input() and of getpass(), and return the list of the prompts."""
    prompts: list[str] = []

    def answer(*, lines: tuple[str, ...] = (), pins: tuple[str, ...] = ()) -> list[str]:
        def answering(answers: Iterator[str]) -> Callable[[str], str]:
            return lambda prompt: (prompts.append(prompt), next(answers))[1]

        monkeypatch.setattr("builtins.input", answering(iter(lines)))
        monkeypatch.setattr(getpass, "getpass", answering(iter(pins)))
        return prompts

    return answer


def create(**options: object) -> tuple[str, str]:
    out, errors = StringIO(), StringIO()
    call_command("createsuperuser", stdin=Terminal(), stdout=out, stderr=errors, **options)
    return out.getvalue(), errors.getvalue()


def test_prompts_ask_for_a_pin_by_that_name(db: None, typed: Typed) -> None:
    prompts = typed(lines=("0712 345 678", "Amina"), pins=("4321", "4321"))

    out, errors = create()

    assert prompts == ["Phone number: ", "Full name: ", "PIN: ", "PIN (again): "]
    superuser = CustomUser.objects.get(phone_number="254712345678")
    assert (superuser.full_name, superuser.is_superuser, superuser.is_staff) == ("Amina", True, True)
    assert superuser.check_password("4321")
    assert out.startswith("Superuser created: Amina (")
    assert "assword" not in out + errors


def test_wrong_answers_are_explained_and_asked_again(db: None, typed: Typed) -> None:
    CustomUser.objects.create_user(phone_number="0712345678", pin="1234")
    prompts = typed(lines=("12", "0712345678", "0712345679", ""), pins=("", "4321", "4322", "4321", "4321"))

    _, errors = create()

    assert prompts.count("Phone number: ") == 3
    assert "That phone number is already taken." in errors
    assert "The PIN must not be blank." in errors
    assert "The two PINs differ." in errors
    assert CustomUser.objects.get(phone_number="254712345679").check_password("4321")


@pytest.mark.parametrize("phone_number", ["12", "0712345678"])
def test_unusable_phone_option_creates_nobody(db: None, typed: Typed, phone_number: str) -> None:
    CustomUser.objects.create_user(phone_number="0712345678", pin="1234")
    typed(pins=("4321", "4321"))

    with pytest.raises(CommandError, match="No superuser was created"):
        create(phone_number=phone_number, full_name="Amina")

    assert not CustomUser.objects.filter(is_superuser=True).exists()


def test_noinput_takes_the_pin_from_the_environment(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "4321")
    monkeypatch.setattr(sys, "stdin", StringIO())

    call_command("createsuperuser", interactive=False, verbosity=0, phone_number="0712345678", full_name="Amina")

    assert CustomUser.objects.get(phone_number="254712345678").check_password("4321")


def test_generateschema_is_not_offered() -> None:
    with pytest.raises(CommandError, match="Unknown command: 'generateschema'"):
        call_command("generateschema")


# --- without a terminal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["254712345678", "0712345678", "+254712345678", "0712 345 678", "+254 712 345 678"])
def test_createsuperuser_takes_the_pin_from_the_environment(
    db: None, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "4321")

    call_command("createsuperuser", interactive=False, phone_number=typed, full_name="Root", stdout=StringIO())

    user = CustomUser.objects.get()
    assert (user.phone_number, user.full_name) == ("254712345678", "Root")
    assert user.is_staff
    assert user.is_superuser
    assert user.check_password("4321")


def test_createsuperuser_refuses_an_invalid_phone_number(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "4321")
    with pytest.raises(CommandError, match="Kenyan mobile number"):
        call_command("createsuperuser", interactive=False, phone_number="admin", full_name="Root", stdout=StringIO())
    assert CustomUser.objects.count() == 0
