"""Celery application: `celery -A api worker|beat|flower`."""

import logging
import os
from typing import Any

from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from celery.signals import after_setup_logger, beat_init, worker_init
from django.core.exceptions import ImproperlyConfigured
from kombu.transport import TRANSPORT_ALIASES

from api.logs import MaskingFormatter

log = logging.getLogger("kasoko.alarm")

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")

TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "api.message_transport:Transport"))
BACKEND_ALIASES.update(dict.fromkeys(("redis", "rediss"), "api.result_backend:Backend"))
app = Celery("kasoko")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Celery looks for modules called tasks.py. Ours are named by subject, because the guide fixes the names of its tasks.
app.autodiscover_tasks(related_name="settlement_tasks")
app.autodiscover_tasks(related_name="monitoring_tasks")
app.autodiscover_tasks(related_name="market_tasks")
app.autodiscover_tasks(related_name="audit_tasks")

# Tasks that beat starts every few seconds.
SWEEPS = {
    "payments.settlement_tasks.settle_resolved_markets",
    "payments.settlement_tasks.send_due_payouts",
    "payments.settlement_tasks.apply_stored_callbacks",
    "payments.settlement_tasks.ask_about_doubts",
    "payments.settlement_tasks.issue_certificates",
    "payments.settlement_tasks.close_remedied_disputes",
    "payments.settlement_tasks.continue_bulk_retries",
    "payments.settlement_tasks.expire_proposals",
    "payments.market_tasks.tell_members_of_new_terms",
    "payments.market_tasks.close_ended_markets",
    "payments.market_tasks.remind_staff_of_markets",
    "payments.market_tasks.propose_to_void_markets",
    "payments.overview_tasks.heartbeat",
    "payments.overview_tasks.measure",
    "payments.overview_tasks.check_books",
    "payments.overview_tasks.sum_up",
}


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for lines about sweeps that start and succeed, because they would hide other lines.

    Warnings and errors are kept.
    """
    task = record.args.get("name") if isinstance(record.args, dict) else None
    scheduled = record.args if isinstance(record.args, tuple) else ()
    return record.levelno > logging.INFO or (task not in SWEEPS and SWEEPS.isdisjoint(scheduled))


@worker_init.connect
@beat_init.connect
def _refuse_strong_role(**_: Any) -> None:
    """Stop a worker or beat whose database role may do too much. Only SystemExit passes through a signal of Celery."""
    from api import checks  # It reads the settings.

    try:
        checks.refuse_strong_role()
    except ImproperlyConfigured as error:
        log.critical("%s", error)
        raise SystemExit(1) from error


@after_setup_logger.connect
def _mask_and_quieten(logger: logging.Logger, format: str, **_: Any) -> None:  # noqa: A002 - Celery names it so
    """Mask secrets in every line of the worker's log, and drop the lines of successful sweeps."""
    for handler in logger.handlers:
        handler.setFormatter(MaskingFormatter(format))
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).addFilter(_is_worth_logging)
