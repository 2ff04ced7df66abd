"""Celery task that sends the head of the audit trail outside."""

from celery import shared_task
from django.conf import settings

from users import clock, head_messages


@shared_task(name="users.audit_tasks.send_audit_head")
def send_audit_head() -> None:
    """Send the head of the audit trail by e-mail and to the webhook, if a day has passed."""
    outside = head_messages.Outside(
        tuple(settings.AUDIT_HEADS_EMAIL), settings.DEFAULT_FROM_EMAIL, settings.AUDIT_HEADS_WEBHOOK
    )
    head_messages.send_due(outside, sent_file=settings.AUDIT_HEADS_FILE.with_suffix(".sent"), at=clock.database_time())
