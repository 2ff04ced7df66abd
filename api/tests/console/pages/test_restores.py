"""Tests of the pages about restores: the progress, and the decision of two people."""

from datetime import timedelta

from django.test import Client
from django.utils import timezone

from payments.models import Breaker, RestoreDecision
from payments.payouts.restores import detection, procedure
from testing import builders, console_scenes, payout_steps
from testing.console_scenes import client_of, page_text, submit


def old_backup() -> None:
    """Restore a backup that is two hours old, while a payout waits."""
    builders.payout(285, at=timezone.now() - timedelta(hours=3))
    at = timezone.now()
    detection.report(survived_at=at - timedelta(hours=2), at=at, policy=payout_steps.POLICY)
    procedure.advance(at=at, policy=payout_steps.POLICY, addresses=payout_steps.ADDRESSES, keep_going=lambda: True)


def is_stopped() -> bool:
    return Breaker.objects.filter(cause="restore", opened_at__isnull=False).exists()


def test_home_and_sending_tell_of_the_restore(console: Client) -> None:
    assert "Restored from a backup" not in page_text(console.get("/admin/"))
    old_backup()
    assert "1 payout is being asked about." in page_text(console.get("/admin/"))
    sending = page_text(console.get("/admin/sending/"))
    assert "/admin/restores/" in sending
    assert "/admin/sending/lift/restore/" not in sending
    assert console.get("/admin/sending/lift/restore/").status_code == 404
    assert "No payout leaves until two people have decided." in page_text(console.get("/admin/restores/"))


def test_two_people_decide_on_the_pages(console: Client) -> None:
    # given
    old_backup()
    second = client_of(console_scenes.staff())

    # when: one person proposes, and may not confirm
    proposed = submit(console, "/admin/restores/decide/", reference="all", grounds="Statement read.", typed="not sent")
    answers = {"decision": str(RestoreDecision.objects.get().pk), "answer": "confirm", "typed": "second"}
    own = submit(console, "/admin/restores/confirm/", **answers)
    stopped = is_stopped()
    confirmed = submit(second, "/admin/restores/confirm/", **answers)

    # then
    assert "Nothing leaves until another person confirms it." in proposed
    assert "Another person must confirm it." in own
    assert stopped
    assert "The decision is confirmed." in confirmed
    assert not is_stopped()


def test_refused_decision_keeps_the_stop(console: Client) -> None:
    # given
    old_backup()
    submit(console, "/admin/restores/decide/", reference="all", grounds="Statement read.", typed="not sent")
    pk = str(RestoreDecision.objects.get().pk)

    # when
    answers = {"decision": pk, "answer": "refuse", "reason": "Line 12 is ours.", "typed": "second"}
    told = submit(client_of(console_scenes.staff()), "/admin/restores/confirm/", **answers)

    # then
    assert "The decision is refused." in told
    assert is_stopped()


def test_reference_that_waits_for_nothing_is_refused(console: Client) -> None:
    old_backup()
    with builders.nothing_moved():
        told = submit(console, "/admin/restores/decide/", reference="KASOKO-0", grounds="Read.", typed="not sent")
    assert "is not asked about because of a restore" in told
