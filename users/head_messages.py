"""Heads of the audit trail, sent once a day by e-mail and to a webhook.

A person who controls the server can change the database and the file of the heads together. They cannot change a
message that has left. So each message has the number and hash of the last entry, and `verify_audit --noted` compares
them.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import requests
from django.core.mail import EmailMessage

from users import audit_heads

log = logging.getLogger("kasoko.alarm")

# A little less than a day, so that the task, which beat starts every hour, sends at the same hour each day.
BETWEEN = timedelta(hours=23, minutes=30)
TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Outside:
    """The places outside: e-mail addresses with the sender's address, and the address of a webhook. Each may be empty.

    The settings have checked the webhook by users/outgoing.py.
    """

    recipients: tuple[str, ...]
    sender: str
    webhook: str


def send_due(outside: Outside, *, sent_file: Path, at: datetime) -> list[str]:
    """Send the head to each place that has got none for a day. Return the names of the places that got it now.

    A failure is logged as an alarm. The next call, an hour later, tries again.
    """
    places: dict[str, tuple[bool, Callable[[Outside, audit_heads.Head, datetime], None]]] = {
        "e-mail": (bool(outside.recipients), _mail),
        "webhook": (bool(outside.webhook), _post),
    }
    sent = _sent(sent_file)
    due = [name for name, (wanted, _) in places.items() if wanted and at - sent.get(name, at - 2 * BETWEEN) >= BETWEEN]
    head = audit_heads.present() if due else None
    if head is None:
        return []
    reached = []
    for name in due:
        try:
            places[name][1](outside, head, at)
        except OSError as error:  # SMTPException and RequestException are OSErrors.
            log.error("The head of the audit trail was not sent by %s. It is tried again in an hour: %s", name, error)
        else:
            reached.append(name)
    _remember(sent_file, sent | dict.fromkeys(reached, at))
    return reached


def _mail(outside: Outside, head: audit_heads.Head, at: datetime) -> None:
    EmailMessage(
        subject=f"KASOKO: the audit trail ends at entry {head.number}",
        body=(
            f"Number and hash of the last entry of the audit trail, {at.isoformat(timespec='seconds')}:\n\n"
            f"{head.number}:{head.hash}\n\n"
            f"Database: {audit_heads.database()}\n\n"
            "Keep this message. This command shows whether the trail still has this entry:\n"
            f"python manage.py verify_audit --noted {head.number}:{head.hash}\n"
        ),
        from_email=outside.sender,
        to=list(outside.recipients),
    ).send()


def _post(outside: Outside, head: audit_heads.Head, at: datetime) -> None:
    body = {"at": at.isoformat(), "database": audit_heads.database(), "number": head.number, "hash": head.hash}
    with requests.Session() as session:
        session.trust_env = False  # No proxy and no password from the environment.
        answer = session.post(outside.webhook, json=body, timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True)
        if not 200 <= answer.status_code < 300:
            raise requests.HTTPError(f"it answered {answer.status_code}")


def _sent(file: Path) -> dict[str, datetime]:
    """Return when each place got a head. A damaged or missing file means never: then a place gets one more."""
    try:
        return {str(name): datetime.fromisoformat(moment) for name, moment in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(file: Path, sent: dict[str, datetime]) -> None:
    try:
        file.write_text(json.dumps({name: moment.isoformat() for name, moment in sent.items()}), encoding="ascii")
    except OSError as error:
        log.error("%s cannot be written, so the head of the audit trail is sent every hour: %s", file, error)
