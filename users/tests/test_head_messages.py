"""Heads of the audit trail that leave once a day: by e-mail, and to a real web server on this machine."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import Settings
from django.core import mail
from django.db import transaction

from users import audit, audit_heads, audit_tasks, head_messages

BY = audit.Actor(user_id=None, source="test")


class Receiver(ThreadingHTTPServer):
    """A web server that records what it is sent, and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status, self.got = 204, list[dict[str, Any]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/heads"


class _Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"path": self.path, **json.loads(body)})
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Write nothing to the test's output."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def decide(at: datetime) -> audit_heads.Head:
    with transaction.atomic():
        audit.record(action="market.void", by=BY, subject="market:1", before={}, after={}, at=at)
    head = audit_heads.present()
    assert head is not None
    return head


def test_head_is_sent_to_both_places_once_a_day(db: None, tmp_path: Path, receiver: Receiver, at: datetime) -> None:
    outside = head_messages.Outside(("auditor@example.com",), "kasoko@example.com", receiver.url)
    head = decide(at)

    def send(hours: int) -> list[str]:
        return head_messages.send_due(outside, sent_file=tmp_path / "sent", at=at + timedelta(hours=hours))

    assert [send(0), send(1), send(23)] == [["e-mail", "webhook"], [], []]
    (message,), (posted,) = mail.outbox, receiver.got
    noted = f"{head.number}:{head.hash}"
    assert f"verify_audit --noted {noted}" in message.body
    assert (message.to, message.from_email) == (["auditor@example.com"], "kasoko@example.com")
    assert (posted["number"], posted["hash"], posted["database"]) == (head.number, head.hash, audit_heads.database())
    assert send(24) == ["e-mail", "webhook"]


@pytest.mark.parametrize("status", [500, 302, 404])
def test_webhook_that_refuses_is_tried_again_and_no_redirect_is_followed(
    db: None, tmp_path: Path, receiver: Receiver, at: datetime, status: int
) -> None:
    outside, receiver.status = head_messages.Outside(("auditor@example.com",), "a@example.com", receiver.url), status
    decide(at)
    assert head_messages.send_due(outside, sent_file=tmp_path / "sent", at=at) == ["e-mail"]
    assert [posted["path"] for posted in receiver.got] == ["/heads"]
    receiver.status = 200
    later = at + timedelta(hours=1)
    assert head_messages.send_due(outside, sent_file=tmp_path / "sent", at=later) == ["webhook"]
    assert len(mail.outbox) == 1


def test_mail_server_that_is_away_does_not_stop_the_webhook(
    db: None, tmp_path: Path, receiver: Receiver, at: datetime, settings: Settings
) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    outside = head_messages.Outside(("auditor@example.com",), "a@example.com", receiver.url)
    decide(at)
    assert head_messages.send_due(outside, sent_file=tmp_path / "sent", at=at) == ["webhook"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"e-mail": 7}', '{"e-mail": "yesterday"}'])
def test_damaged_record_of_sent_heads_sends_one_more(db: None, tmp_path: Path, at: datetime, text: str) -> None:
    (tmp_path / "sent").write_text(text)
    outside = head_messages.Outside(("auditor@example.com",), "a@example.com", "")
    decide(at)
    assert head_messages.send_due(outside, sent_file=tmp_path / "sent", at=at) == ["e-mail"]
    assert head_messages.send_due(outside, sent_file=tmp_path / "sent", at=at) == []


def test_task_sends_to_the_places_of_the_settings(db: None, tmp_path: Path, settings: Settings, at: datetime) -> None:
    settings.AUDIT_HEADS_FILE = tmp_path / "heads.txt"
    audit_tasks.send_audit_head()
    settings.AUDIT_HEADS_EMAIL = ["auditor@example.com"]
    audit_tasks.send_audit_head()  # The trail is empty.
    assert mail.outbox == []
    decide(at)
    audit_tasks.send_audit_head()
    assert [message.to for message in mail.outbox] == [["auditor@example.com"]]
