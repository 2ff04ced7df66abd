"""Tests of the calls and pages that end sessions: change of the PIN, log out everywhere, idle time, lost app."""

from datetime import timedelta

from django.conf import Settings
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from knox.models import AuthToken

from api.console import step_up
from testing.builders import PIN, bearer, member, operator
from testing.console_scenes import ACTOR, client_of, code_of, enrol, log_in, page_text, staff
from users import second_factor
from users.models import CustomUser

JSON = "application/json"


def change(client: Client, headers: dict[str, str], pin: str, new_pin: str) -> tuple[int, str]:
    answer = client.post("/api/users/me/pin/", {"pin": pin, "new_pin": new_pin}, JSON, headers=headers)
    return answer.status_code, answer.json().get("code") or answer.json()["token"]


# --- REST ------------------------------------------------------------------------------------------------------------


def test_changed_pin_ends_other_tokens_and_answers_a_new_one(db: None, client: Client, settings: Settings) -> None:
    settings.PIN_RULES = True
    user = member()
    first, second = bearer(user), bearer(user)
    assert change(client, first, "0000", "8068") == (401, "wrong_credentials")
    assert change(client, first, PIN, "2580") == (400, "bad_pin")
    status, token = change(client, first, PIN, "8068")
    assert status == 200
    assert [client.get("/api/users/me/", headers=headers).status_code for headers in (first, second)] == [401, 401]
    assert client.get("/api/users/me/", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_logout_everywhere_ends_tokens_and_sessions(db: None, client: Client) -> None:
    user = staff("viewer")
    first, second, console = bearer(user), bearer(user), client_of(user)
    assert client.post("/api/users/logout-everywhere/", headers=first).status_code == 204
    assert client.get("/api/users/me/", headers=second).status_code == 401
    assert console.get("/admin/").status_code == 302


def test_known_device_logs_in_over_rest_while_the_number_is_locked(db: None, client: Client) -> None:
    user = member()
    body = {"phone_number": user.phone_number, "pin": PIN}
    device = client.post("/api/users/login/", body, JSON).headers["X-Device"]
    for host in range(5):
        client.post("/api/users/login/", body | {"pin": "0000"}, JSON, REMOTE_ADDR=f"198.51.100.{host}")
    elsewhere = {"REMOTE_ADDR": "203.0.113.5"}
    assert client.post("/api/users/login/", body, JSON, **elsewhere).status_code == 429
    assert client.post("/api/users/login/", body, JSON, headers={"X-Device": device}, **elsewhere).status_code == 200


def test_idle_token_of_staff_ends_and_a_used_one_lives_on(db: None, client: Client, settings: Settings) -> None:
    # given
    settings.IDLE_MINUTES = 30
    headers = bearer(operator())
    token = AuthToken.objects.get()
    soon = timezone.now() + timedelta(minutes=10)
    AuthToken.objects.update(expiry=soon)

    # when
    assert client.get("/api/users/me/", headers=headers).status_code == 200

    # then: the call extended it, but not beyond its eight hours
    token.refresh_from_db()
    assert token.expiry > soon
    AuthToken.objects.update(created=timezone.now() - timedelta(hours=7, minutes=45), expiry=soon)
    client.get("/api/users/me/", headers=headers)
    token.refresh_from_db()
    assert token.expiry <= token.created + timedelta(hours=8)
    AuthToken.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    assert client.get("/api/users/me/", headers=headers).status_code == 401


def test_call_of_a_member_extends_no_token(db: None, client: Client, settings: Settings) -> None:
    settings.IDLE_MINUTES = 30
    headers = bearer(member())
    expiry = AuthToken.objects.get().expiry
    client.get("/api/users/me/", headers=headers)
    assert AuthToken.objects.get().expiry == expiry


# --- the console -----------------------------------------------------------------------------------------------------


def test_console_changes_the_pin_and_keeps_this_session(db: None, client: Client, settings: Settings) -> None:
    settings.PIN_RULES = True
    user = staff("viewer")
    other, headers = client_of(user), bearer(user)
    log_in(client, user)
    form = {"pin": PIN, "new_pin": "739184", "again": "739184"}
    for wrong in (
        {"pin": "0000"},
        {"again": "739185"},
        {"new_pin": "2580", "again": "2580"},
        {"new_pin": "", "again": ""},
    ):
        answer = client.post("/admin/password_change/", form | wrong)
        assert answer.status_code == 409
        assert "739184" not in page_text(answer)
    assert "Your PIN is changed" in page_text(client.post("/admin/password_change/", form))
    assert client.get("/admin/").status_code == 200
    assert other.get("/admin/").status_code == 302
    assert Client().get("/api/users/me/", headers=headers).status_code == 401


def test_wrong_pins_at_the_change_are_counted(db: None) -> None:
    """Before, Django's form could be asked without a limit."""
    client = client_of(staff("viewer"))
    form = {"pin": "0000", "new_pin": "739184", "again": "739184"}
    answers = [page_text(client.post("/admin/password_change/", form)) for _ in range(6)]
    assert "That is not your PIN" in answers[0]
    assert "Too many wrong PINs" in answers[5]


def test_console_logs_out_everywhere(db: None) -> None:
    user = staff("viewer")
    client, other, headers = client_of(user), client_of(user), bearer(user)
    assert "end" in page_text(client.get("/admin/log-out-everywhere/"))
    client.post("/admin/log-out-everywhere/", {"typed": "everywhere"})
    assert [session.get("/admin/").status_code for session in (client, other)] == [302, 302]
    assert Client().get("/api/users/me/", headers=headers).status_code == 401


def test_idle_session_ends_and_live_pages_do_not_keep_it(db: None, settings: Settings) -> None:
    # given
    settings.IDLE_MINUTES = 30
    client = client_of(staff("viewer"))
    assert client.get("/admin/").status_code == 200

    def last_seen(minutes: int) -> None:
        session = client.session
        session[step_up.SEEN_AT] = (timezone.now() - timedelta(minutes=minutes)).isoformat()
        session.save()

    # when: only the script refreshes the page
    last_seen(20)
    assert client.get("/admin/", headers={"X-Fragment": "1"}).status_code == 200
    assert client.session[step_up.SEEN_AT] < (timezone.now() - timedelta(minutes=19)).isoformat()
    assert client.get("/admin/").status_code == 200
    assert client.session[step_up.SEEN_AT] > (timezone.now() - timedelta(minutes=1)).isoformat()
    last_seen(31)

    # then
    assert client.get("/admin/").status_code == 302
    assert "_auth_user_id" not in client.session


def test_console_login_remembers_the_browser(db: None, client: Client) -> None:
    user = staff("viewer")
    log_in(client, user)
    cookie = client.cookies["kasoko_device"]
    assert cookie["httponly"]
    for host in range(5):
        body = {"phone_number": user.phone_number, "pin": "0000"}
        Client().post("/api/users/login/", body, JSON, REMOTE_ADDR=f"198.51.100.{host}")
    form = {"username": user.phone_number, "password": PIN, "next": "/admin/"}
    unknown = Client().post("/admin/login/", form, REMOTE_ADDR="203.0.113.5")
    assert unknown.status_code == 200
    known = Client()
    known.cookies["kasoko_device"] = cookie.value
    assert known.post("/admin/login/", form, REMOTE_ADDR="203.0.113.5").status_code == 302


# --- codes -----------------------------------------------------------------------------------------------------------


def accepted(user: CustomUser, code: str) -> bool:
    form = {"username": user.phone_number, "password": PIN, "code": code, "next": "/admin/"}
    return bool(Client().post("/admin/login/", form).status_code == 302)


def test_blanks_and_dashes_in_a_code_do_not_matter(db: None) -> None:
    user = operator(is_superuser=True)
    codes = enrol(user, timezone.now())
    code = code_of(user)
    assert accepted(user, f" {code[:3]} {code[3:]} ")
    assert accepted(user, codes[0].replace("-", ""))
    assert accepted(user, codes[1].replace("-", " ").upper())
    assert accepted(user, codes[2].replace("-", "\u2013"))
    assert not accepted(user, codes[2])


def test_mistyped_code_makes_no_code_wait(db: None) -> None:
    """Before, a code with one letter too many counted against the recovery codes, and the next one was refused."""
    user = operator(is_superuser=True)
    codes = enrol(user, timezone.now())
    for mistyped in ("12345", "1234567", "12345a", codes[0][:-1] + "z"):
        assert not accepted(user, mistyped)
    assert accepted(user, codes[1])


def test_recovery_code_ends_the_wait_of_the_app(db: None) -> None:
    user = operator(is_superuser=True)
    codes = enrol(user, timezone.now())
    wrong = "000000" if code_of(user) != "000000" else "000001"
    for _ in range(2):
        assert not accepted(user, wrong)
    assert accepted(user, codes[0])
    assert accepted(user, code_of(user))


# --- a lost app ------------------------------------------------------------------------------------------------------


def test_pin_alone_is_not_enough_after_the_app_was_removed(db: None, client: Client) -> None:
    # given
    user = staff("viewer")
    enrol(user, timezone.now())
    headers = bearer(user)
    printed: list[str] = []

    class Screen:
        def write(self, text: str) -> None:
            printed.append(text.strip())

    # when
    call_command("forget_second_factor", user.phone_number, stdout=Screen())
    enrolment_code = printed[1]

    # then: no token and no page for the PIN, although the setting does not ask for codes
    assert Client().get("/api/users/me/", headers=headers).status_code == 401
    body = {"phone_number": user.phone_number, "pin": PIN}
    assert Client().post("/api/users/login/", body, JSON).status_code == 401
    page = log_in(client, user)
    assert "Enter your enrolment code" in page
    assert "Secret:" not in page
    assert client.get("/admin/").status_code == 302
    assert "is wrong" in page_text(client.post("/admin/second-factor/", {"code": "abcd-abcd-abcd-abcd"}))

    # when
    page = page_text(client.post("/admin/second-factor/", {"code": enrolment_code.upper()}, follow=True))
    assert "Secret:" in page
    client.post("/admin/second-factor/", {"code": code_of(user)})

    # then
    assert client.get("/admin/").status_code == 200
    assert second_factor.enrolled(user)
    assert not second_factor.awaits_enrolment(user)


def test_enrolment_code_ends_after_a_day(db: None) -> None:
    user, now = staff("viewer"), timezone.now()
    code = second_factor.forget(user=user, by=ACTOR, at=now)
    assert second_factor.may_enrol(user, code, at=now + timedelta(hours=23))
    assert not second_factor.may_enrol(user, code, at=now + timedelta(hours=24))
    assert second_factor.awaits_enrolment(user)
