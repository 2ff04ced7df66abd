"""Markets decided in the console: seen before, by two people where it is large, taken back; and disputes answered."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.test import Client
from django.utils import timezone

from markets.models import NAIROBI, Market
from payments import disputes, monitoring_tasks, wiring
from payments.ledger import receivables
from payments.models import Dispute, Proposal, Recovery, Settlement, Transaction
from payments.payouts import float_balance
from payments.policy import Policy
from payments.settlement import preview_cache
from payments.settlement.decision import Decision
from testing import builders, console_scenes, payout_steps
from testing.builders import PIN, bet, market, member, nothing_moved, orm_bet, policy
from testing.console_scenes import of, text
from users.models import AuditEntry, CustomUser


@pytest.fixture
def console(db: None) -> Client:
    return of(console_scenes.staff("operator", full_name="Grace Wambui"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Policy:
    """From 500 shillings on a decision takes two people."""
    ruled = policy(approval_above=console_scenes.TWO_PEOPLE.approval_above)
    monkeypatch.setattr(wiring, "policy", cached(ruled))
    return ruled


def cached(ruled: Policy) -> Any:
    def read() -> Policy:
        return ruled

    read.cache_clear = lambda: None  # type: ignore[attr-defined]
    return read


def do(client: Client, path: str, **form: str) -> str:
    return text(client.post(path, {"proof": PIN, **form}, follow=True))


def hidden(page: str, name: str) -> str:
    return page.partition(f'name="{name}" value="')[2].partition('"')[0]


def of_two(stakes: int = 200) -> Market:
    made = market()
    orm_bet(made, member(), "Yes", 100)
    orm_bet(made, member(), "No", stakes)
    return made


def look(client: Client, made: Market, decision: str = "win:Yes", **more: str) -> dict[str, str]:
    """Step two, and the form that it fills in."""
    page = text(client.get(f"/admin/markets/{made.pk}/resolve/decide/", {"decision": decision, **more}))
    assert "Step 2 of 3" in page
    word = decision.partition(":")[2] or "void"
    return {"decision": decision, "hash": hidden(page, "hash"), "typed": word, "evidence_note": "Kenya Met."} | more


# --- resolve and void ------------------------------------------------------------------------------------------------


def test_a_market_is_resolved_as_it_was_seen(console: Client, queued: Any) -> None:
    # given
    made = of_two()
    float_balance.note(Decimal(100), at=timezone.now())

    # when, then: side by side, nothing is decided by looking
    with nothing_moved():
        page = text(console.get(f"/admin/markets/{made.pk}/resolve/"))
        assert page.count(" wins…") == 2 and "Void…" in page
        assert "KES 285.00" in page and "KES 15.00" in page and "2.8500" in page and "short" in page
        form = look(console, made)
        assert "the winner" not in do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form | {"typed": "yes"})

    # when
    page = do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form, evidence_url="https://meteo.go.ke/rain")

    # then
    run = Settlement.objects.get()
    assert f"Market {made.pk} is decided." in page
    assert (run.rule, run.evidence_url, run.evidence_note) == ("WINNER", "https://meteo.go.ke/rain", "Kenya Met.")
    assert queued() == [("payments.settlement_tasks.settle_market", str(run.public_id), [made.pk])]
    assert AuditEntry.objects.filter(action="market.resolve", actor__full_name="Grace Wambui").count() == 1
    assert console.get(f"/admin/markets/{made.pk}/resolve/").status_code == 404


def test_numbers_that_moved_since_the_look_are_a_refusal(console: Client) -> None:
    made = of_two()
    form = look(console, made)
    bet(made, member(balance=50), "No", 50)
    with nothing_moved():
        page = do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form)
    assert "The numbers have moved since that preview: look again." in page
    assert "no money was moved" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evidence_url": "javascript:alert(1)"}, "must begin with http"),
        ({"evidence_note": ""}, "What it says: please fill this in"),
        ({"ended": "soon"}, "That is no date and time"),
        ({"ended": "2099-01-01T10:00"}, "must not lie ahead"),
        ({"hash": "0" * 64}, "The numbers have moved"),
        ({"typed": "No"}, "Type “Yes” exactly"),
        ({"proof": "0000"}, "That is not your PIN"),
    ],
)
def test_what_is_missing_or_odd_decides_nothing(console: Client, change: dict[str, str], words: str) -> None:
    made = of_two()
    form = look(console, made)
    with nothing_moved():
        assert words in do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form | change)


@pytest.mark.parametrize("decision", ["", "win:", "win:Maybe", "maybe:Yes"])
def test_a_decision_that_means_nothing_leads_back_to_the_choice(console: Client, decision: str) -> None:
    made = of_two()
    answer = console.get(f"/admin/markets/{made.pk}/resolve/decide/", {"decision": decision})
    assert answer.headers["Location"] == f"/admin/markets/{made.pk}/resolve/"


def test_late_bets_are_seen_and_go_back(console: Client) -> None:
    made = of_two()
    Market.objects.filter(pk=made.pk).update(end_date=timezone.now() - timedelta(hours=1))
    ended = (builders.AT - timedelta(minutes=1)).astimezone(NAIROBI).strftime("%Y-%m-%dT%H:%M")
    form = look(console, made, ended=ended)
    page = text(console.get(f"/admin/markets/{made.pk}/resolve/decide/", {"decision": "win:Yes", "ended": ended}))
    assert "2 of them late" in page and "KES 300.00 go back" in page
    do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form)
    assert Settlement.objects.get().effective_close_at == datetime.fromisoformat(ended).replace(tzinfo=NAIROBI)


def test_a_market_is_voided_with_a_reason(console: Client) -> None:
    made = of_two()
    form = look(console, made, "void:")
    with nothing_moved():
        assert "Void because: please fill this in" in do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form)
    do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form | {"reason": "postponed"})
    assert Settlement.objects.values_list("rule", "reason").get() == ("VOID", "postponed")


# --- several winners -------------------------------------------------------------------------------------------------


def of_three() -> Market:
    made = market(["A", "B", "C"], fee_pct=0)
    for outcome, amount in (("A", 100), ("B", 300), ("C", 200)):
        orm_bet(made, member(), outcome, amount)
    return made


@pytest.mark.parametrize(
    ("kind", "rule", "dividends"),
    [("joint", "JOINT", {"A": 200, "B": 400}), ("split", "SPLIT", {"A": 300, "B": 300})],
)
def test_several_winners_are_given_weights_seen_and_resolved(
    console: Client, kind: str, rule: str, dividends: dict[str, int]
) -> None:
    # given
    made = of_three()
    assert "Joint winners or a split…" in text(console.get(f"/admin/markets/{made.pk}/resolve/"))
    asked = {"kind": kind, "weight_0": "50", "weight_1": "50", "weight_2": ""}

    # when
    with nothing_moved():
        answer = console.get(f"/admin/markets/{made.pk}/resolve/share/", asked, follow=True)
        page = text(answer)
    assert "Step 2 of 3" in page and "A 50 %, B 50 %" in page
    form = {"hash": hidden(page, "hash"), "evidence_note": "A tie."}
    form["decision"] = parse_qs(answer.request["QUERY_STRING"])["decision"][0]
    done = do(console, f"/admin/markets/{made.pk}/resolve/decide/", **form, typed=kind)

    # then
    assert f"Market {made.pk} is decided." in done
    run = Settlement.objects.get()
    assert (run.rule, run.weights) == (rule, {"A": "50", "B": "50"})
    builders.settle(made, at=timezone.now())
    assert dict(made.bets.filter(result="WON").values_list("outcome", "payout")) == dividends


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (("60", "50", ""), "sum to 100"),
        (("100", "", ""), "two outcomes or more"),
        (("50", "-50", "100"), "A weight is a percentage"),
        (("fifty", "50", ""), "A weight is a percentage"),
        (("0", "100", ""), "positive numbers"),
    ],
)
def test_weights_that_share_nothing_lead_nowhere(console: Client, weights: tuple[str, ...], words: str) -> None:
    made = of_three()
    asked = {"kind": "joint"} | {f"weight_{place}": weight for place, weight in enumerate(weights)}
    answer = console.get(f"/admin/markets/{made.pk}/resolve/share/", asked)
    assert answer.status_code == 200 and words in text(answer)


@pytest.mark.parametrize(
    "decision", ["joint:", "joint:{}", "split:[1]", 'joint:{"A": 50}', "joint:" + "[" * 30_000, 'split:{"X": 100}']
)
def test_a_share_that_means_nothing_leads_back_to_the_choice(console: Client, decision: str) -> None:
    made = of_three()
    answer = console.post(f"/admin/markets/{made.pk}/resolve/decide/", {"decision": decision})
    assert answer.headers["Location"] == f"/admin/markets/{made.pk}/resolve/"


# --- figures that a worker computes ----------------------------------------------------------------------------------


@pytest.fixture
def by_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed while somebody waits, as with a great many bets."""
    monkeypatch.setattr(preview_cache, "AT_ONCE", 0)


def ask_worker(queued: Any) -> int:
    """Do what a worker would with the looks that it was asked for; how many."""
    asked = [arguments for name, _, arguments in queued() if name == "payments.overview_tasks.look"]
    for arguments in asked:
        monitoring_tasks.look(*arguments)
    return len(asked)


def test_figures_of_many_bets_are_a_workers_and_then_shown_with_their_age(
    console: Client, by_a_worker: None, queued: Any
) -> None:
    # given
    made = of_two()
    choice, step_two = f"/admin/markets/{made.pk}/resolve/", f"/admin/markets/{made.pk}/resolve/decide/"
    page = text(console.get(choice))
    assert page.count("being computed") == 3 and "A worker goes through all bets" in page and "data-again" in page
    assert "The figures are being computed" in text(console.get(step_two, {"decision": "win:Yes"}))
    console.get(choice)

    # when: each of the three was asked for once
    assert ask_worker(queued) == 3

    # then
    page = text(console.get(choice))
    assert "being computed" not in page and "none has come since" in page and "data-again" not in page
    assert "KES 285.00" in page
    form = look(console, made)

    # when: a bet comes
    bet(made, member(balance=50), "No", 50)
    page = text(console.get(choice))
    assert "Bets have come since these figures were computed" in page and "data-again" in page
    assert "what is decided now is refused" in text(console.get(step_two, {"decision": "win:Yes"}))
    with nothing_moved():
        assert "The numbers have moved" in do(console, step_two, **form)

    # then: the send was worth a look of its own
    form = look(console, made)
    assert f"Market {made.pk} is decided." in do(console, step_two, **form)


def test_what_a_kept_look_rests_on_makes_it_old_when_it_moves(db: None, by_a_worker: None, at: datetime) -> None:
    made, decision, ruled = of_two(), Decision("WINNER", {"Yes": Decimal(100)}), policy()

    def current(over: Policy = ruled, when: datetime = at) -> bool:
        made.refresh_from_db()
        (found,) = preview_cache.previews(made, [decision], at=when, policy=over)
        return found.current

    assert not current()
    preview_cache.compute(made, decision, at=at, policy=ruled)
    assert current() and current(when=at + timedelta(hours=1))
    # The day's tariff, the rules, the fee and the outcomes.
    assert not current(when=at + timedelta(days=1))
    assert not current(over=policy(min_amount=200))
    Market.objects.filter(pk=made.pk).update(platform_fee_pct=7)
    assert not current()
    preview_cache.compute(made, decision, at=at, policy=ruled)
    assert current()
    # Who owes, and how much of it is kept.
    console_scenes.owing(at, [("Faith Naliaka", 285)])
    assert current()
    receivables.decide_set_off(
        market_id=Recovery.objects.get().settlement.market_id, pct=50, by=console_scenes.ACTOR, at=at
    )  # type: ignore[union-attr]
    assert not current()
    preview_cache.compute(made, decision, at=at, policy=ruled)
    assert current()
    orm_bet(made, member(), "No", 1)
    assert not current()


def test_what_another_version_kept_is_not_read(
    db: None, by_a_worker: None, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, decision = of_two(), Decision("WINNER", {"Yes": Decimal(100)})
    preview_cache.compute(made, decision, at=at, policy=policy())
    monkeypatch.setattr(preview_cache, "VERSION", 2)
    (found,) = preview_cache.previews(made, [decision], at=at, policy=policy())
    assert found.preview is None


def test_the_float_beside_a_kept_look_is_the_latest(console: Client) -> None:
    made = of_two()
    path = f"/admin/markets/{made.pk}/resolve/decide/"
    assert "what we have is not known yet" in text(console.get(path, {"decision": "win:Yes"}))
    float_balance.note(Decimal(12), at=timezone.now())
    assert "KES 12.00 there" in text(console.get(path, {"decision": "win:Yes"}))


def test_who_has_a_stake_is_told_and_refused(db: None) -> None:
    made, person = of_two(), console_scenes.staff("operator", balance=10)
    bet(made, person, "Yes", 10)
    client = of(person)
    assert "You have a stake in this market" in text(client.get(f"/admin/markets/{made.pk}/resolve/"))
    form = look(client, made)
    with nothing_moved():
        assert "no money was moved" in do(client, f"/admin/markets/{made.pk}/resolve/decide/", **form)


# --- two people ------------------------------------------------------------------------------------------------------


def propose(console: Client) -> tuple[Market, Proposal]:
    made = of_two(900)
    page = do(console, f"/admin/markets/{made.pk}/resolve/decide/", **look(console, made))
    proposal = Proposal.objects.get()
    assert f"/admin/proposals/{proposal.pk}/" in page
    return made, proposal


def test_a_large_market_is_decided_by_the_second_person_from_a_link(
    console: Client, large: Policy, queued: Any
) -> None:
    # given
    made, proposal = propose(console)
    link = f"/admin/proposals/{proposal.pk}/"
    assert Settlement.objects.count() == 0
    assert "Grace Wambui" in text(console.get(link)) and "Approve" not in text(console.get(link))
    approver = of(console_scenes.staff("approver", full_name="Peter Second"))
    assert "decision to approve" in text(approver.get("/admin/"))
    assert f"/admin/markets/{made.pk}/" in text(approver.get("/admin/markets/?show=proposed"))
    page = text(approver.get(link))
    assert "Grace Wambui" in page and "Kenya Met." in page and "KES 950.00" in page

    # when, then
    with nothing_moved():
        assert "Type “approve” exactly" in do(approver, link, hash=hidden(page, "hash"), typed="yes")
        assert "not the hash" in do(approver, link, hash="0" * 64, typed="approve")
    done = do(approver, link, hash=hidden(page, "hash"), typed="approve")
    assert f"Approved. Market {made.pk} is decided" in done
    run = Settlement.objects.get()
    assert (run.resolved_by.full_name, run.approved_by.full_name) == ("Grace Wambui", "Peter Second")
    assert [name for name, _, _ in queued()] == ["payments.settlement_tasks.settle_market"]
    assert "approved" in text(approver.get(link))


def test_who_proposed_does_not_approve_and_may_take_it_back(db: None, large: Policy) -> None:
    both = console_scenes.staff(full_name="Grace Both")
    client = of(both)
    made, proposal = propose(client)
    page = text(client.get(f"/admin/proposals/{proposal.pk}/"))
    assert "Another person must approve it" in page
    with nothing_moved():
        refused = do(client, f"/admin/proposals/{proposal.pk}/", hash=proposal.preview_hash, typed="approve")
    assert "another member of staff must approve it" in refused
    assert "is rejected. No money was moved." in do(client, f"/admin/proposals/{proposal.pk}/reject/", reason="Typo.")
    proposal.refresh_from_db()
    assert (proposal.state, proposal.words) == ("REJECTED", "Typo.")


def test_a_proposal_whose_numbers_moved_says_so(console: Client, large: Policy) -> None:
    made, proposal = propose(console)
    orm_bet_after_reopening(made)
    approver = of(console_scenes.staff("approver"))
    page = text(approver.get(f"/admin/proposals/{proposal.pk}/"))
    assert "The numbers have moved since it was proposed" in page


def orm_bet_after_reopening(made: Market) -> None:
    Market.objects.filter(pk=made.pk).update(status="OPEN")
    orm_bet(made, member(), "No", 5)
    Market.objects.filter(pk=made.pk).update(status="CLOSED")


# --- taking back -----------------------------------------------------------------------------------------------------


def test_a_resolution_is_withdrawn_before_it_is_divided(console: Client) -> None:
    made = of_two()
    builders.resolve(made, "No", at=timezone.now())
    assert f"/admin/markets/{made.pk}/withdraw/" in text(console.get(f"/admin/markets/{made.pk}/"))
    page = do(console, f"/admin/markets/{made.pk}/withdraw/", reason="The wrong outcome.", typed="withdraw")
    assert "is withdrawn. No payout of it leaves." in page
    made.refresh_from_db()
    assert made.status == "CLOSED"


def test_held_payouts_show_a_countdown_and_the_way_back(console: Client) -> None:
    made = of_two()
    at = timezone.now()
    held = policy(holds=((Decimal(0), timedelta(minutes=30)),))
    builders.resolve(made, "Yes", at=at, policy=held)
    builders.settle(made, at=at, policy=held)
    page = text(console.get(f"/admin/markets/{made.pk}/"))
    assert "Payouts are held until" in page and "withdraw/" in page and "/undo/" not in page


def test_a_settlement_is_undone_and_that_is_seen(console: Client, queued: Any) -> None:
    made = of_two()
    builders.resolve(made, "No", at=timezone.now())
    builders.settle(made, at=timezone.now())
    page = text(console.get(f"/admin/markets/{made.pk}/"))
    assert f"/admin/markets/{made.pk}/undo/" in page and f"/api/markets/{made.pk}/settlement/" in page
    with nothing_moved():
        assert "becomes their debt to us" in text(console.get(f"/admin/markets/{made.pk}/undo/"))
        assert "Type “undo”" in do(console, f"/admin/markets/{made.pk}/undo/", reason="Wrong.", typed="redo")
    assert "is being undone" in do(console, f"/admin/markets/{made.pk}/undo/", reason="Wrong.", typed="undo")
    assert Settlement.objects.get().state == "UNDOING"
    assert "payments.settlement_tasks.undo_market" in [name for name, _, _ in queued()]
    assert "undoing" in text(console.get(f"/admin/markets/{made.pk}/"))


def test_an_outcome_is_scratched(console: Client, queued: Any) -> None:
    made = market(["A", "B", "C"])
    orm_bet(made, member(), "C", 70)
    assert f"/admin/markets/{made.pk}/scratch/" in text(console.get(f"/admin/markets/{made.pk}/"))
    page = do(console, f"/admin/markets/{made.pk}/scratch/", outcome="C", reason="Withdrew.", typed="scratch")
    assert "C is scratched" in page
    assert made.running_outcomes == ("A", "B")
    assert "scratch/" not in text(console.get(f"/admin/markets/{made.pk}/"))


# --- disputes --------------------------------------------------------------------------------------------------------


def disputed(amount: int = 285) -> tuple[Transaction, Dispute]:
    at = timezone.now()
    payout = builders.payout(amount, at=at)
    console_scenes.refused(payout, at)
    dispute = disputes.open_about_transaction(
        user_id=payout.user_id,
        transaction_id=payout.public_id,
        text="It has not come to my phone, please look.",
        by=console_scenes.ACTOR,
        at=at,
        policy=payout_steps.POLICY,
    )
    return payout, dispute


def test_a_dispute_is_read_answered_and_rejected(db: None) -> None:
    client = of(console_scenes.staff("support"))
    _, dispute = disputed()
    assert "dispute to answer" in text(client.get("/admin/"))
    assert "It has not come" in text(client.get("/admin/disputes/"))
    path = f"/admin/disputes/{dispute.public_id}/"
    assert "Answer…" in text(client.get(path)) and "Reject…" not in text(client.get(path))
    assert "The member is answered." in do(client, f"{path}answer/", text="We are looking into it.")
    assert "The dispute is rejected" in do(client, f"{path}reject/", text="It was paid, see the receipt.")
    dispute.refresh_from_db()
    assert dispute.state == "REJECTED"
    assert "We are looking into it." in text(client.get(path))
    with nothing_moved():
        assert "no money was moved" in do(client, f"{path}answer/", text="Once more.")


def test_an_upheld_dispute_pays_to_the_wallet(db: None, queued: Any) -> None:
    client = of(console_scenes.staff("support"))
    payout, dispute = disputed()
    path = f"/admin/disputes/{dispute.public_id}/uphold/"
    assert "please choose" in do(client, path, text="You are right.", remedy="gold")
    assert "is upheld: the payout goes to the wallet" in do(client, path, text="You are right.", remedy="pay_to_wallet")
    payout.refresh_from_db()
    assert payout.status == "COMPLETED" and CustomUser.objects.get(pk=payout.user_id).balance == 285


def test_an_upheld_dispute_is_sent_again(db: None, queued: Any) -> None:
    client = of(console_scenes.staff("support"))
    payout, dispute = disputed()
    do(client, f"/admin/disputes/{dispute.public_id}/uphold/", text="You are right.", remedy="resend")
    payout.refresh_from_db()
    assert payout.status == "PENDING"
    assert ("payments.settlement_tasks.send_b2c_payout", [payout.pk]) in [(name, ids) for name, _, ids in queued()]


def test_ones_own_dispute_is_anothers_to_decide(db: None) -> None:
    payout, dispute = disputed()
    owner = payout.user
    owner.is_staff = owner.is_superuser = True
    owner.save()
    client = of(owner)
    path = f"/admin/disputes/{dispute.public_id}/"
    assert "This is your own dispute" in text(client.get(path))
    with nothing_moved():
        assert "their own" in do(client, f"{path}answer/", text="I am right.")
