"""PostgreSQL holds what Python promises: every pair of states, every fixed column, no row removed."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F

from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import (
    Attempt,
    Callback,
    LedgerAccount,
    Proposal,
    Recovery,
    Settlement,
    StatusQuery,
    Transaction,
    Transfer,
)
from testing import transitions
from testing.builders import AT, market, member, nothing_moved, orm_bet, payout, resolve, settle

MACHINES = {
    "market": (Market, "status", "OPEN"),
    "settlement": (Settlement, "state", "PENDING"),
    "transaction": (Transaction, "status", "PENDING"),
    "attempt": (Attempt, "state", "SENDING"),
    "proposal": (Proposal, "state", "OPEN"),
    "recovery": (Recovery, "decision", "OPEN"),
}
STARTS = [(name, start) for name, (model, _, _) in MACHINES.items() for start in model.TRANSITIONS]


def attempt(of: Transaction, number: int = 1, **fields: Any) -> Attempt:
    return Attempt(
        **{
            "transaction": of,
            "number": number,
            "originator_conversation_id": f"{of.external_ref}-{number}",
            "token_hash": f"{of.pk}-{number}",
            "amount": of.amount,
            "phone_number": of.phone_number,
            "opened_at": AT,
            **fields,
        }
    )


def proposal(**fields: Any) -> Proposal:
    return Proposal.objects.create(
        **{
            "market": market(),
            "kind": "RESOLVE",
            "rule": "WINNER",
            "weights": {"Yes": "100"},
            "preview_hash": "a" * 64,
            "pool": 5,
            "proposed_by": member(),
            "proposed_at": AT,
            **fields,
        }
    )


def first_row(name: str) -> models.Model:
    """A row of the machine in the state it begins with; an attempt is not saved yet, as it would move money."""
    if name == "market":
        return market()
    if name == "settlement":
        resolve(market())
        return Settlement.objects.get()
    if name == "proposal":
        return proposal(decided_by=member())
    if name == "recovery":
        return Recovery(user=member(), amount=5, created_at=AT)
    return payout() if name == "transaction" else attempt(payout())


def beside(name: str, state: str) -> dict[str, Any]:
    """What a state demands of another column."""
    return {"pct": 30 if state == "SET_OFF" else None} if name == "recovery" else {}


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_postgresql_and_the_table_of_transitions_agree_on_every_pair(db: None, name: str, start: str) -> None:
    model, column, first = MACHINES[name]
    row = first_row(name)
    with transaction.atomic():
        # given: a row driven to `start` by legal moves
        if row.pk is None:
            row.save()
        rows = model.objects.filter(pk=row.pk)
        for state in transitions.paths_from(model.TRANSITIONS, first)[start]:
            rows.update(**{column: state}, **beside(name, state))

        for end in model.TRANSITIONS:
            # when
            with transaction.atomic():
                try:
                    with transaction.atomic():
                        rows.update(**{column: end}, **beside(name, end))
                    moved = True
                except IntegrityError as error:
                    assert f"cannot move {start}>{end}" in str(error)
                    moved = False
                transaction.set_rollback(True)
            # then: staying is no move
            assert moved == (end in model.TRANSITIONS[start] or end == start), f"{start}>{end}"
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_is_in_the_table_and_can_be_reached(name: str) -> None:
    model, column, first = MACHINES[name]
    choices = [value for value, _ in model._meta.get_field(column).choices]
    assert sorted(model.TRANSITIONS) == sorted(choices)
    assert sorted(transitions.paths_from(model.TRANSITIONS, first)) == sorted(choices)
    assert model._meta.get_field(column).default == first


@pytest.mark.parametrize("status", [state for state in Market.Status.values if state != "OPEN"])
def test_a_market_begins_open(db: None, status: str) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="A market begins OPEN"), transaction.atomic():
        market(status=status)


@pytest.mark.parametrize("state", [state for state in Settlement.State.values if state != "PENDING"])
def test_a_settlement_begins_pending(db: None, state: str) -> None:
    made = market()
    with nothing_moved(), pytest.raises(IntegrityError, match="A settlement begins PENDING"), transaction.atomic():
        Settlement.objects.create(
            market=made, number=1, rule="VOID", state=state, resolved_at=AT, fee_pct=5, protect_stake=True
        )


@pytest.mark.parametrize("state", ["APPROVED", "REJECTED", "STALE"])
def test_a_proposal_begins_open(db: None, state: str) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="A proposal begins OPEN"), transaction.atomic():
        proposal(state=state, decided_by=member())


@pytest.mark.parametrize("decision", ["SET_OFF", "WRITTEN_OFF"])
def test_a_recovery_begins_open(db: None, decision: str) -> None:
    user = member()
    with nothing_moved(), pytest.raises(IntegrityError, match="A recovery begins OPEN"), transaction.atomic():
        Recovery.objects.create(user=user, amount=5, created_at=AT, decision=decision, **beside("recovery", decision))


def test_a_proposal_is_approved_by_someone_else_than_who_made_it(db: None) -> None:
    # given
    made = proposal()
    rows = Proposal.objects.filter(pk=made.pk)

    # then
    for decided_by in (None, made.proposed_by):
        with pytest.raises(IntegrityError, match="proposer_is_not_approver"), transaction.atomic():
            rows.update(state="APPROVED", decided_by=decided_by)
    rows.update(state="APPROVED", decided_by=member())


def test_what_was_proposed_is_fixed_and_waits_once_a_market(db: None) -> None:
    made, other, someone = proposal(), market(), member()
    with nothing_moved():
        assert_fixed(
            Proposal,
            made.pk,
            {
                "market": other,
                "kind": "UNDO",
                "rule": "VOID",
                "weights": {"No": "100"},
                "reason": "x",
                "evidence_url": "https://example.com/",
                "evidence_note": "x",
                "effective_close_at": AT,
                "preview_hash": "b" * 64,
                "pool": 6,
                "closed_market": True,
                "proposed_by": someone,
                "proposed_at": AT + timedelta(seconds=1),
            },
            "What was proposed is not changed",
        )
        with pytest.raises(IntegrityError, match="one_open_proposal_a_market"), transaction.atomic():
            proposal(market=made.market)


def test_a_recovery_never_brings_back_more_than_is_owed(db: None) -> None:
    with transaction.atomic():
        owed = Recovery.objects.create(user=member(), amount=5, created_at=AT)
        for changes in ({"recovered": 6}, {"recovered": 3, "written_off": 3}, {"recovered": -1}):
            with pytest.raises(IntegrityError, match="no_more_comes_back_than_is_owed"), transaction.atomic():
                Recovery.objects.filter(pk=owed.pk).update(**changes)
        assert_fixed(Recovery, owed.pk, {"user": member(), "created_at": AT + timedelta(1)}, "Who owes")
        transaction.set_rollback(True)


@pytest.mark.parametrize("state", [state for state in Attempt.State.values if state != "SENDING"])
def test_an_attempt_begins_sending(db: None, state: str) -> None:
    made = payout()
    with nothing_moved(), pytest.raises(IntegrityError, match="An attempt begins SENDING"), transaction.atomic():
        attempt(made, state=state).save()


@pytest.mark.parametrize("status", Transaction.Status.values)
@pytest.mark.parametrize("destination", Transaction.Destination.values)
def test_a_transaction_begins_pending_or_completed_in_a_wallet(db: None, status: str, destination: str) -> None:
    row = Transaction(
        user=member(),
        type="PAYOUT",
        status=status,
        amount=50,
        destination=destination,
        external_ref="KASOKO-1-1-00000000",
        phone_number="254712345678",
        due_at=AT,
    )
    legal = status == "PENDING" or (status, destination) == ("COMPLETED", "wallet")
    with transaction.atomic():
        try:
            with transaction.atomic():
                row.save()
            assert legal
        except IntegrityError as error:
            assert "A transaction begins PENDING" in str(error) and not legal
        transaction.set_rollback(True)


# --- frozen columns --------------------------------------------------------------------------------------------------


def assert_fixed(model: type[models.Model], pk: int, changes: Mapping[str, Any], words: str) -> None:
    for column, value in changes.items():
        with pytest.raises(IntegrityError, match=words), transaction.atomic():
            model.objects.filter(pk=pk).update(**{column: value})


def test_what_a_transaction_pays_to_whom_and_where_is_fixed(db: None) -> None:
    made, other = payout(), payout()
    with nothing_moved():
        assert_fixed(
            Transaction,
            made.pk,
            {
                "user": other.user,
                "settlement": other.settlement,
                "type": "REFUND",
                "amount": Decimal(286),
                "destination": "wallet",
                "tranche": 2,
                "external_ref": "KASOKO-1-1-ffffffff",
                "phone_number": "254712345678",
                "public_id": "00000000-0000-0000-0000-000000000000",
                "created_at": AT + timedelta(seconds=1),
            },
            "Whom a transaction pays",
        )


def test_what_an_attempt_sends_is_fixed(db: None) -> None:
    made, other = attempt(payout()), payout()
    with transaction.atomic():
        made.save()
        assert_fixed(
            Attempt,
            made.pk,
            {
                "transaction": other,
                "number": 2,
                "kind": "manual",
                "originator_conversation_id": "KASOKO-1-1-ffffffff-1",
                "token_hash": "x",
                "amount": Decimal(286),
                "phone_number": "254712345678",
                "opened_at": AT + timedelta(seconds=1),
            },
            "What an attempt sends",
        )
        transaction.set_rollback(True)


def test_a_resolution_is_fixed_when_made_and_its_totals_when_frozen(db: None) -> None:
    resolve(market())
    run = Settlement.objects.get()
    decided = {
        "market": market(),
        "number": 2,
        "rule": "VOID",
        "weights": {"No": "100"},
        "fee_pct": Decimal(6),
        "protect_stake": False,
        "effective_close_at": AT,
        "evidence_url": "https://example.com/",
        "evidence_note": "x",
        "approved_by": member(),
    }
    totals = {
        "bet_count": 2,
        "winning_pool": Decimal(7),
        "refund": True,
        "funds": {"Yes": {}},
    }
    assert_fixed(Settlement, run.pk, decided, "totals of a settlement are frozen")
    with transaction.atomic():
        Settlement.objects.filter(pk=run.pk).update(**totals, pool=10, fee=1, net=9)
        Settlement.objects.filter(pk=run.pk).update(state="DIVIDING")
        changed = {"late_refund": 1, "bet_count": 3, "winning_pool": Decimal(8), "refund": False, "funds": {}}
        assert_fixed(Settlement, run.pk, decided | changed, "totals of a settlement are frozen")
        with pytest.raises(IntegrityError, match="totals of a settlement are frozen"), transaction.atomic():
            Settlement.objects.filter(pk=run.pk).update(pool=F("pool") + 1, net=F("net") + 1)
        transaction.set_rollback(True)


def test_what_strangers_told_us_is_fixed(db: None) -> None:
    sent = attempt(payout())
    with transaction.atomic():
        sent.save()
        row = Callback.objects.create(
            kind="result",
            attempt=sent,
            body=b"{}",
            digest="x",
            received_at=AT,
            source_ip="196.201.214.200",
            trusted=True,
        )
        query = StatusQuery.objects.create(attempt=sent, number=1, token_hash="x", asked_at=AT)
        assert_fixed(
            Callback,
            row.pk,
            {
                "kind": "status",
                "attempt": None,
                "query": query,
                "body": b"{ }",
                "digest": "y",
                "received_at": AT + timedelta(seconds=1),
                "source_ip": None,
                "trusted": False,
            },
            "A stored callback is not changed",
        )
        Callback.objects.filter(pk=row.pk).update(applied_at=AT, verdict="paid")
        transaction.set_rollback(True)


# --- what there is once ----------------------------------------------------------------------------------------------


def test_a_transaction_has_one_open_attempt_at_most(db: None) -> None:
    made = payout()
    with transaction.atomic():
        attempt(made, 1).save()
        for state in Attempt.OPEN:
            if state != "SENDING":
                Attempt.objects.filter(number=1).update(state=state)
            with pytest.raises(IntegrityError, match="one_open_attempt_a_transaction"), transaction.atomic():
                attempt(made, 2).save()
            if state == "WAITING":
                Attempt.objects.filter(number=1).update(state="SENDING")
        Attempt.objects.filter(number=1).update(state="FAILED")
        attempt(made, 2).save()
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("same", "broken"),
    [
        ({"external_ref": "KASOKO-1-1-00000000"}, "external_ref_once"),
        ({"tranche": 1}, "one_transaction_a_member_and_tranche"),
    ],
)
def test_a_member_has_one_transaction_a_settlement_and_tranche(db: None, same: dict[str, Any], broken: str) -> None:
    made = payout()
    row = {
        "user": made.user,
        "settlement": made.settlement,
        "type": "PAYOUT",
        "amount": 50,
        "destination": "mpesa",
        "phone_number": made.phone_number,
        "due_at": AT,
    }
    with transaction.atomic():
        Transaction.objects.create(**row, external_ref="KASOKO-1-1-00000000", tranche=2)
        with pytest.raises(IntegrityError, match=broken), transaction.atomic():
            Transaction.objects.create(**row | {"external_ref": "KASOKO-1-1-00000001", "tranche": 3} | same)
        transaction.set_rollback(True)


def test_mpesa_carries_whole_shillings_and_nothing_carries_nothing(db: None) -> None:
    row = {"user": member(), "type": "PAYOUT", "phone_number": "254712345678", "due_at": AT, "external_ref": "K"}
    for amount, destination, broken in (
        ("285.37", "mpesa", "mpesa_carries_whole_shillings"),
        ("0", "wallet", "transaction_amount_is_positive"),
        ("-5", "wallet", "transaction_amount_is_positive"),
    ):
        with nothing_moved(), pytest.raises(IntegrityError, match=broken), transaction.atomic():
            Transaction.objects.create(**row, amount=Decimal(amount), destination=destination)


def test_a_market_has_one_live_settlement(db: None) -> None:
    made = market()
    resolve(made)
    row = {"market": made, "rule": "VOID", "resolved_at": AT, "fee_pct": 5, "protect_stake": True}
    with nothing_moved():
        with pytest.raises(IntegrityError, match="one_live_settlement_a_market"), transaction.atomic():
            Settlement.objects.create(**row, number=2)
        with pytest.raises(IntegrityError, match="settlement_number_once_a_market"), transaction.atomic():
            Settlement.objects.update(state="WITHDRAWN")
            Settlement.objects.create(**row, number=1)


# --- nothing is removed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["settlement", "transaction", "attempt", "callback", "proposal", "recovery"])
@pytest.mark.parametrize(
    "sql", ["DELETE FROM payments_{} WHERE false", "DELETE FROM payments_{}", "TRUNCATE payments_{} CASCADE"]
)
def test_no_row_of_the_money_is_removed(db: None, table: str, sql: str) -> None:
    payout()
    connection.check_constraints()  # PostgreSQL truncates no table that has deferred checks to make.
    with nothing_moved(), pytest.raises(IntegrityError, match="not deleted|not changed"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(sql.format(table))


def test_a_member_with_money_is_not_removed(db: None) -> None:
    user = member(balance=5)
    with nothing_moved(), pytest.raises(IntegrityError), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM users_customuser WHERE id = %s", [user.pk])
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "model", [LedgerAccount, Settlement, Transaction, Attempt, Callback, Transfer, Proposal, Recovery, Market, Bet]
)
def test_what_money_stands_on_is_not_truncated(db: None, model: type[models.Model]) -> None:
    # given: each table has a guard of its own, for a TRUNCATE that cascades is refused by any of them
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = %s::regclass"
            " AND t.tgtype & 32 <> 0 AND t.tgenabled = 'O' AND p.proname = 'kasoko_refuse'",
            [model._meta.db_table],
        )
        assert cursor.fetchone() == (1,)

    # then
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {model._meta.db_table} CASCADE")


def test_a_verdict_is_not_changed_after_it_was_given(db: None) -> None:
    # given
    settled = market()
    orm_bet(settled, member(), "Yes", 100)
    orm_bet(settled, member(), "No", 100)
    resolve(settled)
    settle(settled)
    lost = settled.bets.get(result="LOST")

    # then
    with pytest.raises(IntegrityError), transaction.atomic():
        Bet.objects.filter(pk=lost.pk).update(result="WON", payout=500)


def test_a_transfer_names_accounts_and_a_transaction_that_are_there(db: None) -> None:
    paid = payout()
    wallet, opening = LedgerAccount.objects.get(kind="payable").pk, LedgerAccount.objects.get(kind="opening").pk
    there = {"debit_id": opening, "credit_id": wallet, "transaction_id": paid.pk}
    for wrong in ("debit_id", "credit_id", "transaction_id"):
        rows = [
            Transfer(key=f"test:{number}", amount=1, code="test", at=AT, **there | ({wrong: 2**40} if number else {}))
            for number in range(2)
        ]
        with nothing_moved(), pytest.raises(IntegrityError, match="not there"), transaction.atomic():
            Transfer.objects.bulk_create(rows)


def test_a_transaction_names_a_settlement_that_is_there(db: None) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="not there"), transaction.atomic():
        Transaction.objects.create(
            user=member(), settlement_id=2**40, type="PAYOUT", amount=100, destination="mpesa",
            external_ref="KASOKO-1-1-0a1b2c3d", phone_number="254712345678", due_at=AT,
        )  # fmt: skip


def whole_reads(table: str) -> int:
    """How often this database transaction has read the whole of a table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = %s", [table])
        ((times,),) = cursor.fetchall()
    return times


def booked(key: str, opening: int, wallets: list[int], of: Transaction) -> None:
    """Transfer a shilling from `opening` to each wallet, by one statement."""
    Transfer.objects.bulk_create(
        Transfer(
            key=f"{key}:{wallet}", debit_id=opening, credit_id=wallet, amount=1, code="test", at=AT, transaction=of
        )
        for wallet in wallets
    )


def opened(members: int) -> list[int]:
    """`opening`, then the wallets of as many new members."""
    codes = ["opening", *(f"wallet:{member(balance=100).pk}" for _ in range(members))]
    accounts = journal.open_accounts(codes)
    return [accounts[code] for code in codes]


def analyze() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE users_customuser, payments_ledgeraccount, payments_transaction")


NAMED = ("users_customuser", "payments_ledgeraccount", "payments_transaction")


def test_a_session_that_moved_many_wallets_moves_one_by_an_index(db: None) -> None:
    # given: one statement moved all wallets, for which reading the whole table is best, and the session keeps its plan
    of = payout()
    opening, *wallets = opened(300)
    analyze()
    booked("many", opening, wallets, of)

    # when
    before = [whole_reads(table) for table in NAMED]
    booked("one", opening, wallets[:1], of)

    # then
    assert [whole_reads(table) for table in NAMED] == before


def test_a_session_that_moved_one_wallet_of_few_moves_many_by_an_index(db: None) -> None:
    # given: a transfer while the tables are so small that reading the whole of them is best for it
    of = payout()
    analyze()
    opening, *wallets = opened(1)
    booked("one", opening, wallets, of)
    opening, *wallets = opened(300)

    # when
    before = [whole_reads(table) for table in NAMED]
    booked("many", opening, wallets, of)

    # then: a whole table is not read for each of them
    assert [whole_reads(table) for table in NAMED] == before
