"""Settings of Django and of the project, read once from the environment. `.env.example` explains each.

With a wrong value the process does not start; the error names the variable and the rule.
"""

import os
import secrets
from datetime import timedelta
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from api import embedded
from api.beat_schedule import beat_schedule
from api.console_theme import UNFOLD as UNFOLD
from api.environment import (
    REDIS_SCHEMES,
    addresses,
    decimal,
    flag,
    host_of,
    mail_server,
    minutes_by_pool_size,
    networks,
    one_of,
    postgres_url,
    public_url,
    redis_url,
    refuse_wide,
    stages,
    strong_key,
    text,
    url_parts,
    whole,
    words,
)
from payments import failpoints

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = BASE_DIR / ".kasoko"

load_dotenv(os.environ.get("KASOKO_ENV_FILE", BASE_DIR / ".env"))

# --- production or not -----------------------------------------------------------------------------------------------

# MPESA_PRODUCTION chooses M-Pesa's host. PROFILE chooses the rules: production has second factors, two people for large
# acts, and no weak settings. Real money forces the production rules; a simulator may be used under them too.
MPESA_PRODUCTION = flag("MPESA_PRODUCTION", False)
PROFILE = "production" if MPESA_PRODUCTION else one_of("PROFILE", "development", ("development", "production"))
PRODUCTION = PROFILE == "production"
DEBUG = flag("DEBUG", False)
if PRODUCTION:
    if DEBUG:
        raise ImproperlyConfigured("DEBUG must be False in production.")
    for required in ("DJANGO_SECRET_KEY", "CALLBACK_TOKEN_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "CELERY_BROKER_URL"):
        if not text(required):
            raise ImproperlyConfigured(f"{required} must be set in production.")

# Without these two URLs the project runs its own PostgreSQL or Redis under .kasoko/. Production must set both.
# The project's own PostgreSQL has two roles, so it comes with DATABASE_OWNER_URL.
_missing = {"postgres": not text("DATABASE_URL"), "redis": not text("CELERY_BROKER_URL")}
if any(_missing.values()):
    for _name, _url in embedded.ensure(BASE_DIR, postgres=_missing["postgres"], redis=_missing["redis"]).items():
        if not text(_name):
            os.environ[_name] = _url


def _secret_key() -> str:
    """Return the given key. Outside production, if none is given, create one in `.kasoko/secret_key` at first start."""
    if text("DJANGO_SECRET_KEY"):
        return text("DJANGO_SECRET_KEY")
    path = STATE_DIR / "secret_key"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(50))
    except FileExistsError:
        pass
    return path.read_text(encoding="ascii")


STATE_DIR.mkdir(mode=0o700, exist_ok=True)
SECRET_KEY = _secret_key()
# The key of the tokens in callback addresses. It stays when DJANGO_SECRET_KEY is replaced, so that the results of open
# requests still arrive.
CALLBACK_TOKEN_KEY = text("CALLBACK_TOKEN_KEY", SECRET_KEY)
# The key of personal texts in the database, beside the secret of each member there. It never changes, or nobody can
# read the texts again.
PERSONAL_DATA_KEY = text("PERSONAL_DATA_KEY", CALLBACK_TOKEN_KEY)
SECRET_KEY_FALLBACKS = words("DJANGO_SECRET_KEY_FALLBACKS")
if PRODUCTION:
    strong_key("DJANGO_SECRET_KEY", SECRET_KEY)
    strong_key("CALLBACK_TOKEN_KEY", CALLBACK_TOKEN_KEY)
    strong_key("PERSONAL_DATA_KEY", PERSONAL_DATA_KEY)
    for _key in SECRET_KEY_FALLBACKS:  # An old key signs sessions as well as the new one.
        strong_key("DJANGO_SECRET_KEY_FALLBACKS", _key)
ALLOWED_HOSTS = words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
if PRODUCTION and "*" in ALLOWED_HOSTS:
    raise ImproperlyConfigured("ALLOWED_HOSTS must name the hosts, not *, in production.")
CSRF_TRUSTED_ORIGINS = words("CSRF_TRUSTED_ORIGINS")
if MPESA_PRODUCTION and any("*" in origin or not origin.startswith("https://") for origin in CSRF_TRUSTED_ORIGINS):
    raise ImproperlyConfigured("CSRF_TRUSTED_ORIGINS must be https:// origins without * when MPESA_PRODUCTION is True.")

# --- Django ----------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    # Unfold comes before the admin because it replaces the admin's templates. BasicAppConfig keeps our own admin site.
    "unfold.apps.BasicAppConfig",
    "api.apps.AdminSiteConfig",
    # knox and django_otp come before `users`, because users/admin.py removes their models from the admin.
    "knox",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    # `users` comes before django.contrib.auth, because the `createsuperuser` of `users` replaces Django's.
    "users",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    # rest_framework is not here. As an app it adds browsable pages, which we do not serve, and a broken generateschema.
    "api.apps.ConsoleConfig",
    "api.apps.ApiConfig",
    "markets",
    "payments",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "api.security.security_headers",
    "api.rest.lengths.refuse_bodies_without_length",
]
ROOT_URLCONF = "api.urls"
WSGI_APPLICATION = "api.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_USER_MODEL = "users.CustomUser"
AUTHENTICATION_BACKENDS = ["users.backends.PinBackend"]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "Africa/Nairobi"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = STATE_DIR / "static"
# Outside production static files are served from the packages, so nobody has to run collectstatic first.
WHITENOISE_USE_FINDERS = not MPESA_PRODUCTION
if WHITENOISE_USE_FINDERS:
    STATIC_ROOT.mkdir(mode=0o700, exist_ok=True)  # WhiteNoise warns if it is missing.
WHITENOISE_AUTOREFRESH = False
# A redirected callback would lose its body, so a path without its slash answers 404.
APPEND_SLASH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024
SESSION_COOKIE_AGE = 12 * 3_600
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Strict"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = MPESA_PRODUCTION
SECURE_SSL_REDIRECT = MPESA_PRODUCTION
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
SECURE_HSTS_SECONDS = 31_536_000 if MPESA_PRODUCTION else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = MPESA_PRODUCTION
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Addresses of the proxies in front of us, and the number of X-Forwarded-For entries that they add, from the right.
TRUSTED_PROXIES = networks("TRUSTED_PROXIES", "")
TRUSTED_PROXY_HOPS = whole("TRUSTED_PROXY_HOPS", 0, low=0, high=5)
if PRODUCTION:
    refuse_wide("TRUSTED_PROXIES", TRUSTED_PROXIES)
if TRUSTED_PROXIES or TRUSTED_PROXY_HOPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# --- PostgreSQL ------------------------------------------------------------------------------------------------------

_connection, _options = postgres_url("DATABASE_URL")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        **_connection,
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            **_options,
            "connect_timeout": 5,
            # Our statements disable some kinds of plans, so their estimated costs are high. PostgreSQL's default would
            # compile each of them for a tenth of a second (docs/bench.md, S9).
            "options": "-c statement_timeout=30s -c lock_timeout=5s -c idle_in_transaction_session_timeout=60s"
            " -c jit=off",
        },
    }
}
# The login of the application, and of the owner of the tables. Only migrate and database_roles use the owner's
# (api/database_owner.py). Without it, and outside production only, the application owns its tables.
DATABASE_APPLICATION = _connection
DATABASE_OWNER = postgres_url("DATABASE_OWNER_URL")[0] if text("DATABASE_OWNER_URL") else _connection

# --- Redis and Celery ------------------------------------------------------------------------------------------------

# Celery prefers the environment to the settings, so the URLs are corrected there too.
for _name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"):
    os.environ[_name] = redis_url(_name, production=PRODUCTION)
REDIS_URL = text("CACHE_URL") or (
    text("CELERY_BROKER_URL") if text("CELERY_BROKER_URL").startswith(REDIS_SCHEMES) else ""
)
if not REDIS_URL.startswith(REDIS_SCHEMES):
    raise ImproperlyConfigured("CACHE_URL must be a redis:// URL. Set it if CELERY_BROKER_URL is not Redis.")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "kasoko",
        "OPTIONS": {
            "serializer": "api.cache_serializer.SignedJson",
            "socket_connect_timeout": 2,
            "socket_timeout": 2,
        },
    }
}
CELERY_BROKER_URL = text("CELERY_BROKER_URL")
CELERY_RESULT_BACKEND = text("CELERY_RESULT_BACKEND") or None
CELERY_TIMEZONE = "Africa/Nairobi"
CELERY_TASK_IGNORE_RESULT = True  # Only a settlement's result is kept (payments/settlement/task_results.py).
# A result that cannot be stored is stored by a later sweep, so no task waits long for it.
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"retry_policy": {"timeout": 1.0, "max_retries": 1}}
CELERY_REDIS_SOCKET_CONNECT_TIMEOUT = 2
CELERY_REDIS_SOCKET_TIMEOUT = 5
CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED = False
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_CONSUMER = "api.worker_consumer:Consumer"
CELERY_TASK_ACKS_LATE = CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CONCURRENCY = whole("CELERY_WORKER_CONCURRENCY", 4, low=1, high=256)
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 10
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
# Without a broker, publishing fails at once and the request continues: the next sweep does the same work.
CELERY_TASK_PUBLISH_RETRY = False
CELERY_BROKER_CONNECTION_TIMEOUT = 2
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 900,
    "unacked_restore_throttle": 1,
    "unacked_restore_interval": 10,
    "max_connections": 100,
    "socket_connect_timeout": 2,
    "socket_timeout": 30,
    "socket_keepalive": True,
}
CELERY_BEAT_SCHEDULER = "api.beat_scheduler:MemoryScheduler"
SWEEP_EVERY_SECONDS = whole("SWEEP_EVERY_SECONDS", 5, low=1, high=30)


CELERY_BEAT_SCHEDULE = beat_schedule(
    sweep_seconds=SWEEP_EVERY_SECONDS, float_minutes=whole("FLOAT_EVERY_MINUTES", 15, low=1, high=1_440)
)

# --- the console -----------------------------------------------------------------------------------------------------

# A login of staff needs a PIN and the code of an authenticator app; see docs/decisions/0020.
STAFF_TOTP = flag("STAFF_TOTP", PRODUCTION)
if PRODUCTION and not STAFF_TOTP:
    raise ImproperlyConfigured("STAFF_TOTP must be on in production: staff move real money.")
STEP_UP_MINUTES = whole("STEP_UP_MINUTES", 5, low=1, high=60)
OTP_TOTP_ISSUER = "KASOKO"
# A recovery code has 80 random bits, so wrong ones make nobody wait.
OTP_STATIC_THROTTLE_FACTOR = 0
# Without a call or a page for so long, a session or token of staff ends. 0: never.
IDLE_MINUTES = whole("IDLE_MINUTES", 30 if PRODUCTION else 0, low=0, high=480)
# People may not choose a PIN that is easy to guess.
PIN_RULES = flag("PIN_RULES", PRODUCTION)
if PRODUCTION and not (PIN_RULES and IDLE_MINUTES):
    raise ImproperlyConfigured("PIN_RULES must be on and IDLE_MINUTES at least 1 in production.")
# Wrong PINs that untrusted callers may send: from one address after the first 20, and altogether after the first 200.
WRONG_PINS_AN_HOUR_PER_ADDRESS = whole("WRONG_PINS_AN_HOUR_PER_ADDRESS", 2, low=1, high=1_000)
WRONG_PINS_AN_HOUR = whole("WRONG_PINS_AN_HOUR", 60, low=1, high=100_000)

# File of the audit trail's heads, best on another disk or host; see users/audit_heads.py.
AUDIT_HEADS_FILE = Path(text("AUDIT_HEADS_FILE", str(STATE_DIR / "audit-heads.txt")))
# Places outside that get the head once a day, and the server that sends our e-mail.
AUDIT_HEADS_EMAIL = addresses("AUDIT_HEADS_EMAIL")
AUDIT_HEADS_WEBHOOK = public_url("AUDIT_HEADS_WEBHOOK")
_mail = mail_server("EMAIL_URL", production=PRODUCTION)
EMAIL_HOST, EMAIL_PORT, EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail.host, _mail.port, _mail.user, _mail.password
EMAIL_USE_TLS, EMAIL_USE_SSL, EMAIL_TIMEOUT = _mail.starts_tls, _mail.is_tls, 10
DEFAULT_FROM_EMAIL = text("EMAIL_FROM", "kasoko@localhost")
if AUDIT_HEADS_EMAIL and not EMAIL_HOST:
    raise ImproperlyConfigured("AUDIT_HEADS_EMAIL needs the server that sends e-mail. Set EMAIL_URL too.")
# Hours for which no money leaves to a member's new phone.
PHONE_CHANGE_HOLD_HOURS = whole("PHONE_CHANGE_HOLD_HOURS", 24, low=1, high=168)

# --- REST ------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["users.backends.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["api.rest.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "api.rest.errors.answer",
    "COERCE_DECIMAL_TO_STRING": True,
    "UNAUTHENTICATED_USER": None,
}
REST_KNOX = {
    "AUTH_HEADER_PREFIX": "Bearer",
    "TOKEN_TTL": timedelta(hours=whole("TOKEN_HOURS", 8, low=1, high=720)),
    "TOKEN_PREFIX": "ksk_",
    "AUTO_REFRESH": True,  # Only for staff, up to TOKEN_HOURS: see BearerAuthentication.renew_token.
}

# --- M-Pesa ----------------------------------------------------------------------------------------------------------

MPESA_HOSTS = {False: "https://sandbox.safaricom.co.ke", True: "https://api.safaricom.co.ke"}
MPESA_BASE_URL = text("MPESA_BASE_URL", MPESA_HOSTS[MPESA_PRODUCTION]).rstrip("/")
MPESA_CONSUMER_KEY = text("MPESA_CONSUMER_KEY", "unset")
MPESA_CONSUMER_SECRET = text("MPESA_CONSUMER_SECRET", "unset")
MPESA_INITIATOR_NAME = text("MPESA_INITIATOR_NAME", "testapi")
MPESA_SECURITY_CREDENTIAL_ENCRYPTED = text("MPESA_SECURITY_CREDENTIAL_ENCRYPTED", "unset")
MPESA_PAYBILL = text("MPESA_PAYBILL", "600000")
MPESA_PASSKEY = text("MPESA_PASSKEY", "unset")
MPESA_CALLBACK_URL = text("MPESA_CALLBACK_URL", "http://127.0.0.1:8000/api/payments/b2c-callback/")
MPESA_COMMAND_ID = one_of(
    "MPESA_COMMAND_ID", "BusinessPayment", ("BusinessPayment", "PromotionPayment", "SalaryPayment")
)
MPESA_TIMEOUT_SECONDS = decimal("MPESA_TIMEOUT_SECONDS", "4", low="0.5", high="60")
MPESA_CONFIRM_ABOVE = decimal("MPESA_CONFIRM_ABOVE", "50000", low="0", high="1000000000")
MPESA_CALLBACK_SOURCES = networks(
    "MPESA_CALLBACK_SOURCES",
    "196.201.212.69,196.201.212.74,196.201.212.127,196.201.212.128,196.201.212.129,196.201.212.132,196.201.212.136,"
    "196.201.212.138,196.201.213.44,196.201.213.114,196.201.214.200,196.201.214.206,196.201.214.207,196.201.214.208",
)
if PRODUCTION:
    refuse_wide("MPESA_CALLBACK_SOURCES", MPESA_CALLBACK_SOURCES)

_callback, _mpesa = url_parts("MPESA_CALLBACK_URL", MPESA_CALLBACK_URL), url_parts("MPESA_BASE_URL", MPESA_BASE_URL)
if _callback.scheme not in {"http", "https"} or not _callback.hostname or _callback.query or _callback.fragment:
    raise ImproperlyConfigured(f"MPESA_CALLBACK_URL must be a plain http(s) URL, not {MPESA_CALLBACK_URL!r}.")
if not _callback.path.endswith("/api/payments/b2c-callback/"):
    raise ImproperlyConfigured("MPESA_CALLBACK_URL must end in /api/payments/b2c-callback/, including the last slash.")
for _word in ("mpesa", "m-pesa", "safaricom", "exe", "exec", "cmd", "sql", "query"):
    if _word in MPESA_CALLBACK_URL.lower():
        raise ImproperlyConfigured(f"MPESA_CALLBACK_URL contains {_word!r}, which M-Pesa refuses in callback URLs.")
# Outside production no spelling of a live host is accepted: only the sandbox's of Safaricom's hosts.
if not MPESA_PRODUCTION and host_of(_mpesa).endswith("safaricom.co.ke") and MPESA_HOSTS[False] != MPESA_BASE_URL:
    raise ImproperlyConfigured("MPESA_BASE_URL is M-Pesa's production address, which needs MPESA_PRODUCTION=True.")
if _mpesa.scheme not in {"http", "https"} or not _mpesa.hostname:
    raise ImproperlyConfigured(f"MPESA_BASE_URL must be an http(s) URL, not {MPESA_BASE_URL!r}.")
if MPESA_PRODUCTION:
    if MPESA_HOSTS[True] != MPESA_BASE_URL:
        raise ImproperlyConfigured(f"MPESA_BASE_URL must be {MPESA_HOSTS[True]} when MPESA_PRODUCTION is True.")
    if _callback.scheme != "https":
        raise ImproperlyConfigured("MPESA_CALLBACK_URL must be https when MPESA_PRODUCTION is True.")
    for _name in (
        "MPESA_CONSUMER_KEY",
        "MPESA_CONSUMER_SECRET",
        "MPESA_INITIATOR_NAME",
        "MPESA_SECURITY_CREDENTIAL_ENCRYPTED",
        "MPESA_PAYBILL",
    ):
        if not text(_name) or text(_name).startswith("your_"):
            raise ImproperlyConfigured(f"{_name} must be set when MPESA_PRODUCTION is True.")
    if not (MPESA_PAYBILL.isdigit() and 5 <= len(MPESA_PAYBILL) <= 7):
        raise ImproperlyConfigured("MPESA_PAYBILL must be a shortcode of 5 to 7 digits.")

# --- payouts ---------------------------------------------------------------------------------------------------------

PAYOUT_PLATFORM_FEE_PCT = decimal("PAYOUT_PLATFORM_FEE_PCT", "5.00", low="0", high="100")
PAYOUT_PROTECT_STAKE = flag("PAYOUT_PROTECT_STAKE", True)
PAYOUT_DESTINATION = one_of("PAYOUT_DESTINATION", "mpesa", ("mpesa", "wallet"))
PAYOUT_MIN_AMOUNT = whole("PAYOUT_MIN_AMOUNT", 10, low=1, high=250_000)
PAYOUT_MAX_AMOUNT = whole("PAYOUT_MAX_AMOUNT", 250_000, low=1, high=1_000_000)
if PAYOUT_MAX_AMOUNT < PAYOUT_MIN_AMOUNT:
    raise ImproperlyConfigured("PAYOUT_MAX_AMOUNT must not be less than PAYOUT_MIN_AMOUNT.")
PAYOUT_DAY_LIMIT = whole("PAYOUT_DAY_LIMIT", 500_000, low=1, high=10_000_000)
if PAYOUT_DAY_LIMIT < PAYOUT_MAX_AMOUNT:
    raise ImproperlyConfigured("PAYOUT_DAY_LIMIT must not be less than PAYOUT_MAX_AMOUNT.")
PAYOUT_TPS = decimal("PAYOUT_TPS", "5", low="0.1", high="10000")
PAYOUT_IN_FLIGHT = whole("PAYOUT_IN_FLIGHT", 400, low=1, high=2_000)
PAYOUT_QUERY_AFTER = whole("PAYOUT_QUERY_AFTER", 20, low=1, high=86_400)
PAYOUT_QUERY_GAP = whole("PAYOUT_QUERY_GAP", 60, low=1, high=86_400)
PAYOUT_REVIEW_AFTER = whole("PAYOUT_REVIEW_AFTER", 86_400, low=1, high=30 * 86_400)
PAYOUT_RESEND_HORIZON = whole("PAYOUT_RESEND_HORIZON", 1_800, low=0, high=86_400)
PAYOUT_MAX_ATTEMPTS = whole("PAYOUT_MAX_ATTEMPTS", 20, low=1, high=900)
PAYOUT_RETRY_AFTER = whole("PAYOUT_RETRY_AFTER", 15, low=1, high=3_600)
PAYOUT_CANARY = stages("PAYOUT_CANARY", "1,10")
PAYOUTS_PAUSED = flag("PAYOUTS_PAUSED", False)
BREAKER_PAUSE = whole("BREAKER_PAUSE", 1, low=1, high=3_600)
BREAKER_LONGEST_PAUSE = whole("BREAKER_LONGEST_PAUSE", 20, low=1, high=3_600)
BREAKER_WINDOW = whole("BREAKER_WINDOW", 20, low=1, high=10_000)
BREAKER_SHARE = decimal("BREAKER_SHARE", "0.5", low="0.01", high="1")
SETTLEMENT_HOLD_MINUTES = minutes_by_pool_size("SETTLEMENT_HOLD_MINUTES", "0")
RESOLVE_APPROVAL_ABOVE = (
    decimal("RESOLVE_APPROVAL_ABOVE", "0", low="0", high="1000000000000") if text("RESOLVE_APPROVAL_ABOVE") else None
)
SETTLEMENT_CHUNK = whole("SETTLEMENT_CHUNK", 20_000, low=1, high=1_000_000)

# --- markets ---------------------------------------------------------------------------------------------------------

TERMS_NOTICE_HOURS = whole("TERMS_NOTICE_HOURS", 24, low=1, high=720)
CLOSE_REMINDER_MINUTES = whole("CLOSE_REMINDER_MINUTES", 60, low=1, high=10_080)
OUTCOME_REMINDER_HOURS = whole("OUTCOME_REMINDER_HOURS", 24, low=1, high=720)
VOID_PROPOSAL_HOURS = whole("VOID_PROPOSAL_HOURS", 168, low=0, high=8_760)

# --- disputes --------------------------------------------------------------------------------------------------------

DISPUTE_WINDOW_DAYS = whole("DISPUTE_WINDOW_DAYS", 30, low=1, high=3_650)
DISPUTE_ANSWER_HOURS = whole("DISPUTE_ANSWER_HOURS", 72, low=1, high=8_760)

# --- log -------------------------------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "api.logs.MaskingFormatter",
            "format": "[{asctime}: {levelname}/{name}] {message}",
            "style": "{",
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "django.server": {"handlers": ["console"], "level": "INFO", "propagate": False},
        # gunicorn writes the address of a failed request, and has a handler that masks nothing.
        "gunicorn.error": {"handlers": ["console"], "level": "INFO", "propagate": False},
        "gunicorn.access": {"handlers": ["console"], "level": "INFO", "propagate": False},
    },
}

# --- failpoints, for tests -------------------------------------------------------------------------------------------

failpoints.arm_from_environment(production=MPESA_PRODUCTION)
