"""Status of a settlement: its money in six states that do not overlap."""

from datetime import datetime, timedelta
from decimal import Decimal

from markets.models import Market
from payments import wiring
from payments.models import Attempt, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.sending import claims, responses
from payments.settlement import settling, status
from testing.builders import AT, market, member, orm_bet, policy, resolve, settle, settled_market
from testing.settlement_steps import opened, seven_bets, steps

NOTHING = {name: (Decimal(0), 0) for name in status.PAYOUT_STATES}


def claimed(of: Market, amount: int) -> claims.Claim:
    """Claim the market's payout of this amount."""
    made = Transaction.objects.get(settlement__market=of, amount=amount, destination="mpesa")
    (claim,) = claims.claim(at=AT, policy=policy(), addresses=wiring.addresses(), limit=1, transaction_id=made.pk)
    return claim


def sent(of: Market, amount: int, said: client.Accepted | gateway_errors.GatewayError) -> claims.Claim:
    claim = claimed(of, amount)
    responses.record(claim, said, at=AT, policy=policy())
    return claim


def paid(of: Market, amount: int) -> None:
    """Apply the guide's plain callback that reports the payment."""
    reference = Transaction.objects.get(settlement__market=of, amount=amount, destination="mpesa").external_ref
    body = f'{{"Result": {{"ResultCode": 0, "ResultDesc": "Done", "ExternalReference": "{reference}"}}}}'
    callbacks.apply_plain(body=body.encode(), source_ip=None, at=AT, policy=policy(), addresses=wiring.addresses())


def test_unknown_market_has_no_status(db: None) -> None:
    assert status.settlement_status(999_999) is None


def test_open_market_has_stakes_and_no_payouts(db: None) -> None:
    made = market()
    orm_bet(made, member(), "Yes", "10.50")
    orm_bet(made, member(), "No", "0.50")
    found = status.settlement_status(made.pk)
    assert found == status.SettlementStatus(
        market_id=made.pk,
        status="OPEN",
        outcome=None,
        resolved_at=None,
        settled_at=None,
        release_at=None,
        pool=Decimal("11.00"),
        platform_fee=Decimal(0),
        by_state=NOTHING,
    )
    assert found.total_payouts == 0


def test_resolved_market_shows_its_stakes_until_the_division(db: None, at: datetime) -> None:
    made = market()
    orm_bet(made, member(), "Yes", 100)
    resolve(made, "Yes", at=at)
    found = status.settlement_status(made.pk)
    assert found is not None
    assert (found.status, found.outcome, found.resolved_at, found.settled_at) == ("RESOLVED", "Yes", at, None)
    assert (found.pool, found.platform_fee, found.by_state) == (100, 0, NOTHING)


def test_each_payout_is_in_one_of_six_states_that_sum_to_the_total(db: None) -> None:
    # given: eight winners of 100 to 107 shillings and some cents
    made = market(fee_pct=0)
    for number in range(8):
        orm_bet(made, member(), "Yes", f"{100 + number}.25")
    resolve(made)
    settle(made)
    accepted = client.Accepted("AG_1", "1")

    # when: one payout stays pending, one waits to be sent again, one is being sent, one is accepted, one is refused and
    # one is paid. Two are in doubt, one of them for more than a day
    claimed(made, 102)
    sent(made, 103, accepted)
    sent(made, 104, gateway_errors.OutcomeUnknown("", "read timeout"))
    sent(made, 105, gateway_errors.OutcomeUnknown("", "read timeout"))
    sent(made, 106, gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB"))
    paid(made, 107)
    doubtful = Attempt.objects.get(amount=105)
    Attempt.objects.filter(pk=doubtful.pk).update(
        next_query_at=AT - timedelta(days=1), first_sent_at=AT - timedelta(days=2)
    )
    status_queries.ask(at=AT, policy=policy(), addresses=wiring.addresses(), limit=1)
    sent(made, 101, gateway_errors.NotSent("network"))  # This is sent last, because a network failure pauses sending.

    # then
    found = status.settlement_status(made.pk)
    assert found is not None
    assert found.by_state == {
        "pending": (Decimal(201), 2),
        "processing": (Decimal(205), 2),
        "in_doubt": (Decimal(104), 1),
        "held": (Decimal(105), 1),
        "completed": (Decimal(109), 9),  # the paid payout, and eight times 0.25 to wallets
        "failed": (Decimal(106), 1),
    }
    assert found.total_payouts == found.pool == 830
    assert found.platform_fee == 0


def test_refunds_are_counted_as_payouts(db: None, at: datetime) -> None:
    made = settled_market([(member(), "Yes", "100.10"), (member(), "No", 200)], rule="VOID")
    found = status.settlement_status(made.pk)
    assert found is not None
    assert (found.status, found.outcome, found.settled_at) == ("VOID", None, at)
    assert found.by_state == NOTHING | {"completed": (Decimal("300.10"), 2)}
    assert (found.pool, found.total_payouts, found.platform_fee) == (Decimal("300.10"), Decimal("300.10"), 0)


def test_status_counts_only_payouts_of_its_market(db: None) -> None:
    user = member()
    first = settled_market([(user, "Yes", 100), (member(), "No", 200)])
    second = settled_market([(user, "Yes", 50)])
    for made, total, fee in ((first, 285, 15), (second, 50, 0)):
        found = status.settlement_status(made.pk)
        assert found is not None
        assert (found.total_payouts, found.platform_fee, found.by_state["pending"]) == (total, fee, (total, 1))


def test_progress_counts_each_step(db: None) -> None:
    # given: seven bets of three members, who all win something
    users = [member() for _ in range(3)]
    market = opened(seven_bets(users))
    assert status.settlement_progress(market.pk) == status.SettlementProgress(0, 0, 0)
    resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=3)

    # when
    seen = []
    while not settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(1)).settled:
        seen.append(status.settlement_progress(market.pk))
    seen.append(status.settlement_progress(market.pk))

    # then
    assert [(one.bets_done, one.members_done) for one in seen] == [(3, 0), (6, 0), (7, 0), (7, 1), (7, 3), (7, 3)]
    assert {one.bets_total for one in seen} == {7}
    found = status.settlement_status(market.pk)
    assert found is not None
    assert found.progress == seen[-1]
