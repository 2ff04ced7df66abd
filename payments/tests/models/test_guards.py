"""Guards in PostgreSQL: legal transitions, fixed columns, and no removal of money rows."""

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
    Orphan,
    Recovery,
    Restore,
    RestoreDecision,
    Settlement,
    StatusQuery,
    Transaction,
    Transfer,
)
from testing import transitions
from testing.builders import AT, FAR, market, member, nothing_moved, orm_bet, payout, resolve, settle
from users.models import Proposal

MACHINES = {
    "market": (Market, "status", "OPEN"),
    "settlement": (Settlement, "state", "PENDING"),
    "transaction": (Transaction, "status", "PENDING"),
    "attempt": (Attempt, "state", "SENDING"),
    "proposal": (Proposal, "state", "OPEN"),
    "recovery": (Recovery, "decision", "OPEN"),
    "restore": (Restore, "state", "LISTING"),
    "orphan": (Orphan, "state", "WAITING"),
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
            "act": "market.resolve",
            "subject": f"market:{market().pk}",
            "payload": {"rule": "WINNER", "weights": {"Yes": "100"}},
            "hash": "a" * 64,
            "amount": 5,
            "proposed_by": member(),
            "proposed_from": "test",
            "proposed_at": AT,
            "expires_at": FAR,
            **fields,
        }
    )


def first_row(name: str) -> models.Model:
    """Create a row in its first state. An attempt is not saved, because it would break the books without a transfer."""
    if name == "market":
        return market()
    if name == "settlement":
        resolve(market())
        return Settlement.objects.get()
    if name == "proposal":
        return proposal(decided_by=member())
    if name == "recovery":
        return Recovery(user=member(), amount=5, created_at=AT)
    if name == "restore":
        return Restore(
            survived_at=AT, noticed_at=AT, needs_decision=False, payouts_a_settlement=1, last_market_id=0, sign="x"
        )
    if name == "orphan":
        return Orphan(originator_conversation_id="KASOKO-1-1-0000000a-1", amount=5, receipt="SKG1", first_seen_at=AT)
    return payout() if name == "transaction" else attempt(payout())


def beside(name: str, state: str) -> dict[str, Any]:
    """Return the values of other columns that a state requires."""
    if name == "attempt":  # Only a payment that staff decided may be in doubt again.
        return {"decision": "paid" if state == "PAID" else ""}
    return {"pct": 30 if state == "SET_OFF" else None} if name == "recovery" else {}


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_postgresql_allows_exactly_the_transitions_of_the_model(db: None, name: str, start: str) -> None:
    model, column, first = MACHINES[name]
    row = first_row(name)
    with transaction.atomic():
        # given: a row moved to `start` by legal transitions
        if row.pk is None:
            row.save()
        rows = model.objects.filter(pk=row.pk)
        for state in transitions.paths_from(model.TRANSITIONS, first)[start]:
            rows.update(**{column: state}, **beside(name, state))

        for end in model.TRANSITIONS:
            # when
            refusal = ""
            with transaction.atomic():
                try:
                    with transaction.atomic():
                        rows.update(**{column: end}, **beside(name, end))
                except IntegrityError as error:
                    refusal = str(error)
                transaction.set_rollback(True)
            # then: an update that does not change the state is always allowed
            legal = end in model.TRANSITIONS[start] or end == start
            assert refusal == "" if legal else f"cannot move {start}>{end}" in refusal, f"{start}>{end}"
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_has_transitions_and_can_be_reached(name: str) -> None:
    model, column, first = MACHINES[name]
    choices = [value for value, _ in model._meta.get_field(column).choices]
    assert sorted(model.TRANSITIONS) == sorted(choices)
    assert sorted(transitions.paths_from(model.TRANSITIONS, first)) == sorted(choices)
    assert model._meta.get_field(column).default == first


@pytest.mark.parametrize("status", [state for state in Market.Status.values if state != "OPEN"])
def test_market_must_begin_open(db: None, status: str) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="A market begins OPEN"), transaction.atomic():
        market(status=status)


@pytest.mark.parametrize("state", [state for state in Settlement.State.values if state != "PENDING"])
def test_settlement_must_begin_pending(db: None, state: str) -> None:
    new_market = market()
    with nothing_moved(), pytest.raises(IntegrityError, match="A settlement begins PENDING"), transaction.atomic():
        Settlement.objects.create(
            market=new_market, number=1, rule="VOID", state=state, resolved_at=AT, fee_pct=5, protect_stake=True
        )


@pytest.mark.parametrize("state", ["APPROVED", "REJECTED", "STALE"])
def test_proposal_must_begin_open(db: None, state: str) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="A proposal begins OPEN"), transaction.atomic():
        proposal(state=state, decided_by=member())


@pytest.mark.parametrize("decision", ["SET_OFF", "WRITTEN_OFF"])
def test_recovery_must_begin_open(db: None, decision: str) -> None:
    user = member()
    with nothing_moved(), pytest.raises(IntegrityError, match="A recovery begins OPEN"), transaction.atomic():
        Recovery.objects.create(user=user, amount=5, created_at=AT, decision=decision, **beside("recovery", decision))


def test_proposal_cannot_be_approved_by_its_proposer(db: None) -> None:
    # given
    open_proposal = proposal()
    rows = Proposal.objects.filter(pk=open_proposal.pk)

    # then
    for decided_by in (None, open_proposal.proposed_by):
        with pytest.raises(IntegrityError, match="two_people_approve_a_proposal"), transaction.atomic():
            rows.update(state="APPROVED", decided_by=decided_by)
    rows.update(state="APPROVED", decided_by=member())


def test_proposal_is_fixed_and_only_one_is_open_per_subject(db: None) -> None:
    open_proposal, other, someone = proposal(), market(), member()
    with nothing_moved():
        assert_fixed(
            Proposal,
            open_proposal.pk,
            {
                "act": "market.undo",
                "subject": f"market:{other.pk}",
                "payload": {"rule": "VOID"},
                "hash": "b" * 64,
                "amount": 6,
                "reason": "x",
                "proposed_by": someone,
                "proposed_from": "x",
                "proposed_at": FAR,
                "expires_at": AT,
            },
            "What was proposed is not changed",
        )
        with pytest.raises(IntegrityError, match="one_open_proposal_a_subject"), transaction.atomic():
            proposal(subject=open_proposal.subject)


def test_recovery_above_the_amount_owed_is_refused(db: None) -> None:
    with transaction.atomic():
        owed = Recovery.objects.create(user=member(), amount=5, created_at=AT)
        for changes in ({"recovered": 6}, {"recovered": 3, "written_off": 3}, {"recovered": -1}):
            with pytest.raises(IntegrityError, match="no_more_comes_back_than_is_owed"), transaction.atomic():
                Recovery.objects.filter(pk=owed.pk).update(**changes)
        assert_fixed(Recovery, owed.pk, {"user": member(), "created_at": AT + timedelta(1)}, "Who owes")
        transaction.set_rollback(True)


@pytest.mark.parametrize("state", [state for state in Attempt.State.values if state != "SENDING"])
def test_attempt_must_begin_sending(db: None, state: str) -> None:
    pending = payout()
    with nothing_moved(), pytest.raises(IntegrityError, match="An attempt begins SENDING"), transaction.atomic():
        attempt(pending, state=state).save()


@pytest.mark.parametrize("status", Transaction.Status.values)
@pytest.mark.parametrize("destination", Transaction.Destination.values)
def test_transaction_must_begin_pending_or_completed_in_a_wallet(db: None, status: str, destination: str) -> None:
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
    refusal = ""
    with transaction.atomic():
        try:
            with transaction.atomic():
                row.save()
        except IntegrityError as error:
            refusal = str(error)
        transaction.set_rollback(True)
    assert refusal == "" if legal else "A transaction begins PENDING" in refusal


# --- frozen columns --------------------------------------------------------------------------------------------------


def assert_fixed(model: type[models.Model], pk: int, changes: Mapping[str, Any], words: str) -> None:
    for column, value in changes.items():
        with pytest.raises(IntegrityError, match=words), transaction.atomic():
            model.objects.filter(pk=pk).update(**{column: value})


def test_amount_and_recipient_of_a_transaction_are_fixed(db: None) -> None:
    pending, other = payout(), payout()
    with nothing_moved():
        assert_fixed(
            Transaction,
            pending.pk,
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


def test_amount_and_recipient_of_an_attempt_are_fixed(db: None) -> None:
    new_attempt, other = attempt(payout()), payout()
    with transaction.atomic():
        new_attempt.save()
        assert_fixed(
            Attempt,
            new_attempt.pk,
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


def test_resolution_is_fixed_at_once_and_its_totals_when_frozen(db: None) -> None:
    resolve(market())
    settlement = Settlement.objects.get()
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
    assert_fixed(Settlement, settlement.pk, decided, "totals of a settlement are frozen")
    with transaction.atomic():
        Settlement.objects.filter(pk=settlement.pk).update(**totals, pool=10, fee=1, net=9)
        Settlement.objects.filter(pk=settlement.pk).update(state="DIVIDING")
        changed = {"late_refund": 1, "bet_count": 3, "winning_pool": Decimal(8), "refund": False, "funds": {}}
        assert_fixed(Settlement, settlement.pk, decided | changed, "totals of a settlement are frozen")
        with pytest.raises(IntegrityError, match="totals of a settlement are frozen"), transaction.atomic():
            Settlement.objects.filter(pk=settlement.pk).update(pool=F("pool") + 1, net=F("net") + 1)
        transaction.set_rollback(True)


@pytest.mark.usefixtures("as_owner")
def test_stored_callback_is_fixed(db: None) -> None:
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


# --- uniqueness ------------------------------------------------------------------------------------------------------


def test_second_open_attempt_of_a_transaction_is_refused(db: None) -> None:
    pending = payout()
    with transaction.atomic():
        attempt(pending, 1).save()
        for state in Attempt.OPEN:
            if state != "SENDING":
                Attempt.objects.filter(number=1).update(state=state)
            with pytest.raises(IntegrityError, match="one_open_attempt_a_transaction"), transaction.atomic():
                attempt(pending, 2).save()
            if state == "WAITING":
                Attempt.objects.filter(number=1).update(state="SENDING")
        Attempt.objects.filter(number=1).update(state="FAILED")
        attempt(pending, 2).save()
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("same", "broken"),
    [
        ({"external_ref": "KASOKO-1-1-00000000"}, "external_ref_once"),
        ({"tranche": 1}, "one_transaction_a_member_and_tranche"),
    ],
)
def test_second_transaction_of_a_member_and_tranche_is_refused(db: None, same: dict[str, Any], broken: str) -> None:
    pending = payout()
    row = {
        "user": pending.user,
        "settlement": pending.settlement,
        "type": "PAYOUT",
        "amount": 50,
        "destination": "mpesa",
        "phone_number": pending.phone_number,
        "due_at": AT,
    }
    with transaction.atomic():
        Transaction.objects.create(**row, external_ref="KASOKO-1-1-00000000", tranche=2)
        with pytest.raises(IntegrityError, match=broken), transaction.atomic():
            Transaction.objects.create(**row | {"external_ref": "KASOKO-1-1-00000001", "tranche": 3} | same)
        transaction.set_rollback(True)


def test_mpesa_cents_and_amounts_of_zero_are_refused(db: None) -> None:
    row = {"user": member(), "type": "PAYOUT", "phone_number": "254712345678", "due_at": AT, "external_ref": "K"}
    for amount, destination, broken in (
        ("285.37", "mpesa", "mpesa_carries_whole_shillings"),
        ("0", "wallet", "transaction_amount_is_positive"),
        ("-5", "wallet", "transaction_amount_is_positive"),
    ):
        with nothing_moved(), pytest.raises(IntegrityError, match=broken), transaction.atomic():
            Transaction.objects.create(**row, amount=Decimal(amount), destination=destination)


def test_second_live_settlement_of_a_market_is_refused(db: None) -> None:
    new_market = market()
    resolve(new_market)
    row = {"market": new_market, "rule": "VOID", "resolved_at": AT, "fee_pct": 5, "protect_stake": True}
    with nothing_moved():
        with pytest.raises(IntegrityError, match="one_live_settlement_a_market"), transaction.atomic():
            Settlement.objects.create(**row, number=2)
        again = pytest.raises(IntegrityError, match="settlement_number_once_a_market")
        with again, transaction.atomic():
            Settlement.objects.update(state="WITHDRAWN")
            Settlement.objects.create(**row, number=1)


# --- removal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["settlement", "transaction", "attempt", "callback", "orphan", "recovery"])
@pytest.mark.parametrize(
    "sql", ["DELETE FROM payments_{} WHERE false", "DELETE FROM payments_{}", "TRUNCATE payments_{} CASCADE"]
)
@pytest.mark.usefixtures("as_owner")
def test_removal_of_money_rows_is_refused(db: None, table: str, sql: str) -> None:
    payout()
    connection.check_constraints()  # PostgreSQL refuses TRUNCATE while deferred checks are pending.
    refused = pytest.raises(IntegrityError, match=r"not deleted|not changed")
    with nothing_moved(), refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql.format(table))


@pytest.mark.parametrize("table", ["proposal", "singlehandedact", "figure"])
@pytest.mark.parametrize("sql", ["DELETE FROM users_{} WHERE false", "TRUNCATE users_{} CASCADE"])
@pytest.mark.usefixtures("as_owner")
def test_removal_of_decisions_is_refused(db: None, table: str, sql: str) -> None:
    refused = pytest.raises(IntegrityError, match=r"not deleted|not changed")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql.format(table))


def test_second_approval_of_a_machines_proposal_needs_another_person(db: None) -> None:
    first, second = member(), member()
    made = proposal(proposed_by=None)
    rows = Proposal.objects.filter(pk=made.pk)
    with pytest.raises(IntegrityError, match="two_people_approve"), transaction.atomic():
        rows.update(state="APPROVED", decided_by=first)
    rows.update(first_approved_by=first)
    with pytest.raises(IntegrityError, match="two_people_approve"), transaction.atomic():
        rows.update(state="APPROVED", decided_by=first)
    with pytest.raises(IntegrityError, match="not changed"), transaction.atomic():
        rows.update(first_approved_by=second)
    rows.update(state="APPROVED", decided_by=second)
    with pytest.raises(IntegrityError, match="not changed"), transaction.atomic():
        rows.update(decided_by=member())


@pytest.mark.parametrize("table", ["restore", "askfirst", "restoredecision"])
@pytest.mark.parametrize("sql", ["DELETE FROM payments_{} WHERE false", "TRUNCATE payments_{} CASCADE"])
@pytest.mark.usefixtures("as_owner")
def test_removal_of_a_restore_is_refused(db: None, table: str, sql: str) -> None:
    refused = pytest.raises(IntegrityError, match="is kept")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql.format(table))


def test_one_person_never_confirms_a_decision_after_a_restore(db: None) -> None:
    restore, person = first_row("restore"), member()
    restore.save()
    decision = RestoreDecision(restore=restore, grounds="x", proposed_by=person, proposed_at=AT)
    decision.closed_by, decision.closed_at, decision.confirmed = person, AT, True
    with pytest.raises(IntegrityError, match="two_people_decide_a_restore"), transaction.atomic():
        decision.save()


@pytest.mark.usefixtures("as_owner")
def test_removal_of_a_member_with_money_is_refused(db: None) -> None:
    user = member(balance=5)
    refused = pytest.raises(IntegrityError)
    with nothing_moved(), refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM users_customuser WHERE id = %s", [user.pk])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "model",
    [LedgerAccount, Settlement, Transaction, Attempt, Callback, Orphan, Transfer, Proposal, Recovery, Market, Bet],
)
@pytest.mark.usefixtures("as_owner")
def test_truncation_of_money_tables_is_refused(db: None, model: type[models.Model]) -> None:
    # given: each table has its own guard. A refused TRUNCATE does not prove this, because it cascades to other tables
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


def test_change_of_a_bets_result_is_refused(db: None) -> None:
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


def test_transfer_with_missing_account_or_transaction_is_refused(db: None) -> None:
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


def test_transaction_with_missing_settlement_is_refused(db: None) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match="not there"), transaction.atomic():
        Transaction.objects.create(
            user=member(), settlement_id=2**40, type="PAYOUT", amount=100, destination="mpesa",
            external_ref="KASOKO-1-1-0a1b2c3d", phone_number="254712345678", due_at=AT,
        )  # fmt: skip


def whole_reads(table: str) -> int:
    """Return the number of times that this database transaction has read a whole table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = %s", [table])
        ((times,),) = cursor.fetchall()
    return times


def booked(key: str, opening: int, wallets: list[int], of: Transaction) -> None:
    """Transfer one shilling from `opening` to each wallet, in one statement."""
    Transfer.objects.bulk_create(
        Transfer(
            key=f"{key}:{wallet}", debit_id=opening, credit_id=wallet, amount=1, code="test", at=AT, transaction=of
        )
        for wallet in wallets
    )


def opened(members: int) -> list[int]:
    """Return the account ids of `opening` and of the wallets of new members."""
    codes = ["opening", *(f"wallet:{member(balance=100).pk}" for _ in range(members))]
    accounts = journal.open_accounts(codes)
    return [accounts[code] for code in codes]


def analyze() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE users_customuser, payments_ledgeraccount, payments_transaction")


NAMED = ("users_customuser", "payments_ledgeraccount", "payments_transaction")


def test_session_that_moved_many_wallets_moves_one_by_index(db: None) -> None:
    # given: one statement changed all wallets. Its best plan reads the whole table, and the session keeps the plan
    of = payout()
    opening, *wallets = opened(300)
    analyze()
    booked("many", opening, wallets, of)

    # when
    before = [whole_reads(table) for table in NAMED]
    booked("one", opening, wallets[:1], of)

    # then
    assert [whole_reads(table) for table in NAMED] == before


def test_session_that_moved_one_wallet_moves_many_by_index(db: None) -> None:
    # given: a transfer in tables so small that the best plan reads whole tables
    of = payout()
    analyze()
    opening, *wallets = opened(1)
    booked("one", opening, wallets, of)
    opening, *wallets = opened(300)

    # when
    before = [whole_reads(table) for table in NAMED]
    booked("many", opening, wallets, of)

    # then: no table is read whole for each transfer
    assert [whole_reads(table) for table in NAMED] == before
