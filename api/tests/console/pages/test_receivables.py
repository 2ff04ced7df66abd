"""Tests of the member debt pages: the list, set-off, write-off, and the cost of undone settlements."""

from decimal import Decimal

import pytest
from django.test import Client
from django.utils import timezone

from payments.ledger import debt_decisions, journal, receivables
from payments.models import Recovery
from testing import builders, console_scenes
from testing.builders import PIN, nothing_moved
from testing.console_scenes import client_of, hidden_value, page_text
from users.models import AuditEntry


@pytest.fixture
def console(db: None) -> Client:
    return client_of(console_scenes.staff("accountant", full_name="Peter Books"))


@pytest.fixture
def owed(db: None) -> list[Recovery]:
    return console_scenes.owing(timezone.now(), [("Faith Naliaka", 285), ("Brian Kiptoo", 140)])


def submit(client: Client, path: str, **form: str) -> str:
    """Open a page, send its form with these answers, and return the HTML of the page that follows."""
    seen = hidden_value(page_text(client.get(path)), "seen")
    return page_text(client.post(path, {"proof": PIN, "seen": seen, **form}, follow=True))


def test_debts_are_listed_and_shown_on_the_home_page(console: Client, owed: list[Recovery]) -> None:
    assert "member debts to decide" in page_text(console.get("/admin/"))
    page = page_text(console.get("/admin/recoveries/"))
    assert "KES 425.00" in page
    assert "on 2 debts" in page
    assert "Faith Naliaka" in page
    assert page.count("Set off…") == 2
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    assert f"?market={market_id}" in page_text(console.get(f"/admin/markets/{market_id}/"))
    assert "Set off all of this market…" in page_text(console.get(f"/admin/recoveries/?market={market_id}"))
    assert "No debts in this list." in page_text(console.get("/admin/recoveries/?show=written_off"))
    viewer = client_of(console_scenes.staff("viewer"))
    assert "Set off…" not in page_text(viewer.get("/admin/recoveries/"))


def test_one_debt_is_set_off(console: Client, owed: list[Recovery]) -> None:
    path = f"/admin/recoveries/{owed[0].pk}/set-off/"
    page = page_text(console.get(path))
    assert "The member owes KES 285.00" in page
    assert "Nothing is taken from a wallet now" in page
    with nothing_moved():
        assert "That is not your PIN" in submit(console, path, pct="25", proof="0000")
        for typed in ("", "0", "101", "ten", "1.5"):
            assert "Nothing was done" in submit(console, path, pct=typed)
    assert "Up to 25 % of each later dividend is kept, for 1 debt." in submit(console, path, pct="25")
    assert list(Recovery.objects.order_by("pk").values_list("decision", "pct")) == [("SET_OFF", 25), ("OPEN", None)]
    assert AuditEntry.objects.filter(action="recovery.set_off", actor__full_name="Peter Books").count() == 1


def test_all_debts_of_a_market_are_written_off(console: Client, owed: list[Recovery]) -> None:
    # given
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    path = f"/admin/markets/{market_id}/recoveries/write-off/"
    assert "2 debts sum to KES 425.00. We bear this loss" in page_text(console.get(path))

    # when, then
    with nothing_moved():
        assert "Type “write off” exactly" in submit(console, path, reason="Not worth the calls.")
    page = submit(console, path, reason="Not worth the calls.", typed="write off")
    assert "We wrote off 2 debts, KES 425.00 in total." in page
    assert journal.balance(journal.BAD_DEBT) == 425
    assert receivables.still_owed() == (0, Decimal(0))
    assert console.get(path).status_code == 404
    assert "Not worth the calls." in page_text(console.get(f"/admin/recoveries/?market={market_id}&show=all"))


def test_decision_on_debts_that_have_changed_is_refused(console: Client, owed: list[Recovery]) -> None:
    market_id = owed[0].settlement.market_id  # type: ignore[union-attr]
    path = f"/admin/markets/{market_id}/recoveries/write-off/"
    seen = hidden_value(page_text(console.get(path)), "seen")
    debt_decisions.write_off(recovery_id=owed[1].pk, reason="Small.", by=console_scenes.ACTOR, at=timezone.now())
    form = {"proof": PIN, "seen": seen, "reason": "All of it.", "typed": "write off"}
    with nothing_moved():
        assert "The amount owed has changed since you saw it." in page_text(console.post(path, form))
        assert "The amount owed has changed since you saw it." in page_text(console.post(path, form | {"seen": ""}))


def test_own_debt_must_be_decided_by_another_person(db: None, owed: list[Recovery]) -> None:
    debtor = owed[0].user
    debtor.is_staff = debtor.is_superuser = True
    debtor.save()
    with nothing_moved():
        page = submit(client_of(debtor), f"/admin/recoveries/{owed[0].pk}/set-off/", pct="5", proof=builders.PIN)
    assert "You owe this money yourself" in page


def test_cost_of_undos_is_summed_by_market_and_operator(console: Client, owed: list[Recovery]) -> None:
    debt_decisions.write_off(recovery_id=owed[1].pk, reason="Small.", by=console_scenes.ACTOR, at=timezone.now())
    page = page_text(console.get("/admin/recoveries/costs/"))
    assert page.count("KES 425.00") == 2
    assert page.count("KES 285.00") == 2
    assert page.count("KES 140.00") == 2
    assert "Grace Hasty" in page


def test_debt_pages_say_when_they_are_empty(console: Client) -> None:
    assert "No settlement was undone" in page_text(console.get("/admin/recoveries/costs/"))
    assert "No debts in this list." in page_text(console.get("/admin/recoveries/"))
    assert console.get("/admin/recoveries/7/set-off/").status_code == 404
    assert console.get(f"/admin/markets/{10**30}/recoveries/set-off/").status_code == 404
