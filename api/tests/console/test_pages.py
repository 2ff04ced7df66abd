"""Tests of every console page: permissions, loaded files, number of queries, empty pages, odd input."""

import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from django.conf import Settings
from django.contrib import admin
from django.db import connection
from django.template.loader import get_template
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from api.console import site
from api.security import POLICY
from markets.models import NAIROBI, Market
from payments.models import Breaker, Dispute, LedgerAccount, Recovery, Settlement, Transaction
from testing import builders, console_scenes, payout_steps
from testing.builders import nothing_moved
from testing.console_scenes import client_of, page_text
from users import authority, roles
from users.models import ApiKey, CustomUser, Proposal

PATTERNS = [pattern for module in site.PAGES for pattern in module.urls]
ROOT = Path(__file__).resolve().parents[3]
# The permission that each page needs. A new page needs a line here, or a test fails.
ACCOUNT = ("suspend", "unlock", "reinstate", "reset_pin", "change_phone")
NEEDS = {
    "index": "view_console",
    "api_keys": "make_api_keys",
    "api_key_make": "make_api_keys",
    "api_key_revoke": "make_api_keys",
    "log_out_everywhere": "view_console",
    "markets": "view_console",
    "market": "view_console",
    "payouts": "view_console",
    "payout": "view_console",
    "payouts_retry": "act_on_payouts",
    "payouts_retries": "view_console",
    "payout_retry": "act_on_payouts",
    "payout_ask": "act_on_payouts",
    "payout_hold": "act_on_payouts",
    "payout_release": "act_on_payouts",
    "payout_wallet": "act_on_payouts",
    "payout_reissue": "decide_payout",
    "payout_decide": "decide_payout",
    "payout_confirm": "decide_payout",
    "payout_refuse": "decide_payout",
    "in_doubt": "view_console",
    "limbo": "view_console",
    "accounts": "view_ledger",
    "account": "view_ledger",
    "account_export": "export_books",
    "trial_balance": "view_ledger",
    "recoveries": "view_ledger",
    "undo_costs": "view_ledger",
    "recovery_set_off": "decide_recovery",
    "recovery_write_off": "decide_recovery",
    "market_set_off": "decide_recovery",
    "market_write_off": "decide_recovery",
    "trial_balance_export": "export_books",
    "members": "view_members",
    "member": "view_members",
    "member_phone": "open_phone",
    "member_note": "note_member",
    "audit": "view_audit",
    "staff": "manage_staff",
    "staff_add": "manage_staff",
    **{f"staff_{verb}": "manage_staff" for verb in (*ACCOUNT, "role", "reset_app")},
    **{f"member_{verb}": "change_member" for verb in ACCOUNT},
    "audit_export": "view_audit",
    "market_create": "run_market",
    "market_change": "run_market",
    "market_suspend_betting": "run_market",
    "market_resume_betting": "run_market",
    "market_close": "run_market",
    "market_suspend_sending": "switch_sending",
    "market_resume_sending": "switch_sending",
    "market_choose": "resolve_market",
    "market_share": "resolve_market",
    "market_resolve": "resolve_market",
    "market_withdraw": "resolve_market",
    "market_undo": "resolve_market",
    "market_scratch": "resolve_market",
    "proposals": "view_console",
    "figures": "view_console",
    "figure_change": "approve_resolution",
    "proposal": "view_console",
    "proposal_reject": "view_console",
    "disputes": "answer_dispute",
    "dispute": "answer_dispute",
    "dispute_answer": "answer_dispute",
    "dispute_reject": "answer_dispute",
    "dispute_uphold": "answer_dispute",
    "restores": "view_console",
    "restore_decide": "decide_payout",
    "restore_confirm": "decide_payout",
    "sending": "view_console",
    "sending_lift": "switch_sending",
    "sending_off": "switch_sending",
    "sending_on": "switch_sending",
    "sending_release": "switch_sending",
}


# Pages that redirect. No decision waits for confirmation in these tests, and `limbo` is a former address.
REDIRECTS = {"payout_confirm": 302, "payout_refuse": 302, "limbo": 301}
# Pages whose POST without answers redirects.
POSTED = {*REDIRECTS, "market_resolve", "log_out_everywhere"}


def an_api_key() -> int:
    """Return the id of an API key."""
    maker, now = CustomUser.objects.filter(is_staff=True)[0], timezone.now()
    fields = {"name": "Machine", "acts": [], "addresses": [], "made_by": maker, "made_at": now, "expires_at": now}
    return ApiKey.objects.get_or_create(name="Machine", defaults=fields)[0].pk


def address(name: str) -> str:
    """Return a page's address with the id of an existing row."""
    if name.startswith("payout_") or name == "payout":
        return reverse(f"admin:{name}", args=[Transaction.objects.order_by("pk")[0].pk])
    if name.startswith("recovery_"):
        return reverse(f"admin:{name}", args=[Recovery.objects.order_by("pk")[0].pk])
    if name in ("market_set_off", "market_write_off"):
        return reverse(f"admin:{name}", args=[Recovery.objects.order_by("pk")[0].settlement.market_id])
    if name in ("market_choose", "market_share", "market_resolve"):
        running = Market.objects.filter(status="OPEN").order_by("pk")[0].pk
        return reverse(f"admin:{name}", args=[running]) + ("?decision=win:A" if name == "market_resolve" else "")
    if name in ("proposal", "proposal_reject"):
        return reverse(f"admin:{name}", args=[Proposal.objects.order_by("pk")[0].pk])
    if name.startswith("dispute_") or name == "dispute":
        return reverse(f"admin:{name}", args=[Dispute.objects.order_by("pk")[0].public_id])
    if name == "market" or (name.startswith("market_") and name != "market_create"):
        return reverse(f"admin:{name}", args=[Transaction.objects.order_by("pk")[0].settlement.market_id])
    if name == "sending_release":
        return reverse(f"admin:{name}", args=[Settlement.objects.order_by("pk")[0].pk])
    if name in ("sending_lift", "api_key_revoke"):
        return reverse(f"admin:{name}", args=["orphan" if name == "sending_lift" else an_api_key()])
    if name in ("account", "account_export"):
        return reverse(f"admin:{name}", args=[LedgerAccount.objects.order_by("pk")[0].pk])
    if name.startswith(("member", "staff_")) and name not in ("members", "staff_add"):
        return reverse(f"admin:{name}", args=[Transaction.objects.order_by("pk")[0].user_id])
    return reverse(f"admin:{name}", args=["excise_pct"] if name == "figure_change" else [])


def test_every_page_is_in_the_table_of_permissions() -> None:
    assert {pattern.name for pattern in PATTERNS} | {"index"} == set(NEEDS)
    asked = {pattern.name: authority.ACTS[pattern.callback.act_name].permission for pattern in PATTERNS}
    assert asked | {"index": "view_console"} == NEEDS
    assert set(NEEDS.values()) <= set(roles.PERMISSIONS)


@pytest.mark.parametrize("role", [*roles.ROLES, "superuser", "no role"])
def test_each_role_can_do_exactly_what_the_table_says(db: None, settings: Settings, role: str) -> None:
    # given
    settings.PROFILE = "production"  # In development, staff without a role may do everything.
    payout_steps.failed(builders.payout(285))
    console_scenes.to_decide(timezone.now())
    person = console_scenes.staff(None if role == "superuser" else role) if role != "no role" else builders.operator()
    allowed = set(roles.PERMISSIONS) if role == "superuser" else roles.ROLES.get(role, set())
    client = client_of(person)

    # when, then: neither a GET nor a POST without answers moves money
    with nothing_moved():
        # The last page ends the session.
        for name, needed in sorted(NEEDS.items(), key=lambda page: page[0] == "log_out_everywhere"):
            opened, sent = client.get(address(name)), client.post(address(name), {})
            if needed not in allowed:
                assert (opened.status_code, sent.status_code) == (403, 403), name
                assert roles.PERMISSIONS[needed] in page_text(opened)
            else:
                may_not = name == "proposal_reject" and "approve_resolution" not in allowed
                expected = 403 if may_not else REDIRECTS.get(name, 200)
                assert opened.status_code == expected, name
                assert sent.status_code in (200, 403, 405, 409) or name in POSTED, name


def test_person_who_is_not_staff_opens_no_page(db: None) -> None:
    payout_steps.failed(builders.payout(285))
    console_scenes.to_decide(timezone.now())
    for client in (Client(), client_of(builders.member())):
        for name in NEEDS:
            answer = client.get(address(name))
            assert answer.status_code == 302, name
            assert answer.headers["Location"].startswith("/admin/login/"), name


def test_roles_of_the_database_and_the_document_match_the_code(db: None) -> None:
    from django.contrib.auth.models import Group

    installed = {
        group.name: set(group.permissions.filter(content_type__app_label="users").values_list("codename", flat=True))
        for group in Group.objects.all()
    }
    assert installed == roles.ROLES
    written = (ROOT / "docs" / "console.md").read_text(encoding="utf-8")
    for codename in roles.PERMISSIONS:
        ticks = [role in written_roles(written, codename) for role in roles.ROLES]
        assert ticks == [codename in allowed for allowed in roles.ROLES.values()], codename


def written_roles(text: str, codename: str) -> set[str]:
    """Return the roles that the document's table ticks for a permission."""
    heads = re.search(r"\| Permission \| May \|(.+)\|", text)
    row = re.search(rf"\| `{codename}` \| [^|]+ \|(.+)\|", text)
    assert heads is not None, "docs/console.md has no table of permissions"
    assert row is not None, f"docs/console.md has no row for {codename}"
    names = [name.strip() for name in heads[1].split("|")]
    return {name for name, tick in zip(names, row[1].split("|"), strict=True) if tick.strip()}


# --- loaded files ----------------------------------------------------------------------------------------------------


def test_no_page_loads_from_another_host(db: None) -> None:
    console_scenes.busy_day(timezone.now())
    client = client_of(console_scenes.staff())
    records = [f"/admin/{model._meta.app_label}/{model._meta.model_name}/" for model in admin.site._registry]
    for path in [*(address(name) for name in NEEDS), "/admin/records/", *records, "/admin/login/"]:
        answer = client.get(path, follow=True)
        assert answer.headers["Content-Security-Policy"] == POLICY, path
        if answer.headers["Content-Type"].startswith("text/html"):
            page = answer.content.decode()
            outside = re.findall(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//[^"'\s>]+""", page)
            assert outside == [], path
            assert "/static/console/console.css" in page, path


def test_no_stylesheet_script_or_template_names_another_host() -> None:
    for app in ("api", "users", "payments", "markets"):
        for file in (ROOT / app).rglob("*"):
            if file.suffix in (".css", ".js", ".html", ".svg"):
                addresses = re.findall(r"https?://(?!www\.w3\.org/)[^\s\"')]+", file.read_text(encoding="utf-8"))
                assert addresses == [], file


def test_every_model_of_the_admin_uses_the_theme(db: None) -> None:
    from unfold.admin import ModelAdmin

    assert [model for model, options in admin.site._registry.items() if not isinstance(options, ModelAdmin)] == []
    assert get_template("admin/base.html").origin.name.find("unfold") > 0


def test_label_says_if_the_money_is_real(db: None, settings: object) -> None:
    client = client_of(console_scenes.staff())
    assert "Sandbox" in page_text(client.get("/admin/"))
    settings.MPESA_PRODUCTION = True  # type: ignore[attr-defined]
    assert "Live money" in page_text(client.get("/admin/"))


# --- number of queries -----------------------------------------------------------------------------------------------


def test_number_of_queries_does_not_grow_with_rows(db: None) -> None:
    """Open every page with few rows and with many. The number of queries is the same, and at most 30."""
    at = timezone.now()
    superuser = console_scenes.staff()
    client = client_of(superuser)
    pages = [name for name in NEEDS if name not in ("payout_confirm", "payout_refuse")]

    def settled(number: int) -> None:
        market = builders.settled_market(
            [(builders.member(), "Yes", 100 + place) for place in range(number)], fee_pct=0
        )
        # Several payouts in doubt open a breaker, which would stop the next market's payout.
        Breaker.objects.update(opened_at=None, closed_at=timezone.now())
        for payout in Transaction.objects.filter(settlement__market=market, destination="mpesa"):
            console_scenes.send_and_time_out(payout, at)
            break

    def counted() -> tuple[dict[str, int], dict[str, int]]:
        """Open each page twice. Return the numbers of queries of the first openings, then of the second."""
        openings: list[dict[str, int]] = [{}, {}]
        for name in pages:
            for opening in openings:
                with CaptureQueriesContext(connection) as queries:
                    client.get(address(name))
                # Any page may measure the clock of the database, once a minute, or look for new figures.
                timed = [q for q in queries.captured_queries if re.search('clock_timestamp|"users_figure"', q["sql"])]
                opening[name] = len(queries.captured_queries) - len(timed)
        return openings[0], openings[1]

    console_scenes.to_decide(at)
    settled(3)
    first, few = counted()
    for number in (4, 5, 6):
        settled(number)
    _, many = counted()
    assert many == few
    assert {name: count for name, count in few.items() if count > 30} == {}
    # The first opening computes the previews of four decisions. A preview takes eleven queries for any number of bets;
    # one of them reads the dated tariff. The page itself reads the threshold and a person's acts of the day.
    assert {name: count for name, count in first.items() if count > 32 and name != "market_choose"} == {}
    assert first["market_choose"] <= 57
    assert few["market_choose"] <= 20


# --- empty pages and odd input ---------------------------------------------------------------------------------------


def test_empty_pages_say_what_to_do(db: None) -> None:
    client = client_of(console_scenes.staff())
    for path, words in {
        "/admin/": "Nothing needs your attention.",
        "/admin/payouts/": "No payouts yet. Resolving a market creates them.",
        "/admin/in-doubt/": "No money is in doubt.",
        "/admin/markets/": "No market matches",
        "/admin/markets/?show=due": "No market waits for its outcome",
        "/admin/trial-balance/": "No transfer is booked yet.",
        "/admin/sending/": "No breaker is open",
        "/admin/payouts/retries/": "No payouts were sent again in bulk yet.",
        "/admin/payouts/retry/": "No failed payout in this selection may be sent again.",
    }.items():
        assert words in page_text(client.get(path)), path


@pytest.mark.parametrize(
    "path",
    [
        "/admin/payouts/999999/",
        "/admin/payouts/999999/retry/",
        "/admin/markets/999999/",
        "/admin/members/999999/",
        "/admin/accounts/999999/",
        f"/admin/payouts/{10**30}/",
        f"/admin/members/{10**30}/",
        f"/admin/accounts/{10**30}/",
        f"/admin/markets/{10**30}/",
    ],
)
def test_missing_row_gives_a_not_found_page(db: None, path: str) -> None:
    answer = client_of(console_scenes.staff()).get(path)
    assert answer.status_code == 404
    assert "Page not found" in answer.content.decode()


def test_former_address_redirects_to_the_payouts_in_doubt(db: None) -> None:
    answer = client_of(console_scenes.staff()).get("/admin/limbo/")
    assert answer.status_code == 301
    assert answer.headers["Location"] == "/admin/in-doubt/"


ODD = ("\x00", "%", "'", "<script>alert(1)</script>", "9" * 30, "2547" + "0" * 8, "KASOKO--", "٣")


@pytest.mark.parametrize(
    "path",
    [
        "/admin/payouts/?q={}&state={}&code={}&market={}&before={}",
        "/admin/markets/?q={}&show={}&before={}",
        "/admin/members/?q={}&before={}",
        "/admin/accounts/?q={}&kind={}&before={}",
        "/admin/audit/?subject={}&action={}&before={}",
        "/admin/trial-balance/?day={}",
        "/admin/payouts/retry/?code={}&hours={}&market={}",
    ],
)
def test_odd_search_text_gives_no_error_and_no_script(db: None, path: str) -> None:
    client = client_of(console_scenes.staff())
    for typed in ODD:
        answer = client.get(path.replace("{}", quote(typed)))
        assert answer.status_code == 200, typed
        assert "<script>alert" not in answer.content.decode()


def test_phones_are_masked_on_every_page(db: None) -> None:
    console_scenes.busy_day(timezone.now())
    client = client_of(console_scenes.staff("operator"))
    for name in NEEDS:
        page = client.get(address(name))
        body = b"".join(page) if page.streaming else page.content
        assert not re.search(rb"2547\d{8}", body), name


def test_amounts_are_shillings_and_times_are_nairobi(db: None) -> None:
    at = timezone.now() - timedelta(hours=2)
    payout = builders.payout(1_234, at=at)
    page = client_of(console_scenes.staff()).get(f"/admin/payouts/{payout.pk}/").content.decode()
    nairobi = at.astimezone(NAIROBI)
    assert "KES 1,234.00" in page
    assert f"{nairobi.day} {nairobi:%b}, {nairobi:%H:%M} EAT" in page
    assert "2 h ago" in page
