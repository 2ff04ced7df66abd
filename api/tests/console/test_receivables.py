"""What members owe back, decided in the console: seen before, by those who may, and only while it is what was seen."""

from decimal import Decimal

import pytest
from django.test import Client
from django.utils import timezone

from payments.ledger import journal, receivables
from payments.models import Recovery
from testing import builders, console_scenes
from testing.builders import PIN, nothing_moved
from testing.console_scenes import of, text
from users.models import AuditEntry


@pytest.fixture
def console(db: None) -> Client:
    return of(console_scenes.staff("accountant", full_name="Peter Books"))


@pytest.fixture
def owed(db: None) -> list[Recovery]:
    return console_scenes.owing(timezone.now(), [("Faith Naliaka", 285), ("Brian Kiptoo", 140)])


def do(client: Client, path: str, **form: str) -> str:
    """Look at the page, then send its form as it is, with what is typed."""
    seen = text(client.get(path)).partition('name="seen" value="')[2].partition('"')[0]
    return text(client.post(path, {"proof": PIN, "seen": seen, **form}, follow=True))


def test_debts_are_listed_with_what_is_owed_and_the_home_page_asks_for_a_decision(
    console: Client, owed: list[Recovery]
) -> None:
    assert "debts to decide about" in text(console.get("/admin/"))
    page = text(console.get("/admin/recoveries/"))
    assert "KES 425.00" in page and "by 2 members" in page and "Faith Naliaka" in page and page.count("Set off…") == 2
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    assert f"?market={market_id}" in text(console.get(f"/admin/markets/{market_id}/"))
    assert "Set off all of this market…" in text(console.get(f"/admin/recoveries/?market={market_id}"))
    assert "No member owes anything here" in text(console.get("/admin/recoveries/?show=written_off"))
    viewer = of(console_scenes.staff("viewer"))
    assert "Set off…" not in text(viewer.get("/admin/recoveries/"))


def test_one_debt_is_set_off(console: Client, owed: list[Recovery]) -> None:
    path = f"/admin/recoveries/{owed[0].pk}/set-off/"
    page = text(console.get(path))
    assert "The member owes KES 285.00" in page and "Nothing is taken from a wallet now" in page
    with nothing_moved():
        assert "That is not your PIN" in do(console, path, pct="25", proof="0000")
        for typed in ("", "0", "101", "ten", "1.5"):
            assert "Nothing was done" in do(console, path, pct=typed)
    assert "Up to 25 % of each later dividend is kept, for 1 debt." in do(console, path, pct="25")
    assert list(Recovery.objects.order_by("pk").values_list("decision", "pct")) == [("SET_OFF", 25), ("OPEN", None)]
    assert AuditEntry.objects.filter(action="recovery.set_off", actor__full_name="Peter Books").count() == 1


def test_all_debts_of_a_market_are_written_off_to_bad_debt(console: Client, owed: list[Recovery]) -> None:
    # given
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    path = f"/admin/markets/{market_id}/recoveries/write-off/"
    assert "2 members owe KES 425.00. We bear that as our loss" in text(console.get(path))

    # when, then
    with nothing_moved():
        assert "Type “write off” exactly" in do(console, path, reason="Not worth the calls.")
    page = do(console, path, reason="Not worth the calls.", typed="write off")
    assert "KES 425.00 of 2 debts is written off." in page
    assert journal.balance(journal.BAD_DEBT) == 425 and receivables.still_owed() == (0, Decimal(0))
    assert console.get(path).status_code == 404
    assert "Not worth the calls." in text(console.get(f"/admin/recoveries/?market={market_id}&show=all"))


def test_debts_that_changed_since_the_look_are_a_refusal(console: Client, owed: list[Recovery]) -> None:
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    path = f"/admin/markets/{market_id}/recoveries/write-off/"
    seen = text(console.get(path)).partition('name="seen" value="')[2].partition('"')[0]
    receivables.write_off(recovery_id=owed[1].pk, reason="Small.", by=console_scenes.ACTOR, at=timezone.now())
    form = {"proof": PIN, "seen": seen, "reason": "All of it.", "typed": "write off"}
    with nothing_moved():
        assert "has changed since you looked" in text(console.post(path, form))
        assert "has changed since you looked" in text(console.post(path, form | {"seen": ""}))


def test_nobody_decides_about_what_they_owe_themselves(db: None, owed: list[Recovery]) -> None:
    debtor = owed[0].user
    debtor.is_staff = debtor.is_superuser = True
    debtor.save()
    with nothing_moved():
        page = do(of(debtor), f"/admin/recoveries/{owed[0].pk}/set-off/", pct="5", proof=builders.PIN)
    assert "You owe this money yourself" in page


def test_what_undos_cost_is_told_by_market_and_by_who_had_resolved(console: Client, owed: list[Recovery]) -> None:
    receivables.write_off(recovery_id=owed[1].pk, reason="Small.", by=console_scenes.ACTOR, at=timezone.now())
    page = text(console.get("/admin/recoveries/costs/"))
    assert page.count("KES 425.00") == 2 and page.count("KES 285.00") == 2 and page.count("KES 140.00") == 2
    assert "Grace Hasty" in page


def test_without_any_undo_the_pages_say_so(console: Client) -> None:
    assert "No settlement was undone" in text(console.get("/admin/recoveries/costs/"))
    assert "No member owes anything here" in text(console.get("/admin/recoveries/"))
    assert console.get("/admin/recoveries/7/set-off/").status_code == 404
    assert console.get(f"/admin/markets/{10**30}/recoveries/set-off/").status_code == 404
