"""References of payouts: derived from the debt, so that a lost settlement that is made again has the same ones."""

import uuid
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from markets.models import Market
from payments.models import Attempt, Settlement, Transaction
from payments.payouts.sending import claims
from payments.policy import Policy
from payments.settlement import references
from testing import builders
from testing.builders import AT, member, orm_bet, policy, resolve, settle
from testing.payout_steps import ADDRESSES
from users.models import CustomUser

MARKET = uuid.UUID("0b7e1f0a-1111-4222-8333-444455556666")
MEMBER = uuid.UUID("c5a9e0d4-7777-4888-9999-aaaabbbbcccc")
debts = {
    "settlement_number": st.integers(1, 32_767),
    "tranche": st.integers(1, 32_767),
    "kind": st.sampled_from(sorted(references.KINDS)),
}


def settle_again(market: Market, *, rules: Policy | None = None) -> dict[tuple[int, str, str, int], str]:
    """Resolve and settle a market, and return the references by member, type, destination and tranche."""
    resolve(market, "Yes", policy=rules or policy())
    settle(market, policy=rules or policy())
    rows = Transaction.objects.filter(settlement__market=market)
    return {
        tuple(debt): reference
        for *debt, reference in rows.values_list("user", "type", "destination", "tranche", "external_ref")
    }


def ids_sent() -> set[str]:
    """Claim all due payouts and return the ids of their requests."""
    claims.claim(at=AT, policy=policy(), addresses=ADDRESSES, limit=100)
    return set(Attempt.objects.values_list("originator_conversation_id", flat=True))


def test_settlement_lost_after_sending_has_the_same_ids_again(db: None) -> None:
    # given: payouts under way, whose commits are then lost
    market = builders.market(fee_pct="7.50")
    for stake in ("100.10", 250, "33.33"):
        orm_bet(market, member(), "Yes", stake)
    orm_bet(market, member(), "No", 77)
    before_the_loss = transaction.savepoint()
    references_before, ids_before = settle_again(market), ids_sent()
    transaction.savepoint_rollback(before_the_loss)
    market.refresh_from_db()
    assert not Settlement.objects.exists()

    # when: the market is settled once more
    references_after, ids_after = settle_again(market), ids_sent()

    # then: M-Pesa recognises each request as a duplicate
    assert len(ids_before) == 3
    assert (references_after, ids_after) == (references_before, ids_before)


def test_reference_does_not_depend_on_amount_phone_or_settings(db: None) -> None:
    # given
    market, winner = builders.market(), member()
    orm_bet(market, winner, "Yes", 100)
    before_the_loss = transaction.savepoint()
    lost = settle_again(market)
    transaction.savepoint_rollback(before_the_loss)
    market.refresh_from_db()

    # when: another bet arrived, the member has another number, and payments are smaller
    orm_bet(market, member(), "No", "70.70")
    CustomUser.objects.filter(pk=winner.pk).update(phone_number="254711999888")
    again = settle_again(market, rules=policy(max_amount=50, protect_stake=False))

    # then: the first tranche keeps its reference, and the others are new
    assert again[winner.pk, "PAYOUT", "mpesa", 1] == lost[winner.pk, "PAYOUT", "mpesa", 1]
    assert len(again) == len(set(again.values())) > 2


def test_settlement_after_an_undo_has_other_references(db: None) -> None:
    market = builders.market()
    orm_bet(market, member(), "Yes", "100.50")
    settle_again(market)
    builders.undo(market)
    settle_again(market)
    assert Transaction.objects.values("external_ref").distinct().count() == 4


def test_settled_references_follow_the_rule(db: None) -> None:
    # given: dividends in two tranches, cents, and a late bet whose stake is returned
    market, winner, late = builders.market(), member(), member()
    orm_bet(market, winner, "Yes", "300.25")
    orm_bet(market, member(), "No", 200)
    orm_bet(market, late, "Yes", 40, at=builders.FAR)
    resolve(market, "Yes", effective_close_at=AT)

    # when
    settle(market, policy=policy(max_amount=300))

    # then
    rows = list(Transaction.objects.select_related("user").order_by("pk"))
    assert {(row.type, row.destination) for row in rows} == {
        ("PAYOUT", "mpesa"),
        ("PAYOUT", "wallet"),
        ("REFUND", "wallet"),
    }
    for row in rows:
        digits = references.digits(
            references.base(market.public_id, row.user.public_id),
            settlement_number=1,
            kind=(row.type, row.destination),
            tranche=row.tranche,
        )
        assert row.external_ref == f"KASOKO-{market.pk}-{row.user_id}-{digits}"


def test_sql_and_python_derive_the_same_digits(db: None) -> None:
    random = Random(1)
    for _ in range(300):
        market_id, member_id = (uuid.UUID(int=random.getrandbits(128)) for _ in range(2))
        number, tranche = (random.choice([1, 2, random.randint(1, 32_767), 32_767]) for _ in range(2))
        kind = random.choice(sorted(references.KINDS))
        places = {
            f"{name}_place": references.first_place(settlement_number=number, kind=(kind[0], name))
            for name in ("mpesa", "wallet")
        }
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {references.DIGITS} FROM (SELECT %(member)s::uuid AS public_id) AS member,"  # noqa: S608
                " (SELECT %(destination)s AS destination, %(tranche)s::int AS tranche) AS due",
                places
                | {"market_public_id": market_id, "member": member_id, "destination": kind[1], "tranche": tranche},
            )
            (by_sql,) = cursor.fetchone()
        assert by_sql == references.digits(
            references.base(market_id, member_id), settlement_number=number, kind=kind, tranche=tranche
        )


@given(first=st.fixed_dictionaries(debts), second=st.fixed_dictionaries(debts))
def test_different_debts_of_a_member_have_different_digits(first: dict[str, Any], second: dict[str, Any]) -> None:
    base = references.base(MARKET, MEMBER)
    assert (references.digits(base, **first) == references.digits(base, **second)) == (first == second)


def test_recorded_digits_never_change() -> None:
    base = references.base(MARKET, MEMBER)
    assert f"{base:08x}" == "a9a5fb8b"
    assert references.digits(base, settlement_number=1, kind=("PAYOUT", "mpesa"), tranche=1) == (
        f"{(base + 2**17) % 2**32:08x}"
    )
    assert references.digits(base, settlement_number=32_767, kind=("REFUND", "wallet"), tranche=32_767) == (
        f"{(base + 2**32 - 2**17 + 3 * 2**15 + 2**15 - 2) % 2**32:08x}"
    )


@pytest.mark.parametrize("model", [Market, CustomUser])
def test_public_id_never_changes(db: None, model: type[Market] | type[CustomUser]) -> None:
    market = builders.market()
    orm_bet(market, member(), "Yes", Decimal(10))
    with pytest.raises(IntegrityError, match="is not changed"), transaction.atomic():
        model.objects.update(public_id=uuid.uuid4())
