"""Explanations of a bet: figures, one SMS, and the proof that it is in the certificate."""

import json
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import Settings
from django.test import Client

from markets.models import Bet, Market
from payments.ledger import debt_decisions
from payments.models import Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import resolutions
from payments.settlement.certificates import document, explanations, issuing
from testing import builders, console_scenes
from testing.builders import AT, FAR, bearer, market, member, operator, orm_bet, settled_market
from testing.certificates import SCRIPT, assert_fits, script
from testing.payout_steps import RECEIPT, deliver_result, failed, result_body, sent
from testing.rest import assert_refused
from users.audit import MACHINE


def bet_of(made: Market, place: int = 0) -> Bet:
    return Bet.objects.filter(market=made).select_related("market", "user").order_by("pk")[place]


def read(client: Client, bet: Bet, by: Any = None) -> dict[str, Any]:
    path = f"/api/markets/{bet.market_id}/bets/{bet.public_id}/explanation/"
    answer = client.get(path, headers=bearer(by or bet.user))
    assert answer.status_code == 200, answer.content
    assert_fits(answer.json()["sentence"])
    return answer.json()


def certify(made: Market) -> None:
    issuing.current(made.pk, at=AT, keep_going=lambda: True)


def test_winner_sees_the_whole_calculation(db: None, client: Client) -> None:
    # given
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    certify(made)
    bet = bet_of(made)
    attempt = sent(Transaction.objects.get())
    deliver_result(attempt, result_body(attempt))

    # when
    said = read(client, bet)

    # then
    assert said["bet"] | {"placed_at": None} == {
        "id": str(bet.public_id), "market_id": made.pk, "question": "Will it rain tomorrow?", "outcome": "Yes",
        "stake": "100.00", "result": "WON", "dividend": "285.00", "placed_at": None,
    }  # fmt: skip
    assert said["figures"] == {
        "stake": "100.00",
        "pool": "300.00",
        "winning_pool": "100.00",
        "share_of_winning_pool_pct": "100.0000",
        "fee_pct": "5.00",
        "fee": "15.00",
        "net": "285.00",
        "stakes_on_outcome": "100.00",
        "fund_of_outcome": "285.00",
        "exact": "285.000000",
        "floored": "285.00",
        "left_over_cent": "0.00",
        "cents_rule": "The shares are exact to the cent: no cent was left over.",
        "tax": "0.00",
        "set_off": "0.00",
        "dividend": "285.00",
        "equation": "100.00 × 285.00 ÷ 100.00 = 285.00",
    }
    assert said["sentence"] == (
        'You won KES 285.00 on "Yes": 100.00 x 285.00 / 100.00. "Will it rain tomorrow?"'
        f" M-Pesa {RECEIPT}: KES 285.00. Pool 300.00, fee 15.00, tax 0.00."
    )
    (paid,) = said["payments"]
    assert (paid["destination"], paid["amount"], paid["status"], paid["receipt"], paid["provisional"]) == (
        "mpesa", "285.00", "COMPLETED", RECEIPT, False,
    )  # fmt: skip


def test_left_over_cent_is_explained_to_every_winner(db: None, client: Client) -> None:
    # given: 1.00 lost, and three winning stakes that differ by a cent; 3.96 ÷ 3.01
    made = settled_market([(member(), "Yes", "1.00"), (member(), "Yes", "2.01"), (member(), "No", "1.00")])
    figures = [read(client, bet_of(made, place))["figures"] for place in (0, 1)]

    # then
    assert [(one["exact"], one["floored"], one["left_over_cent"], one["dividend"]) for one in figures] == [
        ("1.265780", "1.26", "0.01", "1.27"),
        ("2.544219", "2.54", "0.00", "2.54"),
    ]
    assert "This bet's remainder, 174 of 301, is one of them, so it got one cent more." in figures[0]["cents_rule"]
    assert (
        "This bet's remainder, 127 of 301, is not one of them, so it got no further cent." in figures[1]["cents_rule"]
    )
    assert sum(Decimal(one["dividend"]) for one in figures) == Decimal("3.81")


def test_loser_is_told_who_won(db: None, client: Client) -> None:
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    said = read(client, bet_of(made, 1))
    assert said["sentence"] == ('Your KES 200.00 on "No" did not win: "Yes" won. "Will it rain tomorrow?" Pool 300.00.')
    assert said["words"] == "Yes won. A stake on another outcome goes to the winners, less the platform fee."
    assert (said["figures"], said["payments"], said["all_my_bets_here_are_worth"]) == (None, [], "0.00")


@pytest.mark.parametrize(
    ("rule", "outcome", "why"),
    [("VOID", None, "the event was cancelled"), ("WINNER", "Yes", "nobody backed the winner")],
)
def test_refund_is_explained(db: None, client: Client, rule: Any, outcome: str | None, why: str) -> None:
    made = settled_market([(member(), "No", "50.50")], outcome, rule=rule)
    said = read(client, bet_of(made))
    assert said["sentence"] == f'Your KES 50.50 on "No" is back in your wallet: {why}. "Will it rain tomorrow?"'
    assert said["payments"][0]["words"] == "KES 50.50 to your wallet."


def test_scratched_and_late_bets_are_explained(db: None, client: Client) -> None:
    # given
    made, user = market(("A", "B", "C")), member()
    scratched, late = orm_bet(made, member(), "B", 10), orm_bet(made, user, "A", 7, at=AT + timedelta(minutes=5))
    in_time = orm_bet(made, user, "A", 90)
    orm_bet(made, member(), "C", 20)
    assert "stands: the market is open" in read(client, scratched)["sentence"]
    by = builders.actor(operator())
    resolutions.scratch(market_id=made.pk, outcome="B", reason="cancelled", by=by, at=AT, policy=builders.policy())

    # then: the stake on the scratched outcome is back before the market has a result
    assert read(client, scratched)["bet"]["result"] == "PENDING"
    builders.settle(made)
    said = read(client, scratched)
    assert said["sentence"].startswith('Your KES 10.00 on "B" is back in your wallet: its outcome was scratched.')
    assert (said["payments"][0]["amount"], said["proof"]) == ("10.00", None)

    # and: one bet of a member was late and came back, the other bet won
    builders.resolve(made, "A", at=AT + timedelta(hours=1), effective_close_at=AT + timedelta(minutes=4))
    builders.settle(made)
    certify(made)
    assert "it was placed after the event ended" in read(client, late)["sentence"]
    assert [(one["type"], one["amount"]) for one in read(client, late)["payments"]] == [("REFUND", "7.00")]
    assert {one["type"] for one in read(client, in_time)["payments"]} == {"PAYOUT"}
    for bet in (scratched, late, in_time):
        assert document.check_proof(read(client, bet)["proof"])


@pytest.mark.parametrize("state", ["open", "closed and waits for its result", "being settled"])
def test_bet_without_a_result_says_what_it_waits_for(db: None, client: Client, state: str) -> None:
    # given
    made = market()
    bet = orm_bet(made, member())
    if state == "being settled":
        builders.resolve(made)
    elif state != "open":
        Market.objects.filter(pk=made.pk).update(status="CLOSED")

    # then
    said = read(client, bet)
    assert said["sentence"] == f'Your KES 100.00 on "Yes" stands: the market is {state}. "Will it rain tomorrow?"'
    assert (said["figures"], said["proof"], said["payments"]) == (None, None, [])


def test_cents_are_in_the_wallet_and_the_rest_is_provisional_until_release(db: None, client: Client) -> None:
    # given: a settlement whose payouts are held
    user = member()
    made = settled_market([(user, "Yes", "100.37"), (user, "Yes", 1), (member(), "No", 200)])
    Settlement.objects.update(release_at=FAR)
    bet = bet_of(made)

    # when
    said = read(client, bet)
    Settlement.objects.update(release_at=AT)
    released = read(client, bet)

    # then
    parts = [(one["destination"], one["amount"], one["provisional"], one["words"]) for one in said["payments"]]
    assert parts == [
        ("mpesa", "286.00", True, "Provisional until it is released to M-Pesa."),
        ("wallet", "0.31", False, "KES 0.31 to your wallet."),
    ]
    assert said["all_my_bets_here_are_worth"] == "286.31"
    assert (released["payments"][0]["provisional"], released["payments"][0]["words"]) == (
        False,
        "It waits to be sent to M-Pesa.",
    )


def test_failed_or_redirected_payout_says_so(db: None, client: Client) -> None:
    # given
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    payout = Transaction.objects.get()
    failed(payout)
    assert read(client, bet_of(made))["payments"][0]["words"] == "M-Pesa refused it. We are looking into it."

    # when
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=AT)

    # then
    assert read(client, bet_of(made))["payments"][0]["words"] == "Paid into the wallet instead."


def test_figures_show_the_set_off(db: None, client: Client) -> None:
    # given: a debt for a payout that M-Pesa paid before an undo; half of each later dividend is set off
    user = member()
    undone = settled_market([(user, "Yes", 100), (member(), "No", 200)])
    attempt = sent(Transaction.objects.get())
    deliver_result(attempt, result_body(attempt))
    builders.undo(undone)
    debt_decisions.decide_set_off(market_id=undone.pk, pct=50, by=builders.actor(operator()), at=AT)

    # when
    made = settled_market([(user, "Yes", 20), (member(), "No", 5)], fee_pct=0)

    # then: 12.50 of 25.00 are set off, and the whole shillings of the rest go to the phone
    said = read(client, bet_of(made))
    assert (said["figures"]["set_off"], said["figures"]["dividend"]) == ("12.50", "25.00")


def test_longest_question_and_largest_amounts_fit_into_one_sms(db: None, client: Client) -> None:
    # given
    made = market(("Ŵ" * 120, "N" * 120), question="Je, „ndiyo” — ¿qué? " * 25)
    orm_bet(made, member(), "Ŵ" * 120, "99999999999.99")
    orm_bet(made, member(), "N" * 120, "99999999999.98")
    builders.resolve(made, "Ŵ" * 120)
    builders.settle(made, policy=builders.policy(destination="wallet"))

    # then: assert_fits is in read
    assert read(client, bet_of(made))["sentence"].startswith("You won KES 189999999999.98 on")
    assert read(client, bet_of(made, 1))["sentence"].startswith("Your KES 99999999999.98 on")


# --- the proof -------------------------------------------------------------------------------------------------------


def test_proof_leads_from_the_line_to_the_root(db: None, client: Client, tmp_path: Path) -> None:
    # given
    made = settled_market([(member(), "Yes" if n % 2 else "No", f"{n + 1}.37") for n in range(11)])
    body = client.get(f"/api/markets/{made.pk}/settlement/").json()

    for place in range(11):
        # when
        said = read(client, bet_of(made, place))
        proof = said["proof"]

        # then
        assert proof["leaf"] == document.canonical(body["bets"][place])
        assert (proof["index"], proof["tree_size"]) == (place, body["settlement"]["bets"])
        assert proof["merkle_root"] == body["settlement"]["merkle_root"] == script().root_by_path(proof)
        assert proof["settlement_hash"] == body["settlement_hash"]
        assert document.check_proof(proof)
        changed = proof | {"leaf": proof["leaf"].replace('"dividend":"', '"dividend":"1')}
        assert not document.check_proof(changed)
        assert script().root_by_path(changed) != proof["merkle_root"]

    # and: as a process, on the saved explanation
    saved = tmp_path / "explanation.json"
    for explanation, code in ((said, 0), (said | {"proof": changed}, 1), (said | {"proof": proof | {"index": 0}}, 1)):
        saved.write_text(json.dumps(explanation))
        run = subprocess.run([sys.executable, "-I", str(SCRIPT), str(saved)], capture_output=True, text=True)
        assert run.returncode == code, run


def test_explanation_has_no_proof_before_the_issue(db: None, client: Client) -> None:
    made = settled_market([(member(), "Yes", 100)])
    assert read(client, bet_of(made))["proof"] is None
    certify(made)
    assert read(client, bet_of(made))["proof"]["path"] == []


# --- readers ---------------------------------------------------------------------------------------------------------


def test_only_the_member_and_staff_may_read_an_explanation(db: None, client: Client) -> None:
    # given
    made, other = settled_market([(member(), "Yes", 100)]), market()
    bet = bet_of(made)
    path = f"/api/markets/{made.pk}/bets/{bet.public_id}/explanation/"

    # then
    assert read(client, bet)["bet"]["id"] == read(client, bet, operator())["bet"]["id"] == str(bet.public_id)
    assert_refused(client.get(path), 401, "not_authenticated")
    assert_refused(client.get(path, headers=bearer(member())), 404, "not_found")
    for wrong in (
        f"/api/markets/{other.pk}/bets/{bet.public_id}/explanation/",
        f"/api/markets/{made.pk}/bets/{uuid4()}/explanation/",
        f"/api/markets/{2**63}/bets/{bet.public_id}/explanation/",
        f"/api/markets/{made.pk}/bets/{bet.pk}/explanation/",
    ):
        assert_refused(client.get(wrong, headers=bearer(operator())), 404, "not_found")


def test_staff_without_the_right_to_see_members_read_no_explanation(
    db: None, client: Client, settings: Settings
) -> None:
    settings.PROFILE = "production"
    bet = bet_of(settled_market([(member(), "Yes", 100)]))
    path = f"/api/markets/{bet.market_id}/bets/{bet.public_id}/explanation/"
    assert_refused(client.get(path, headers=bearer(operator())), 404, "not_found")
    assert read(client, bet, console_scenes.staff("viewer"))["bet"]["id"] == str(bet.public_id)


def test_explanation_changes_nothing(db: None, at: Any) -> None:
    made = settled_market([(member(), "Yes", 100)])
    bet = bet_of(made)
    with builders.nothing_moved():
        assert explanations.explain(bet, at=at) == explanations.explain(bet, at=at)
