"""Pages of acts above their thresholds name who proposed the act and who may approve it. A second person approves."""

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone

from payments.models import Breaker, Recovery, Transaction
from payments.payouts import breakers
from testing import builders, console_scenes
from testing.builders import PIN
from testing.console_scenes import client_of, hidden_value, page_text
from testing.dispute_steps import TEXT, dispute, failed_payout
from users import audit, figures
from users.models import Proposal

ACTS = ("payout.to_wallet", "recovery.set_off", "recovery.write_off", "sending.on")


@pytest.fixture
def _thresholds(db: None) -> None:
    with transaction.atomic():
        for act_name in ACTS:
            change = figures.Change(f"threshold:{act_name}", "100", builders.AT, "Test")
            figures.set_value(change, by=audit.MACHINE, at=builders.AT)


def client(role: str, name: str) -> Client:
    return client_of(console_scenes.staff(role, full_name=name))


def propose(console: Client, path: str, **form: str) -> Proposal:
    """Send the form of an act, which becomes a proposal."""
    shown = page_text(console.get(path))
    assert ("Second approval needed: another " in shown and "Propose it" in shown) or "uphold" in path
    answer = page_text(console.post(path, {"proof": PIN, **form}, follow=True))
    assert "Proposed. Nothing is done until another person approves it." in answer
    return Proposal.objects.get(state="OPEN")


def approve(console: Client, proposal: Proposal) -> str:
    path = f"/admin/proposals/{proposal.pk}/"
    shown = page_text(console.get(path))
    assert ("Grace Wambui" in shown, "proposes to" in shown) == (True, True)
    form = {"proof": PIN, "typed": "approve", "hash": proposal.hash}
    return page_text(console.post(path, form, follow=True))


def note(console: Client, path: str) -> str:
    """Return the page's note about a proposal that waits."""
    return page_text(console.get(path)).partition("Second approval needed: <a ")[2].partition("</p>")[0]


@pytest.mark.usefixtures("_thresholds")
def test_large_payment_to_the_wallet_and_remedy_name_both_people() -> None:
    # given
    first, second = client("operator", "Grace Wambui"), client("approver", "Peter Otieno")
    payout, disputed = failed_payout(builders.member()), failed_payout(builders.member())
    opened = dispute(disputed)
    for page, act, reader, form in (
        (f"/admin/payouts/{payout.pk}/", "wallet/", second, {"typed": "wallet", "reason": "Closed line."}),
        # An approver does not see disputes.
        (
            f"/admin/disputes/{opened.public_id}/",
            "uphold/",
            first,
            {"remedy": "pay_to_wallet", "text": "You are right."},
        ),
    ):
        # when
        proposal = propose(first, page + act, **form)

        # then
        shown = note(reader, page)
        assert "KES 285.00. Proposed by Grace Wambui" in shown
        assert "Only another operator or approver may approve it." in shown
        assert page + act not in page_text(first.get(page))
        assert "You proposed or approved this" in page_text(first.get(f"/admin/proposals/{proposal.pk}/"))
        assert "Only another operator or approver may approve it." in page_text(first.get("/admin/proposals/"))
        assert ("The member says: " + TEXT in page_text(second.get("/admin/proposals/"))) == (act == "uphold/")
        assert "Approved" in approve(second, proposal)
    assert set(Transaction.objects.values_list("status", flat=True)) == {"COMPLETED"}


@pytest.mark.usefixtures("_thresholds")
@pytest.mark.parametrize("act", ["set-off", "write-off"])
def test_large_decision_on_debts_names_both_people(act: str) -> None:
    # given
    first, second = client("approver", "Grace Wambui"), client("accountant", "Peter Otieno")
    owed = console_scenes.owing(timezone.now(), [("Faith Naliaka", 285), ("Brian Kiptoo", 140)])
    path = f"/admin/markets/{owed[0].settlement.market_id}/recoveries/{act}/"  # type: ignore[union-attr]
    seen = hidden_value(page_text(first.get(path)), "seen")

    # when
    proposal = propose(first, path, seen=seen, pct="30", reason="Gone.", typed="write off")

    # then
    shown = note(second, "/admin/recoveries/")
    assert "KES 425.00. Proposed by Grace Wambui" in shown
    assert "Only another approver or accountant may approve it." in shown
    assert "Approved and carried out." in approve(second, proposal)
    expected = "SET_OFF" if act == "set-off" else "WRITTEN_OFF"
    assert set(Recovery.objects.values_list("decision", flat=True)) == {expected}


@pytest.mark.usefixtures("_thresholds")
@pytest.mark.parametrize("cause", ["switch", "orphan"])
def test_start_of_sending_names_both_people(cause: str) -> None:
    # given
    first, second = client("operator", "Grace Wambui"), client("operator", "Peter Otieno")
    builders.payout(285)
    with transaction.atomic():
        breakers.stop(Breaker.Cause(cause), reason="Odd.", at=builders.AT)
    path = "/admin/sending/start/" if cause == "switch" else "/admin/sending/lift/orphan/"

    # when
    proposal = propose(first, path, reason="In the statement.", typed="send")

    # then
    shown = note(second, "/admin/sending/")
    assert "KES 285.00. Proposed by Grace Wambui" in shown
    assert "Only another operator or approver may approve it." in shown
    assert path not in page_text(second.get("/admin/sending/"))
    assert "Approved. Due payouts are sent again" in approve(second, proposal)
    assert not breakers.any_open()
