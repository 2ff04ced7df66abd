"""What operators do in the console, by its forms: each action asks, is proven, does one thing, and says what it did."""

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from django.conf import Settings
from django.test import Client
from django.utils import timezone

from api.console.pages import ledger
from payments.models import LedgerAccount, Transaction
from payments.monitoring import overview
from testing import builders, console_scenes, payout_steps
from testing.builders import PIN, member, nothing_moved, payout
from users.models import AuditEntry, CustomUser, MemberNote


@pytest.fixture
def boss(db: None) -> CustomUser:
    return console_scenes.staff("operator", full_name="Grace Wambui")


@pytest.fixture
def console(boss: CustomUser) -> Client:
    client = Client()
    client.force_login(boss)
    return client


def do(console: Client, path: str, **form: str) -> str:
    """Send a form with the PIN, and read the page that follows."""
    return console.post(path, {"proof": PIN, **form}, follow=True).content.decode().replace("&#x27;", "'")


def failed(amount: int = 285) -> Transaction:
    one = payout(amount)
    payout_steps.failed(one)
    return one


def state(one: Transaction) -> str:
    one.refresh_from_db()
    return one.status


def test_a_failed_payout_is_looked_at_asked_about_and_sent_again(console: Client, queued: Any) -> None:
    one = failed()
    page = console.get(f"/admin/payouts/{one.pk}/").content.decode()
    assert f"/admin/payouts/{one.pk}/retry/" in page
    with nothing_moved():
        asked = console.get(f"/admin/payouts/{one.pk}/retry/").content.decode()
    assert "What this will do" in asked and "it is never paid twice" in asked

    done = do(console, f"/admin/payouts/{one.pk}/retry/")

    assert f"Payout {one.pk} is pending and will be sent again." in done
    assert state(one) == "PENDING"
    assert ("payments.settlement_tasks.send_b2c_payout", [one.pk]) in [(name, ids) for name, _, ids in queued()]
    assert AuditEntry.objects.filter(action="payout.retry", actor__full_name="Grace Wambui").count() == 1
    assert "Grace Wambui" in console.get(f"/admin/payouts/{one.pk}/").content.decode()


def test_what_can_no_longer_be_done_says_so_and_where_the_money_is(console: Client) -> None:
    one = payout(285)
    payout_steps.sent(one)
    with nothing_moved():
        page = do(console, f"/admin/payouts/{one.pk}/retry/")
    assert "Only a failed or held payout can be retried" in page
    assert "Nothing was done, and no money was moved." in page


def test_a_failed_payout_goes_to_the_wallet_after_the_word_is_typed(console: Client) -> None:
    one = failed()
    with nothing_moved():
        assert "Type “wallet” exactly" in do(console, f"/admin/payouts/{one.pk}/wallet/", typed="walet")
    assert "KES 285.00 is in the member's wallet." in do(console, f"/admin/payouts/{one.pk}/wallet/", typed="wallet")
    assert state(one) == "COMPLETED" and CustomUser.objects.get(pk=one.user_id).balance == 285


def test_a_payout_is_held_and_released(console: Client) -> None:
    one = payout(285)
    assert "Why: please fill this in" in do(console, f"/admin/payouts/{one.pk}/hold/")
    assert "is held. No money left." in do(console, f"/admin/payouts/{one.pk}/hold/", reason="A doubt.")
    assert state(one) == "HELD"
    assert "is due now." in do(console, f"/admin/payouts/{one.pk}/release/")
    assert state(one) == "PENDING"


def test_mpesa_is_asked_now(console: Client, queued: Any) -> None:
    one = payout(285)
    attempt = payout_steps.sent(one)
    assert "The question goes out now." in do(console, f"/admin/payouts/{one.pk}/ask/")
    attempt.refresh_from_db()
    assert attempt.next_query_at is not None and attempt.next_query_at <= timezone.now()
    assert ("payments.settlement_tasks.ask_about_doubts", []) in [(name, ids) for name, _, ids in queued()]


WORD = {"verdict": "paid", "receipt": "skg7paid01", "grounds": "Line 7 of Monday's statement.", "typed": "decide"}


def test_a_small_held_payout_is_decided_with_evidence(console: Client) -> None:
    one = console_scenes.held_in_doubt(300, timezone.now())
    with nothing_moved():
        assert "letters and digits" in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD | {"receipt": ""})
        assert "has no receipt" in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD | {"verdict": "not_paid"})
        assert "please fill" in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD | {"grounds": ""})
        assert "please choose" in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD | {"verdict": "maybe"})
    assert f"Payout {one.pk} is decided: paid." in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD)
    assert state(one) == "COMPLETED" and one.receipt == "SKG7PAID01"


def test_a_large_one_is_decided_by_a_second_person_from_their_own_session(console: Client) -> None:
    # given
    one = console_scenes.held_in_doubt(60_000, timezone.now())
    other = Client()
    other.force_login(console_scenes.staff("approver", full_name="Peter Second"))

    # when: the first gives their word, and cannot confirm it
    with nothing_moved():
        assert "A second person must confirm it" in do(console, f"/admin/payouts/{one.pk}/decide/", **WORD)
        own = do(console, f"/admin/payouts/{one.pk}/confirm/", typed="decide")
        assert "must be another person's" in own
    assert "Another person must confirm it" in console.get(f"/admin/payouts/{one.pk}/").content.decode()
    assert "word to confirm" in other.get("/admin/").content.decode()

    # when: the second looks, and confirms
    asked = other.get(f"/admin/payouts/{one.pk}/confirm/").content.decode()
    assert "Grace Wambui" in asked and "SKG7PAID01" in asked and "Line 7" in asked
    done = do(other, f"/admin/payouts/{one.pk}/confirm/", typed="decide")

    # then
    assert "is decided by two people: paid, receipt SKG7PAID01." in done
    assert state(one) == "COMPLETED"


def test_a_word_is_taken_back(console: Client) -> None:
    one = console_scenes.held_in_doubt(60_000, timezone.now())
    do(console, f"/admin/payouts/{one.pk}/decide/", **WORD)
    assert "is taken back" in do(console, f"/admin/payouts/{one.pk}/refuse/", reason="The wrong line.")
    assert state(one) == "HELD" and one.verdicts.get().confirmed is False
    # There is nothing to confirm any more: the page leads back to the payout.
    assert console.get(f"/admin/payouts/{one.pk}/confirm/").headers["Location"] == f"/admin/payouts/{one.pk}/"


def test_many_are_sent_again_only_as_they_were_looked_at(console: Client, queued: Any) -> None:
    # given
    first, second = failed(100), failed(200)
    page = console.get("/admin/payouts/retry/?code=400.002.02").content.decode()
    assert "2 payouts, KES 300.00 in all, leave again over M-Pesa." in page
    seen = page.partition('name="seen" value="')[2].partition('"')[0]
    form = {"code": "400.002.02", "typed": "send again", "seen": seen}

    # when: one more has failed since the look
    third = failed(400)
    with nothing_moved():
        assert "The list has changed since you looked" in do(console, "/admin/payouts/retry/", **form)

    # when
    page = console.get("/admin/payouts/retry/?code=400.002.02").content.decode()
    form["seen"] = page.partition('name="seen" value="')[2].partition('"')[0]
    done = do(console, "/admin/payouts/retry/", **form)

    # then
    assert "3 payouts will be sent again." in done
    assert {state(one) for one in (first, second, third)} == {"PENDING"}
    assert "payments.settlement_tasks.send_due_payouts" in [name for name, _, _ in queued()]
    with nothing_moved():
        assert "There is nothing to send again." in do(console, "/admin/payouts/retry/", **form)


def test_sending_is_stopped_and_started(console: Client) -> None:
    with nothing_moved():
        assert "Type “stop” exactly" in do(console, "/admin/sending/stop/", reason="Odd.")
    assert "Sending is off." in do(console, "/admin/sending/stop/", reason="Odd receipts.", typed="stop")
    home = console.get("/admin/").content.decode()
    assert "Sending is paused (switch)" in home and "Odd receipts." in home
    assert payout_steps.claims() == []
    assert "Sending is on." in do(console, "/admin/sending/start/")
    assert "Sending is paused" not in console.get("/admin/").content.decode()


# --- members ---------------------------------------------------------------------------------------------------------


def test_a_phone_is_opened_for_a_reason_by_whoever_may_and_that_is_recorded(console: Client) -> None:
    person = member(phone_number="0712345678")
    assert console.post(f"/admin/members/{person.pk}/phone/", {"reason": "Calling."}).status_code == 403
    support = Client()
    support.force_login(console_scenes.staff("support"))
    path = f"/admin/members/{person.pk}/phone/"
    for shown in (support.get(path), support.post(path, {"reason": " "})):
        assert "2547****678" in shown.content.decode() and "254712345678" not in shown.content.decode()
    assert AuditEntry.objects.filter(action="member.phone_opened").count() == 0
    assert "254712345678" in support.post(path, {"reason": "Calling about payout 7."}).content.decode()
    entry = AuditEntry.objects.get(action="member.phone_opened")
    assert (entry.subject, entry.reason) == (f"member:{person.pk}", "Calling about payout 7.")
    assert "254712345678" not in support.get(f"/admin/members/{person.pk}/").content.decode()


def test_a_note_is_written_shown_escaped_and_recorded(console: Client) -> None:
    person = member()
    assert "please fill" in do(console, f"/admin/members/{person.pk}/note/", text="  ")
    assert "at most 2000" in do(console, f"/admin/members/{person.pk}/note/", text="x" * 2_001)
    page = do(console, f"/admin/members/{person.pk}/note/", text="Called.\n<b>Happy</b>")
    assert "The note is written." in page and "&lt;b&gt;Happy" in page and "Grace Wambui" in page
    assert MemberNote.objects.count() == AuditEntry.objects.filter(action="member.note").count() == 1


def test_members_are_found_by_phone_name_or_number(console: Client) -> None:
    one, other = member(full_name="Wanjiku Kamau", phone_number="0712345678"), member(full_name="Otieno")
    for typed in ("0712345678", "wanjiku", str(one.pk)):
        page = console.get(f"/admin/members/?q={typed}").content.decode()
        assert f"/admin/members/{one.pk}/" in page and f"/admin/members/{other.pk}/" not in page


# --- books and audit -------------------------------------------------------------------------------------------------


def rows_of(answer: Any) -> list[list[str]]:
    return list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode())))


def test_an_account_and_the_trial_balance_are_downloaded(db: None) -> None:
    accountant = Client()
    accountant.force_login(console_scenes.staff("accountant"))
    user = member(balance="100.50")
    builders.bet(builders.market(), user, "Yes", 40)
    wallet = LedgerAccount.objects.get(user=user)

    header, opening, stake = rows_of(accountant.get(f"/admin/accounts/{wallet.pk}/export/"))
    assert header[-2:] == ["change", "balance"]
    assert (opening[3], opening[-2:], stake[-2:]) == ("opening", ["100.50", "100.50"], ["-40.00", "60.50"])

    answer = accountant.get("/admin/trial-balance/export/")
    assert ".csv" in answer.headers["Content-Disposition"] and "no-store" in answer.headers["Cache-Control"]
    lines = {row[0]: row[1:] for row in rows_of(answer)}
    assert lines["wallet"] == ["1", "40.00", "100.50", "60.50"]
    empty = rows_of(accountant.get("/admin/trial-balance/export/?day=2000-01-01"))
    assert empty == [["kind", "accounts", "debits", "credits", "balance"]]


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("-5", "'-5"), ("+2", "'+2"), ("\tx", "'\tx"), ("stake:1", "stake:1"), (-5, -5)],
)
def test_a_cell_that_looks_like_a_formula_is_text(cell: object, written: object) -> None:
    assert ledger.plain(cell) == written


def test_the_trial_balance_of_a_day_and_of_no_day(console: Client) -> None:
    member(balance=100)
    today = timezone.localdate()
    assert "KES 100.00" in console.get(f"/admin/trial-balance/?day={today}").content.decode()
    assert (
        "Nothing was booked" in console.get(f"/admin/trial-balance/?day={today - timedelta(days=1)}").content.decode()
    )
    for odd in ("soon", "2026-02-31", "0001-01-01"):
        assert "That is no day" in console.get(f"/admin/trial-balance/?day={odd}").content.decode()


def test_the_audit_trail_is_searched_and_verified(console: Client) -> None:
    one = failed()
    do(console, f"/admin/payouts/{one.pk}/retry/")
    page = console.get(f"/admin/audit/?subject=transaction:{one.pk}").content.decode()
    assert "payout.retry" in page and f'href="/admin/payouts/{one.pk}/"' in page and "127.0.0.1" in page
    assert "No entries match" in console.get("/admin/audit/?action=market.undo").content.decode()
    assert "entries are as they were recorded" in console.get("/admin/audit/?verify=1").content.decode()


# --- is the machine at work ------------------------------------------------------------------------------------------


def test_home_says_which_part_is_down(console: Client, settings: Settings, queued: Any) -> None:
    def said() -> str:
        return console.get("/admin/").content.decode()

    assert "Beat has sent nothing yet: start it, and a worker." in said()
    overview.beat(worker="here", at=timezone.now())
    assert "The machine is not at work" not in said()
    overview.beat(worker="here", at=timezone.now() - timedelta(minutes=5))
    assert "Beat sends nothing: start or restart it." in said()
    builders.resolve(builders.market())
    do(console, f"/admin/payouts/{failed().pk}/retry/")
    assert queued() and "Messages wait and no worker takes them" in said()
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    assert "Redis is not reached." in said()
    settings.CELERY_BROKER_URL = "amqp://somewhere"
    assert "Beat sends nothing" in said()
