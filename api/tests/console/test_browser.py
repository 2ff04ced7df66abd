"""Browser tests of the console: journeys, requests to other hosts, failed scripts, accessibility.

If KASOKO_PICTURES names a directory, the tests save the pictures of docs/console.md there. `make pictures` sets it.
"""

import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_core_python.sync_playwright import Axe
from django.conf import Settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from markets.models import Market
from payments import monitoring_tasks, wiring
from payments.models import Transaction
from payments.monitoring import overview
from payments.payouts import attempts
from payments.settlement import preview_cache, undo
from testing import browsing, builders, console_scenes, payout_steps
from testing.builders import PIN
from users.models import CustomUser

pytestmark = pytest.mark.browser
Opened = Callable[..., browsing.Window]
# The pictures of docs/console.md. True means dark mode.
PICTURES = {
    "home": False,
    "market": False,
    "settlement": True,
    "payouts": False,
    "payout": False,
    "to-wallet": False,
    "retry-many": False,
    "in-doubt": True,
    "trial-balance": False,
    "member": False,
    "resolve": False,
    "resolve-2": False,
    "approve": True,
    "share": False,
    "member-debts": False,
    "dispute": False,
}

CHECKED_IN_DARK_MODE = {
    "home",
    "market",
    "payouts",
    "payout",
    "to-wallet",
    "member",
    "sending",
    "weights",
    "member-debts",
}


def type_in(page: Any, **fields: str) -> None:
    """Fill in the fields of a form by name."""
    for name, value in fields.items():
        page.fill(f"[name={name}]", value)


def fresh_code(user: CustomUser) -> str:
    """Return the app's current code, and allow its repeated use. So a test need not wait for the next code."""
    TOTPDevice.objects.filter(user=user).update(last_t=-1)
    return console_scenes.code_of(user)


def press(page: Any, words: str) -> None:
    """Click the button or link with these words."""
    page.get_by_role("button", name=words).or_(page.get_by_role("link", name=words)).first.click()


def test_operator_sets_up_an_app_logs_in_and_resolves_failed_payouts(opened: Opened, settings: Settings) -> None:
    # given
    settings.STAFF_TOTP = True
    grace = console_scenes.staff("operator", full_name="Grace Wambui")
    at = timezone.now()
    first, second = builders.payout(285, at=at), builders.payout(410, at=at)
    for payout in (first, second):
        console_scenes.send_to_unregistered_phone(payout, at)
    screen = opened()

    # when: the first login leads to the set-up of an app
    page = screen.go("/admin/")
    type_in(page, username=grace.phone_number, password=PIN)
    press(page, "Log in")
    page.wait_for_selector("text=Set up your app")
    secret = page.inner_text(".k-mono").replace(" ", "")
    assert len(secret) == 32
    assert page.locator(".k-qr svg").count() == 1
    type_in(page, code=fresh_code(grace))
    press(page, "Set up")
    assert page.locator("#recovery-codes li").count() == 10
    press(page, "I have written them down")
    page.wait_for_selector("text=Needs your attention")

    # when: another browser needs the code and the PIN
    other = opened(size=browsing.PHONE)
    page = other.go("/admin/")
    type_in(page, username=grace.phone_number, password=PIN, code="000000")
    press(page, "Log in")
    page.wait_for_selector("text=Login failed.")
    TOTPDevice.objects.update(throttling_failure_timestamp=None, throttling_failure_count=0)
    type_in(page, username=grace.phone_number, password=PIN, code=fresh_code(grace))
    press(page, "Log in")
    page.wait_for_selector("text=Needs your attention")

    # when: the home page leads to the failed payouts with their reason, and one payout is sent again
    page = screen.page
    page.get_by_role("link", name=re.compile("failed payouts")).click()
    page.wait_for_selector("text=The number is not a registered M-Pesa customer.")
    page.click(f"a[href='/admin/payouts/{first.pk}/']")
    page.wait_for_selector("text=Timeline")
    press(page, "Send again…")
    page.wait_for_selector("text=Effects")
    press(page, "Send again")
    page.wait_for_selector("text=is pending and will be sent again")

    # when: the code of the login has become too old, and the other payout goes to the wallet with a new code
    settings.STEP_UP_MINUTES = 0
    page.goto(f"{screen.base}/admin/payouts/{second.pk}/")
    press(page, "Pay to the wallet…")
    type_in(page, typed="wallet", proof=fresh_code(grace))
    press(page, "Pay to the wallet")
    page.wait_for_selector("text=is in the member's wallet.")

    # then
    assert set(Transaction.objects.values_list("pk", "status")) == {(first.pk, "PENDING"), (second.pk, "COMPLETED")}


def test_market_page_follows_a_settlement_to_its_end_without_a_click(opened: Opened) -> None:
    # given
    market = builders.market(fee_pct=0)
    for place in range(3):
        builders.orm_bet(market, builders.member(), "Yes", 100 + place)
    builders.resolve(market, "Yes", at=timezone.now())
    screen = opened()
    screen.log_in_as(console_scenes.staff("viewer"))
    page = screen.go(f"/admin/markets/{market.pk}/")
    page.wait_for_selector("text=0 of 3")

    # when, then
    builders.settle(market, at=timezone.now())
    page.wait_for_selector("text=3 of 3")
    for place, payout in enumerate(Transaction.objects.filter(settlement__market=market)):
        console_scenes.pay(payout, timezone.now(), f"SKG7ABC00{place}", after=0)
    page.wait_for_selector("text=Every payout is finished")
    # The end of the settlement allows other actions, so the whole page has refreshed itself.
    page.get_by_role("link", name="Certificate").wait_for()
    assert "3" in page.locator("tr", has_text="completed").inner_text()


def test_live_page_changes_in_place_and_keeps_focus_and_open_details(opened: Opened) -> None:
    # given
    payout = builders.payout(285, at=timezone.now())
    attempt = payout_steps.sent(payout, at=timezone.now())
    screen = opened()
    screen.log_in_as(console_scenes.staff("operator"))
    page = screen.go(f"/admin/payouts/{payout.pk}/")
    page.wait_for_selector("text=M-Pesa has the request.")
    page.locator("summary").first.click()
    page.get_by_role("link", name="Ask M-Pesa now…").focus()
    page.evaluate("window.opened_once = true")

    # when: the payout waits, so the page gets another sentence, and the focused button stays
    with transaction.atomic():
        attempts.doubt(attempt, ask_at=timezone.now(), at=timezone.now())
    page.wait_for_selector("text=We do not know whether M-Pesa paid it.")

    # then
    assert page.evaluate("window.opened_once")
    assert page.locator("details").first.get_attribute("open") is not None
    assert page.evaluate("document.activeElement.textContent") == "Ask M-Pesa now…"

    # when: the person is logged out
    Session.objects.all().delete()
    page.wait_for_selector("text=You are logged out, or this page is gone.")


def test_two_people_resolve_undo_and_void_a_market_in_two_browsers(opened: Opened, settings: Settings) -> None:
    # given
    settings.RESOLVE_APPROVAL_ABOVE = Decimal(500)
    wiring.policy.cache_clear()
    market = builders.market(question="Will the long rains begin before 25 March?")
    for outcome, amount in (("Yes", 300), ("No", 450)):
        builders.orm_bet(market, builders.member(), outcome, amount)
    Market.objects.filter(pk=market.pk).update(end_date=timezone.now())
    first, second = opened(), opened(size=browsing.PHONE)
    first.log_in_as(console_scenes.staff("operator", full_name="Grace Wambui"))
    second.log_in_as(console_scenes.staff("approver", full_name="Peter Second"))

    # when: the first person compares the outcomes, chooses one and gives the evidence
    page = first.go("/admin/")
    page.get_by_role("link", name=re.compile("market to resolve")).click()
    page.get_by_role("link", name=market.question).click()
    press(page, "Resolve or void…")
    page.wait_for_selector("text=Step 1 of 3")
    press(page, "Yes wins…")
    type_in(page, evidence_note="The weather service says so.", typed="Yes", proof=PIN)
    press(page, "Propose the decision")
    page.wait_for_selector("text=Proposed. Nothing is paid")
    link = re.search(r"/admin/proposals/[0-9]+/", page.content())
    assert link is not None

    # when: the second person opens the link and approves
    page = second.go(link[0])
    page.wait_for_selector("text=The weather service says so.")
    type_in(page, typed="approve", proof=PIN)
    press(page, "Approve and carry out")
    page.wait_for_selector("text=is decided, and its settlement has started")
    builders.settle(market, at=timezone.now())
    page.wait_for_selector("text=2 of 2")

    # when: two people undo it
    page = first.go(f"/admin/markets/{market.pk}/")
    press(page, "Undo the settlement…")
    type_in(page, reason="The weather service corrected itself.", typed="undo")
    press(page, "Undo the settlement of market")
    page.wait_for_selector("text=Sending is stopped for this market")
    waiting = re.search(r"/admin/proposals/[0-9]+/", page.content())
    assert waiting is not None
    page = second.go(waiting[0])
    type_in(page, typed="approve")
    press(page, "Approve and carry out")
    page.wait_for_selector("text=is being undone")
    undo.carry_out(market_id=market.pk, at=timezone.now(), policy=wiring.policy(), keep_going=lambda: True)

    # when: two people void it
    page = first.go(f"/admin/markets/{market.pk}/resolve/")
    press(page, "Void…")
    page.select_option("[name=reason]", "no_result")
    type_in(page, typed="void")
    press(page, "Propose the decision")
    page.wait_for_selector("text=Proposed. Nothing is paid")
    page = second.go(f"/admin/markets/{market.pk}/")
    page.get_by_role("link", name=re.compile("^proposal")).click()
    type_in(page, typed="approve")
    press(page, "Approve and carry out")
    page.wait_for_selector("text=is decided, and its settlement has started")

    # then
    builders.settle(market, at=timezone.now())
    market.refresh_from_db()
    assert market.status == "VOID"


def test_page_shows_a_workers_figures_without_a_click(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, queued: Any
) -> None:
    # given
    monkeypatch.setattr(preview_cache, "BETS_COMPUTED_IN_REQUEST", 0)
    market = builders.market()
    for outcome, amount in (("Yes", 300), ("No", 450)):
        builders.orm_bet(market, builders.member(), outcome, amount)
    screen = opened()
    screen.log_in_as(console_scenes.staff("operator"))
    page = screen.go(f"/admin/markets/{market.pk}/resolve/")
    assert page.get_by_text("being computed").count() == 3

    # when
    asked = [arguments for name, _, arguments in queued() if name == "payments.overview_tasks.look"]
    for arguments in asked:
        monitoring_tasks.compute_preview(*arguments)

    # then
    page.wait_for_selector("text=No bet has arrived since")
    assert page.get_by_text("being computed").count() == 0
    assert len(asked) == 3


def test_dispute_is_answered_and_upheld(opened: Opened) -> None:
    scene = console_scenes.to_decide(timezone.now())
    console_scenes.send_and_refuse(scene["dispute"].transaction, timezone.now())
    screen = opened()
    screen.log_in_as(console_scenes.staff("support"))
    page = screen.go("/admin/")
    page.get_by_role("link", name=re.compile("dispute to answer")).click()
    page.get_by_role("link", name=re.compile("It has not come")).click()
    press(page, "Answer…")
    type_in(page, text="We are looking at M-Pesa's records.")
    press(page, "Answer")
    page.wait_for_selector("text=Your answer is recorded")
    press(page, "Uphold…")
    page.select_option("[name=remedy]", "pay_to_wallet")
    type_in(page, text="M-Pesa refused it; it is in your wallet.", proof=PIN)
    press(page, "Uphold it")
    page.wait_for_selector("text=is upheld: the payout goes to the wallet")
    scene["dispute"].transaction.refresh_from_db()
    assert scene["dispute"].transaction.status == "COMPLETED"


def test_payouts_in_doubt_are_read_and_sending_is_stopped_by_keyboard(opened: Opened) -> None:
    console_scenes.send_and_time_out(builders.payout(285, at=timezone.now()), timezone.now())
    screen = opened()
    screen.log_in_as(console_scenes.staff("operator"))
    page = screen.go("/admin/in-doubt/")
    assert "M-Pesa's answer" in page.inner_text("table")

    page.goto(f"{screen.base}/admin/sending/")
    page.get_by_role("link", name="Stop all sending…").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#id_reason")
    page.focus("#id_reason")
    for words in ("Odd receipts in the statement.", "stop", PIN):
        page.keyboard.type(words)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Sending is off.")
    page.goto(f"{screen.base}/admin/")
    page.wait_for_selector("text=Sending is paused: switched off by a person")


def addresses(scene: dict[str, Any]) -> dict[str, str]:
    """Return the addresses of the pages by short names."""
    failed, held = scene["failed"].pk, scene["held"].pk
    return {
        "home": "/admin/",
        "markets": "/admin/markets/",
        "market": f"/admin/markets/{scene['football'].pk}/",
        "settlement": f"/admin/markets/{scene['settled'].pk}/",
        "scratched": f"/admin/markets/{scene['scratched'].pk}/",
        "undone": f"/admin/markets/{scene['undone'].pk}/",
        "payouts": "/admin/payouts/?state=failed",
        "payout": f"/admin/payouts/{failed}/",
        "held": f"/admin/payouts/{held}/",
        "decide": f"/admin/payouts/{held}/decide/",
        "to-wallet": f"/admin/payouts/{failed}/wallet/",
        "retry-many": "/admin/payouts/retry/",
        "in-doubt": "/admin/in-doubt/",
        "accounts": "/admin/accounts/",
        "account": f"/admin/accounts/{scene['account'].pk}/",
        "trial-balance": "/admin/trial-balance/",
        "members": "/admin/members/",
        "member": f"/admin/members/{scene['member'].pk}/",
        "audit": "/admin/audit/?verify=1",
        "resolve": f"/admin/markets/{scene['football'].pk}/resolve/",
        "resolve-2": f"/admin/markets/{scene['football'].pk}/resolve/decide/?decision=win:Draw",
        "weights": f"/admin/markets/{scene['football'].pk}/resolve/share/?kind=joint&weight_0=60&weight_1=30",
        "share": f"/admin/markets/{scene['football'].pk}/resolve/decide/?decision=joint:"
        + quote('{"Gor Mahia": 60, "Draw": 40}'),
        "member-debts": "/admin/recoveries/",
        "write-off": f"/admin/markets/{scene['debt'].settlement.market_id}/recoveries/write-off/",
        "undo-costs": "/admin/recoveries/costs/",
        "approve": f"/admin/proposals/{scene['proposal']}/",
        "undo": f"/admin/markets/{scene['settled'].pk}/undo/",
        "disputes": "/admin/disputes/",
        "dispute": f"/admin/disputes/{scene['dispute'].public_id}/",
        "sending": "/admin/sending/",
        "stop": "/admin/sending/stop/",
        "records": "/admin/records/",
    }


def test_no_page_has_a_serious_barrier_on_desktop_or_phone(opened: Opened) -> None:
    scene = console_scenes.busy_day(timezone.now())
    superuser = console_scenes.staff(full_name="Grace Wambui")
    axe, problems = Axe(), []
    for size, dark in ((browsing.DESKTOP, False), (browsing.PHONE, True)):
        screen = opened(size=size, dark=dark)
        screen.go("/admin/login/")
        problems += barriers(axe, screen, "login")
        screen.log_in_as(superuser)
        for name, path in addresses(scene).items():
            screen.go(path)
            if not dark or name in CHECKED_IN_DARK_MODE:
                problems += barriers(axe, screen, name)
            wider = screen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider <= 0, f"{name} is wider than its screen by {wider}"
    assert problems == []
    if where := os.environ.get("KASOKO_PICTURES"):
        take_pictures(opened, superuser, addresses(scene), Path(where))


def take_pictures(opened: Opened, superuser: CustomUser, paths: dict[str, str], where: Path) -> None:
    """Save the pictures of docs/console.md into a directory."""
    screens = {dark: opened(size=(1320, 840), dark=dark) for dark in (False, True)}
    for name, dark in PICTURES.items():
        screen = screens[dark]
        screen.log_in_as(superuser)
        overview.beat(worker="celery@kasoko", at=timezone.now())
        screen.go(paths[name])
        screen.save_screenshot(where / f"{name}.png", whole=False)
    phone = opened(size=browsing.PHONE, dark=True)
    phone.log_in_as(superuser)
    phone.go("/admin/")
    phone.save_screenshot(where / "home-phone.png", whole=False)


def barriers(axe: Axe, screen: browsing.Window, name: str) -> list[str]:
    """Return the serious problems that axe finds on a page: one line with page, rule and element for each."""
    # axe checks every rule, but reports only violations in full. That is four times as fast as a full report.
    report = axe.run(screen.page, options={"resultTypes": ["violations"]})
    assert len(report["passes"]) > 10, "axe checked too few rules"
    return [
        f"{name}: {problem['id']} ({problem['impact']}) at {node['target']}"
        for problem in report["violations"]
        if problem["impact"] in ("serious", "critical")
        for node in problem["nodes"][:3]
    ]
