"""Checks at start: settings that an operator should know about, and a database role that may do too much."""

import logging
from collections.abc import Sequence

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, OperationalError, connections

from api import database_owner, database_roles

log = logging.getLogger("kasoko.alarm")


@checks.register
def callback_sources(app_configs: Sequence[AppConfig] | None = None, **_: object) -> list[checks.CheckMessage]:
    """Warn if production may not see the addresses that callbacks come from.

    Behind an unknown proxy every callback seems to come from the proxy. It is stored and trusted less, so each payment
    waits for a status query.
    """
    if not settings.MPESA_PRODUCTION or settings.TRUSTED_PROXIES or settings.TRUSTED_PROXY_HOPS:
        return []
    return [
        checks.Warning(
            "Neither TRUSTED_PROXIES nor TRUSTED_PROXY_HOPS is set, so KASOKO uses the address of its direct peer.",
            hint="If a proxy is in front of KASOKO, M-Pesa's callbacks all seem to come from the proxy, and each "
            "payment waits for a status query. Set TRUSTED_PROXIES to the proxy's addresses.",
            id="kasoko.W001",
        )
    ]


@checks.register(checks.Tags.database)
def application_role(
    app_configs: Sequence[AppConfig] | None = None, databases: Sequence[str] | None = None, **_: object
) -> list[checks.CheckMessage]:
    """Refuse in production a database role that can remove the guards of the database.

    The commands of the owner are not checked, because the owner needs these rights.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if not settings.PRODUCTION or DEFAULT_DB_ALIAS not in (databases or ()):
        return []
    if connection.settings_dict["USER"] != database_owner.application().role:
        return []
    with connection.cursor() as cursor:
        found = database_roles.problems(cursor)
    hint = "docs/settings.md, Roles of the database."
    return [checks.Error(problem, hint=hint, id="kasoko.E001") for problem in found]


def refuse_strong_role() -> None:
    """Stop this web process, worker or beat in production if its database role may do too much.

    If the database cannot be reached, the process starts and says so, because the database may come later.
    Raises: ImproperlyConfigured.
    """
    if not settings.PRODUCTION:
        return
    if database_owner.is_apart():
        raise ImproperlyConfigured(
            "DATABASE_OWNER_URL is set for this process. In production only migrate and database_roles may have it."
        )
    try:
        found = application_role(databases=[DEFAULT_DB_ALIAS])
    except (OperationalError, InterfaceError) as error:
        log.error("The rights of the database role are not checked, because PostgreSQL does not answer: %s", error)
        return
    finally:
        connections[DEFAULT_DB_ALIAS].close()
    if found:
        raise ImproperlyConfigured(" ".join(str(problem.msg) for problem in found))


def log_warnings() -> None:
    """Log the warnings, for processes that do not run Django's checks (gunicorn)."""
    for warning in callback_sources():
        log.warning("%s %s", warning.msg, warning.hint)


def refuse_unset_thresholds() -> None:
    """Refuse to start a web process in production while an act has no threshold for a second person.

    Workers start, because they pay winners and decide nothing. Commands refuse an act without its threshold.
    If the database does not answer, the process starts: its first request reports the database.
    Raises: ImproperlyConfigured.
    """
    from users import clock, figure_changes  # Models can be imported only after Django has started.

    if not settings.PRODUCTION:
        return
    try:
        unset = figure_changes.unset(clock.database_time())
    except DatabaseError as error:
        log.warning("The thresholds were not checked, because the database does not answer: %s", error)
        return
    if unset:
        raise ImproperlyConfigured(
            f"No threshold is set for {', '.join(unset)}. Set each one: python manage.py threshold ACT AMOUNT|never"
        )
