"""Tests of api/settings.py and api/environment.py: accepted and refused values, in a fresh process."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

ROOT = Path(__file__).resolve().parents[2]

# The guide's part 2.3, word for word.
GUIDES_ENV = """
# Redis
CELERY_BROKER_URL=redis://127.0.0.1:6379/0
CELERY_RESULT_BACKEND=redis://127.0.0.1:6379/1

# M-Pesa Daraja (Sandbox first, then production)
MPESA_PRODUCTION=False
MPESA_CONSUMER_KEY=your_consumer_key
MPESA_CONSUMER_SECRET=your_consumer_secret
MPESA_INITIATOR_NAME=testapi
MPESA_SECURITY_CREDENTIAL_ENCRYPTED=your_encrypted_credential  # See section 2.5
MPESA_PAYBILL=600000
MPESA_CALLBACK_URL=https://kasoko.app/api/payments/b2c-callback/

# Payouts
PAYOUT_PLATFORM_FEE_PCT=5.00
PAYOUT_MIN_AMOUNT=10

# Celery
CELERY_WORKER_CONCURRENCY=4
"""

PRODUCTION = {
    "MPESA_PRODUCTION": "True",
    "DEBUG": "False",
    "DJANGO_SECRET_KEY": "0123456789abcdef-" * 3,
    "CALLBACK_TOKEN_KEY": "fedcba9876543210+" * 3,
    "ALLOWED_HOSTS": "kasoko.app",
    "DATABASE_URL": "postgres://kasoko:secret@127.0.0.1:1/kasoko",
    "CELERY_BROKER_URL": "redis://:secret@127.0.0.1:1/0",
    "MPESA_CONSUMER_KEY": "key",
    "MPESA_CONSUMER_SECRET": "secret",
    "MPESA_INITIATOR_NAME": "kasoko",
    "MPESA_SECURITY_CREDENTIAL_ENCRYPTED": "credential==",
    "MPESA_PAYBILL": "600123",
    "MPESA_CALLBACK_URL": "https://kasoko.app/api/payments/b2c-callback/",
}
OURS = (
    "MPESA_",
    "PAYOUT_",
    "CELERY_",
    "DJANGO_",
    "DATABASE_",
    "CACHE_URL",
    "CALLBACK_TOKEN_KEY",
    "TRUSTED_PROX",
    "CSRF_",
    "DEBUG",
    "ALLOWED_HOSTS",
    "KASOKO_",
    "STAFF_",
    "STEP_UP_",
)


def start(given: dict[str, str], expression: str = "None", env_file: str = os.devnull) -> subprocess.CompletedProcess:
    """Import the settings with only `given` of our variables set, and print an expression of them.

    No servers answer at the given addresses: reading the settings does not connect.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    code = f"import django; from django.conf import settings as s; django.setup(); print({expression})"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=inherited | {"DJANGO_SETTINGS_MODULE": "api.settings", "KASOKO_ENV_FILE": env_file} | given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """Return a function that runs the settings file with only `given` set and returns the text of its refusal."""

    def refuse(given: dict[str, str]) -> str:
        for name in [name for name in os.environ if name.startswith(OURS)]:
            monkeypatch.delenv(name)
        for name, value in ({"KASOKO_ENV_FILE": os.devnull} | given).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ImproperlyConfigured) as refused:
            runpy.run_path(str(ROOT / "api" / "settings.py"))
        return str(refused.value)

    return refuse


Refusal = Callable[[dict[str, str]], str]
SERVERS = {"DATABASE_URL": PRODUCTION["DATABASE_URL"], "CELERY_BROKER_URL": PRODUCTION["CELERY_BROKER_URL"]}


def test_env_file_of_the_guide_starts(tmp_path: Path) -> None:
    # given
    env_file = tmp_path / "env"
    env_file.write_text(GUIDES_ENV)

    # when
    ended = start(
        {"DATABASE_URL": SERVERS["DATABASE_URL"]},
        "[s.CELERY_BROKER_URL, s.CELERY_RESULT_BACKEND, s.MPESA_BASE_URL, s.MPESA_SECURITY_CREDENTIAL_ENCRYPTED, "
        "str(s.PAYOUT_PLATFORM_FEE_PCT), s.PAYOUT_MIN_AMOUNT, s.CELERY_WORKER_CONCURRENCY]",
        env_file=str(env_file),
    )

    # then
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(
        [
            "redis://127.0.0.1:6379/0",
            "redis://127.0.0.1:6379/1",
            "https://sandbox.safaricom.co.ke",
            "your_encrypted_credential",
            "5.00",
            10,
            4,
        ]
    )


def test_example_environment_of_production_starts() -> None:
    # when
    ended = start(PRODUCTION, "[s.MPESA_BASE_URL, s.SECURE_SSL_REDIRECT, s.SESSION_COOKIE_SECURE, s.DEBUG]")

    # then
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(["https://api.safaricom.co.ke", True, True, False])


@pytest.mark.parametrize(
    ("given", "required"),
    [
        ({}, False),
        ({"STAFF_TOTP": "on"}, True),
        (PRODUCTION | {"MPESA_PRODUCTION": "False", "PROFILE": "production"}, True),
        ({"PROFILE": "development"}, False),
    ],
)
def test_staff_need_a_code_in_production_or_if_the_setting_says_so(given: dict[str, str], required: bool) -> None:
    ended = start(SERVERS | given, "s.STAFF_TOTP")
    assert (ended.returncode, ended.stdout.strip()) == (0, str(required)), ended.stderr


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        (PRODUCTION, True),
        (PRODUCTION | {"TRUSTED_PROXIES": "203.0.113.7"}, False),
        (PRODUCTION | {"TRUSTED_PROXY_HOPS": "1"}, False),
        (SERVERS, False),
    ],
)
def test_production_without_known_proxies_is_told_at_start(given: dict[str, str], warned: bool) -> None:
    # when
    checked = "[m.id for m in __import__('django.core.checks').core.checks.run_checks() if m.id == 'kasoko.W001']"
    ended = start(given, checked)
    served = start(given, "__import__('api.wsgi') and None")

    # then
    assert ended.stdout.strip() == str(["kasoko.W001"] if warned else []), ended.stderr
    assert ("TRUSTED_PROXIES" in served.stderr + served.stdout) is warned


def test_callback_tokens_keep_their_key_when_the_secret_key_is_replaced() -> None:
    given = PRODUCTION | {"DJANGO_SECRET_KEY": "another key, " * 4}
    assert start(given, "s.CALLBACK_TOKEN_KEY").stdout.strip() == PRODUCTION["CALLBACK_TOKEN_KEY"]


def test_callback_tokens_use_the_secret_key_outside_production() -> None:
    given = SERVERS | {"DJANGO_SECRET_KEY": "d" * 50}
    assert start(given, "s.CALLBACK_TOKEN_KEY").stdout.strip() == "d" * 50


def test_owner_of_the_tables_is_the_application_unless_its_url_is_given() -> None:
    assert start(SERVERS, "s.DATABASE_OWNER['USER']").stdout.strip() == "kasoko"
    given = SERVERS | {"DATABASE_OWNER_URL": "postgres://owner:secret@127.0.0.1:1/kasoko"}
    assert start(given, "s.DATABASE_OWNER['USER'], s.DATABASES['default']['USER']").stdout.split() == [
        "owner",
        "kasoko",
    ]


@pytest.mark.parametrize(
    ("changes", "variable", "rule"),
    [
        ({"DEBUG": "True"}, "DEBUG", "must be False"),
        ({"DJANGO_SECRET_KEY": ""}, "DJANGO_SECRET_KEY", "must be set"),
        ({"DJANGO_SECRET_KEY": "short"}, "DJANGO_SECRET_KEY", "at least 40 characters"),
        ({"CALLBACK_TOKEN_KEY": ""}, "CALLBACK_TOKEN_KEY", "must be set"),
        ({"CALLBACK_TOKEN_KEY": "short"}, "CALLBACK_TOKEN_KEY", "at least 40 characters"),
        ({"DJANGO_SECRET_KEY": "s" * 50}, "DJANGO_SECRET_KEY", "must be random"),
        ({"CALLBACK_TOKEN_KEY": "abc" * 20}, "CALLBACK_TOKEN_KEY", "must be random"),
        ({"DJANGO_SECRET_KEY_FALLBACKS": "old"}, "DJANGO_SECRET_KEY_FALLBACKS", "at least 40 characters"),
        ({"TRUSTED_PROXIES": "10.0.0.1,0.0.0.0/0"}, "TRUSTED_PROXIES", "not of the internet"),
        ({"TRUSTED_PROXIES": "::/0"}, "TRUSTED_PROXIES", "not of the internet"),
        ({"MPESA_CALLBACK_SOURCES": "128.0.0.0/1"}, "MPESA_CALLBACK_SOURCES", "not of the internet"),
        ({"CSRF_TRUSTED_ORIGINS": "https://*.co.ke"}, "CSRF_TRUSTED_ORIGINS", "without *"),
        ({"CSRF_TRUSTED_ORIGINS": "http://kasoko.app"}, "CSRF_TRUSTED_ORIGINS", "must be https"),
        ({"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS", "must be set"),
        ({"ALLOWED_HOSTS": "kasoko.app,*"}, "ALLOWED_HOSTS", "must name the hosts"),
        ({"DATABASE_URL": ""}, "DATABASE_URL", "must be set"),
        ({"CELERY_BROKER_URL": ""}, "CELERY_BROKER_URL", "must be set"),
        ({"STAFF_TOTP": "off"}, "STAFF_TOTP", "must be on"),
        ({"MPESA_CONSUMER_KEY": ""}, "MPESA_CONSUMER_KEY", "must be set"),
        ({"MPESA_CONSUMER_KEY": "your_consumer_key"}, "MPESA_CONSUMER_KEY", "must be set"),
        ({"MPESA_CONSUMER_SECRET": "your_consumer_secret"}, "MPESA_CONSUMER_SECRET", "must be set"),
        ({"MPESA_INITIATOR_NAME": ""}, "MPESA_INITIATOR_NAME", "must be set"),
        (
            {"MPESA_SECURITY_CREDENTIAL_ENCRYPTED": "your_encrypted_credential"},
            "MPESA_SECURITY_CREDENTIAL_ENCRYPTED",
            "must be set",
        ),
        ({"MPESA_PAYBILL": ""}, "MPESA_PAYBILL", "must be"),
        ({"MPESA_PAYBILL": "till 5"}, "MPESA_PAYBILL", "5 to 7 digits"),
        ({"MPESA_BASE_URL": "https://sandbox.safaricom.co.ke"}, "MPESA_BASE_URL", "must be https://api.safaricom"),
        ({"MPESA_BASE_URL": "http://127.0.0.1:9"}, "MPESA_BASE_URL", "must be https://api.safaricom"),
        ({"MPESA_CALLBACK_URL": ""}, "MPESA_CALLBACK_URL", "must"),
        (
            {"MPESA_CALLBACK_URL": "http://kasoko.app/api/payments/b2c-callback/"},
            "MPESA_CALLBACK_URL",
            "https",
        ),
    ],
    ids=lambda value: "-".join(f"{name}={given}" for name, given in value.items()) if isinstance(value, dict) else "",
)
def test_production_with_a_wrong_value_refuses_to_start(
    refusal: Refusal, changes: dict[str, str], variable: str, rule: str
) -> None:
    # when
    sentence = refusal(PRODUCTION | changes)

    # then
    assert variable in sentence
    assert rule in sentence


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"DEBUG": "True"}, "DEBUG"),
        ({"STAFF_TOTP": "False"}, "STAFF_TOTP"),
        ({"DJANGO_SECRET_KEY": "short"}, "DJANGO_SECRET_KEY"),
        ({"CALLBACK_TOKEN_KEY": ""}, "CALLBACK_TOKEN_KEY"),
        ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS"),
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
    ],
)
def test_production_rules_bind_with_a_simulator_too(refusal: Refusal, changes: dict[str, str], variable: str) -> None:
    assert variable in refusal(PRODUCTION | {"MPESA_PRODUCTION": "False", "PROFILE": "production"} | changes)


def test_real_money_forces_the_production_rules() -> None:
    ended = start(PRODUCTION | {"PROFILE": "development"}, "s.PROFILE")
    assert ended.stdout.strip() == "production", ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROFILE", "staging"),
        ("MPESA_PRODUCTION", "maybe"),
        ("DEBUG", "2"),
        ("STAFF_TOTP", "maybe"),
        ("STEP_UP_MINUTES", "0"),
        ("STEP_UP_MINUTES", "61"),
        ("PAYOUT_PLATFORM_FEE_PCT", "five"),
        ("PAYOUT_PLATFORM_FEE_PCT", "100.01"),
        ("PAYOUT_PLATFORM_FEE_PCT", "5.005"),
        ("PAYOUT_PLATFORM_FEE_PCT", "NaN"),
        ("PAYOUT_MIN_AMOUNT", "0"),
        ("PAYOUT_MIN_AMOUNT", "9.99"),
        ("PAYOUT_MIN_AMOUNT", "١٠"),
        ("PAYOUT_MAX_AMOUNT", "9"),
        ("PAYOUT_DAY_LIMIT", "249999"),
        ("RESOLVE_APPROVAL_ABOVE", "a lot"),
        ("RESOLVE_APPROVAL_ABOVE", "-1"),
        ("SETTLEMENT_HOLD_MINUTES", "soon"),
        ("SETTLEMENT_HOLD_MINUTES", "0,100000:"),
        ("SETTLEMENT_HOLD_MINUTES", "NaN:5"),
        ("SETTLEMENT_HOLD_MINUTES", "-1:5"),
        ("SETTLEMENT_HOLD_MINUTES", "30,0:60"),
        ("SETTLEMENT_HOLD_MINUTES", "10081"),
        ("FLOAT_EVERY_MINUTES", "0"),
        ("PAYOUT_TPS", "0"),
        ("PAYOUT_TPS", "inf"),
        ("PAYOUT_QUERY_AFTER", "-1"),
        ("PAYOUT_QUERY_GAP", "0"),
        ("PAYOUT_REVIEW_AFTER", "1e5"),
        ("PAYOUT_RESEND_HORIZON", "86401"),
        ("PAYOUT_MAX_ATTEMPTS", "0"),
        ("PAYOUT_RETRY_AFTER", "15s"),
        ("PAYOUT_DESTINATION", "bank"),
        ("CELERY_WORKER_CONCURRENCY", "0"),
        ("SWEEP_EVERY_SECONDS", "31"),
        ("MPESA_CONFIRM_ABOVE", "-0.01"),
        ("MPESA_TIMEOUT_SECONDS", "0.1"),
        ("MPESA_COMMAND_ID", "BusinessPayBill"),
        ("MPESA_CALLBACK_SOURCES", "196.201.214.200,safaricom"),
        ("MPESA_CALLBACK_URL", "ftp://kasoko.app/api/payments/b2c-callback/"),
        ("MPESA_CALLBACK_URL", "https://[::1/api/payments/b2c-callback/"),
        ("MPESA_CALLBACK_URL", "https://kasoko.app:99999/api/payments/b2c-callback/"),
        ("MPESA_BASE_URL", "http://[::1"),
        ("MPESA_BASE_URL", "http://127.0.0.1:99999"),
        ("DATABASE_URL", "postgres://[::1/kasoko"),
        ("CELERY_BROKER_URL", "rediss://[::1/0"),
        ("MPESA_CALLBACK_URL", "https://kasoko.app/api/payments/b2c-callback"),
        ("MPESA_CALLBACK_URL", "https://kasoko.app/api/payments/b2c-callback/?a=1"),
        ("MPESA_CALLBACK_URL", "https://mpesa.kasoko.app/api/payments/b2c-callback/"),
        ("TRUSTED_PROXY_HOPS", "6"),
        ("TRUSTED_PROXIES", "10.0.0.1,proxy.internal"),
        ("DATABASE_URL", "sqlite:///db.sqlite3"),
    ],
)
def test_wrong_value_is_refused_by_the_name_of_its_variable(refusal: Refusal, name: str, value: str) -> None:
    assert name in refusal(SERVERS | {name: value})


def test_refused_start_exits_with_1_and_prints_the_refusal() -> None:
    # when
    ended = start(SERVERS | {"PAYOUT_TPS": "0"})

    # then
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        "django.core.exceptions.ImproperlyConfigured: PAYOUT_TPS must be a number from 0.1 to 10000, not '0'."
    )


def test_blank_value_counts_as_not_set() -> None:
    # when
    ended = start(SERVERS | {"PAYOUT_RETRY_AFTER": "", "PAYOUT_TPS": " "}, "[s.PAYOUT_RETRY_AFTER, int(s.PAYOUT_TPS)]")

    # then
    assert ended.stdout.strip() == str([15, 5])


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "rediss://user@127.0.0.1:1/0", "redis://:@127.0.0.1:1/0"])
def test_redis_without_password_is_refused_in_production(refusal: Refusal, name: str, url: str) -> None:
    assert f"{name} must have a password in production" in refusal(PRODUCTION | {name: url})


def test_redis_without_password_starts_in_development() -> None:
    assert (
        start(SERVERS | {"CACHE_URL": "redis://127.0.0.1:1/3"}, "s.REDIS_URL").stdout.strip() == "redis://127.0.0.1:1/3"
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUDIT_HEADS_EMAIL", "auditor@example.com,nobody", "'nobody', which is not an e-mail address"),
        ("AUDIT_HEADS_EMAIL", "auditor@example.com", "needs the server that sends e-mail"),
        ("AUDIT_HEADS_WEBHOOK", "http://example.com/", "must begin with https://"),
        ("AUDIT_HEADS_WEBHOOK", "https://10.0.0.1/", "leads into a private network"),
        ("AUDIT_HEADS_WEBHOOK", "https://user:secret@example.com/", "must not contain a user name"),
        ("EMAIL_URL", "imap://mail.example.com", "must be smtps://, smtp+tls:// or smtp://"),
        ("EMAIL_URL", "smtp://mail.example.com", "must be smtps:// or smtp+tls:// in production"),
    ],
)
def test_wrong_place_for_the_audit_heads_is_refused(refusal: Refusal, name: str, value: str, words: str) -> None:
    stderr = refusal(PRODUCTION | {name: value})
    assert name in stderr
    assert words in stderr
    assert "secret" not in stderr


def test_mail_server_is_read_from_its_url() -> None:
    url = {"EMAIL_URL": "smtp+tls://us%40er:se%2Fcret@mail.example.com", "AUDIT_HEADS_EMAIL": "a@example.com"}
    shown = "[s.EMAIL_HOST, s.EMAIL_PORT, s.EMAIL_HOST_USER, s.EMAIL_HOST_PASSWORD, s.EMAIL_USE_TLS, s.EMAIL_USE_SSL]"
    assert start(SERVERS | url, shown).stdout.strip() == "['mail.example.com', 587, 'us@er', 'se/cret', True, False]"


def test_broker_other_than_redis_needs_a_cache_url(refusal: Refusal) -> None:
    # given
    rabbit = SERVERS | {"CELERY_BROKER_URL": "amqp://guest@127.0.0.1:1//"}

    # then
    assert "CACHE_URL must be a redis:// URL" in refusal(rabbit)
    assert start(rabbit | {"CACHE_URL": "redis://127.0.0.1:1/3"}, "s.REDIS_URL").stdout.strip() == (
        "redis://127.0.0.1:1/3"
    )


def test_outside_production_base_url_may_be_any_host() -> None:
    # when
    ended = start(SERVERS | {"MPESA_BASE_URL": "http://127.0.0.1:9/"}, "s.MPESA_BASE_URL")

    # then
    assert ended.stdout.strip() == "http://127.0.0.1:9"


def test_exported_variable_wins_over_env_file(tmp_path: Path) -> None:
    # given
    env_file = tmp_path / "env"
    env_file.write_text("PAYOUT_MIN_AMOUNT=20\nPAYOUT_TPS=7\n")

    # when
    ended = start(
        SERVERS | {"PAYOUT_MIN_AMOUNT": "30"}, "[s.PAYOUT_MIN_AMOUNT, int(s.PAYOUT_TPS)]", env_file=str(env_file)
    )

    # then
    assert ended.stdout.strip() == str([30, 7])


def test_holds_and_approvals_are_off_by_default_and_depend_on_the_pool() -> None:
    # given
    shown = "[s.RESOLVE_APPROVAL_ABOVE, [(int(pool), minutes) for pool, minutes in s.SETTLEMENT_HOLD_MINUTES]]"

    # then
    assert start(SERVERS, shown).stdout.strip() == "[None, [(0, 0)]]"
    given = {"RESOLVE_APPROVAL_ABOVE": "100000", "SETTLEMENT_HOLD_MINUTES": "1000000:120, 0, 100000:30"}
    assert start(SERVERS | given, shown).stdout.strip() == "[Decimal('100000'), [(0, 0), (100000, 30), (1000000, 120)]]"


@pytest.mark.django_db
def test_database_sessions_compile_no_statements() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT setting, reset_val, boot_val FROM pg_settings WHERE name = 'jit'")
        setting, of_session, default = cursor.fetchone()
    assert (setting, of_session, default) == ("off", "off", "on")


@pytest.mark.parametrize(
    "url",
    [
        "https://api.safaricom.co.ke",
        "https://API.Safaricom.co.ke.",
        "https://user@api.safaricom.co.ke",
        "https://api.safaricom.co.ke:443/",
        "https://api%2Esafaricom.co.ke",
        "https://api\u3002safaricom\u3002co\u3002ke",
        "https://\uff41pi.safaricom.co.ke",
        "https://apistg.safaricom.co.ke",
        "http://sandbox.safaricom.co.ke@api.safaricom.co.ke",
        "https://api.safari\u00adcom.co.ke",
        "https://api.safaricom.co.ke\u200b",
        "https://api.safaricom.co.ke.\u2060",
    ],
)
def test_live_host_is_refused_outside_production_in_every_spelling(refusal: Refusal, url: str) -> None:
    assert "MPESA_PRODUCTION=True" in refusal(SERVERS | {"MPESA_BASE_URL": url})
