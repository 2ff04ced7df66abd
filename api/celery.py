"""The Celery application: `celery -A api worker|beat|flower`."""

import logging
import os
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger

from api.logs import MaskingFormatter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")

app = Celery("kasoko")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Celery looks for modules called tasks.py; ours are named for their subject, as the guide's log lines have it.
app.autodiscover_tasks(related_name="settlement_tasks")
app.autodiscover_tasks(related_name="monitoring_tasks")

SWEEPS = {
    "payments.settlement_tasks.settle_resolved_markets",
    "payments.settlement_tasks.send_due_payouts",
    "payments.settlement_tasks.apply_stored_callbacks",
    "payments.settlement_tasks.ask_about_doubts",
    "payments.settlement_tasks.issue_certificates",
    "payments.settlement_tasks.close_remedied_disputes",
    "payments.overview_tasks.heartbeat",
    "payments.overview_tasks.measure",
    "payments.overview_tasks.check_books",
    "payments.overview_tasks.sum_up",
}


def _is_news(record: logging.LogRecord) -> bool:
    """A sweep that came and went is no news: they run every few seconds and would bury the rest."""
    about = record.args if isinstance(record.args, dict) else {}
    scheduled = record.args if isinstance(record.args, tuple) else ()
    return record.levelno > logging.INFO or (about.get("name") not in SWEEPS and SWEEPS.isdisjoint(scheduled))


@after_setup_logger.connect
def _mask_and_quieten(logger: logging.Logger, format: str, **_: Any) -> None:  # noqa: A002 - Celery's name for it
    for handler in logger.handlers:
        handler.setFormatter(MaskingFormatter(format))
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).addFilter(_is_news)
