"""Month of test data: a million bets, 300,000 transactions, and rows of every kind.

The project's own service settles the markets. The requests, callbacks, questions and transfers of the payouts are then
written in bulk, with the triggers disabled. The invariants are checked afterwards, so the books balance.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal

from django.utils import timezone

from bench import population
from bench.servers import run_sql
from markets.models import Bet, Market
from payments import disputes, wiring
from payments.models import Dispute, Recovery, Transaction
from payments.monitoring import overview
from payments.payouts.operations import decisions
from payments.policy import Policy
from payments.settlement import resolutions, settling, undo
from payments.settlement.decision import Decision
from testing.figures import say
from users import audit, staff_notes
from users.models import CustomUser, Proposal

DAYS = 30
OUTCOMES = ("Gor Mahia", "Draw", "AFC Leopards", "Abandoned")
DISPUTES = 100
DECISIONS = 20_000


@dataclass(frozen=True)
class Month:
    """Example rows for the console's pages, and the numbers of bets and transactions.

    `market_with_most_bets` is open, and a proposal to resolve it waits. `settled` and `undone` are other markets.
    """

    superuser: CustomUser
    market_with_most_bets: Market
    settled: Market
    undone: Market
    proposal: Proposal
    dispute: Dispute
    recovery: Recovery
    decided: Transaction
    member: CustomUser
    bets: int
    transactions: int


def fill(*, bets: int) -> Month:
    """Fill an empty database with about `bets` bets and 0.3 transactions a bet. One open market has 55 % of these."""
    superuser, second = (
        CustomUser.objects.create_superuser(f"07000000{number:02}", name, pin="2580")
        for number, name in ((1, "Grace Wambui"), (2, "Peter Second"))
    )
    policy = wiring.policy()
    hot = population.make(bets=55 * bets // 100, twins=1, others=0, outcomes=OUTCOMES, days=DAYS).twins[0]
    say("console: the market with most bets is created")
    # Each member has about one bet, and half of the bets win. M-Pesa pays whole shillings; the wallet gets the cents.
    settled = population.make(bets=194 * bets // 1_000, twins=2, others=0, bets_per_member=1, days=DAYS).twins
    undone = population.make(bets=bets // 100, twins=1, others=0, days=DAYS).twins[0]
    others = population.make(bets=26 * bets // 1_000, twins=1, days=DAYS)
    _book_stakes()
    for market_id in [*settled, undone]:
        _settle(market_id, policy)
    say("console: two large markets are settled")
    _pay()
    say("console: the payouts are paid, failed, held, pending and in doubt")
    by = audit.Actor(user_id=superuser.pk, source="127.0.0.1")
    undo.undo(market_id=undone, reason="The result was corrected.", by=by, at=timezone.now(), policy=policy)
    undo.carry_out(market_id=undone, at=timezone.now(), policy=policy, keep_going=lambda: True)
    held = _decisions(second, hot, others, policy)
    _remember_decisions(second)
    # Beat does the same work every minute.
    overview.sum_up(keep_going=lambda: True)
    run_sql(population.superuser_url(), "VACUUM (ANALYZE)")
    overview.measure(at=timezone.now())
    overview.check_books(at=timezone.now(), keep_going=lambda: True)
    overview.beat(worker="celery@bench", at=timezone.now())
    winner = Bet.objects.filter(market=settled[0], result="WON").order_by("pk")[100]
    return Month(
        superuser=superuser,
        market_with_most_bets=Market.objects.get(pk=hot),
        settled=Market.objects.get(pk=settled[0]),
        undone=Market.objects.get(pk=undone),
        proposal=Proposal.objects.get(),
        dispute=Dispute.objects.order_by("pk")[0],
        recovery=Recovery.objects.order_by("pk")[0],
        decided=held,
        member=winner.user,
        bets=Bet.objects.count(),
        transactions=Transaction.objects.count(),
    )


def _settle(market_id: int, policy: Policy) -> None:
    at = timezone.now()
    resolutions.resolve(
        market_id=market_id, decision=Decision("WINNER", {"Yes": Decimal(100)}), by=audit.MACHINE, at=at, policy=policy
    )
    settling.settle(market_id=market_id, at=at, policy=policy, keep_going=lambda: True)
    run_sql(
        population.superuser_url(),
        f"""
        SET session_replication_role = replica;
        UPDATE payments_settlement SET resolved_at = now() - interval '{DAYS} days', release_open = true
        WHERE market_id = {market_id};
        """,
    )


def _book_stakes() -> None:
    """Book each stake that is not booked yet. `population.make` does not book stakes on its `others` markets."""
    run_sql(
        population.superuser_url(),
        """
        SET session_replication_role = replica;
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
        SELECT 'stake:' || b.id, o.id, a.id, b.amount, 'stake', b.placed_at
        FROM markets_bet b JOIN payments_ledgeraccount a ON a.code = 'pool:' || b.market_id
        JOIN payments_ledgeraccount o ON o.code = 'opening'
        WHERE NOT EXISTS (SELECT FROM payments_transfer t WHERE t.key = 'stake:' || b.id) ORDER BY b.id;
        """,
    )


# Of 1,000 payouts by M-Pesa, 5 failed, 4 are in doubt, 3 wait, and 2 are accepted but not yet paid. One of the payouts
# in doubt is held. 16 payouts were paid by their second request, all others by their first, in the last four weeks.
_RESULTS = """
    SET session_replication_role = replica;
    INSERT INTO payments_ledgeraccount (code, kind)
    SELECT kind, kind FROM unnest(ARRAY['in_flight', 'mpesa_utility', 'charge_expense', 'mpesa_charges_paid']) kind
    ON CONFLICT (code) DO NOTHING;
    CREATE TEMP TABLE results AS
    SELECT t.id, t.external_ref, t.amount, t.phone_number, t.settlement_id, n.number,
        CASE WHEN t.id % 1000 < 5 OR t.id % 1000 BETWEEN 14 AND 29 AND n.number = 1 THEN 'FAILED'
             WHEN t.id % 1000 < 9 THEN 'IN_DOUBT' WHEN t.id % 1000 IN (12, 13) THEN 'ACCEPTED' ELSE 'PAID' END AS state,
        now() - interval '1 minute' * (t.id * 7919 % 40000) - interval '1 hour' * (2 - n.number) AS sent_at
    FROM payments_transaction t, generate_series(1, 2) AS n (number)
    WHERE t.destination = 'mpesa' AND t.status = 'PENDING' AND t.id % 1000 NOT BETWEEN 9 AND 11
      AND (n.number = 1 OR t.id % 1000 BETWEEN 14 AND 29);
    INSERT INTO payments_attempt (transaction_id, settlement_id, number, kind, originator_conversation_id,
        conversation_id, token_hash, amount, phone_number, state, opened_at, posted_at, first_sent_at, doubted_at,
        next_query_at, result_code, result_words, receipt, closed_at)
    SELECT id, settlement_id, number, 'b2c', external_ref || '-' || number, 'AG_' || id || '_' || number,
        encode(sha256((id || ':' || number)::bytea), 'hex'), amount, phone_number, state, sent_at, sent_at, sent_at,
        CASE WHEN state = 'IN_DOUBT' THEN sent_at + interval '30 seconds' END,
        CASE WHEN state IN ('IN_DOUBT', 'ACCEPTED') THEN now() + interval '1 minute' END,
        CASE state WHEN 'FAILED' THEN (ARRAY['2040', '2001', '17', '1'])[1 + id % 4] WHEN 'PAID' THEN '0' ELSE '' END,
        CASE state WHEN 'FAILED' THEN 'It was refused.' ELSE '' END,
        CASE state WHEN 'PAID' THEN 'SK' || lpad(upper(to_hex(id)), 8, '0') ELSE '' END,
        CASE WHEN state IN ('PAID', 'FAILED') THEN sent_at + interval '4 seconds' END
    FROM results ORDER BY sent_at;
    INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
    SELECT booked.code || ':' || a.id, d.id, c.id, coalesce(booked.amount, a.amount), booked.code,
        CASE WHEN booked.code = 'send' THEN a.opened_at ELSE a.closed_at END, a.transaction_id
    FROM payments_attempt a JOIN LATERAL (VALUES
        ('send', 'payable', 'in_flight', NULL, true),
        ('paid', 'in_flight', 'mpesa_utility', NULL, a.state = 'PAID'),
        ('charge', 'charge_expense', 'mpesa_charges_paid', 9, a.state = 'PAID'),
        ('return', 'in_flight', 'payable', NULL, a.state = 'FAILED')) AS booked (code, debit, credit, amount, due)
        ON booked.due
    JOIN payments_ledgeraccount d ON d.code = booked.debit JOIN payments_ledgeraccount c ON c.code = booked.credit
    ORDER BY a.id;
    INSERT INTO payments_callback (kind, originator_conversation_id, attempt_id, body, digest, received_at, source_ip,
        trusted, applied_at, verdict)
    SELECT 'result', '', id, convert_to('{"Result":{"ResultCode":"' || result_code || '","TransactionID":"' || receipt
        || '","ResultParameters":{"ResultParameter":[{"Key":"TransactionAmount","Value":' || amount || '}]}}}', 'UTF8'),
        encode(sha256(originator_conversation_id::bytea), 'hex'), closed_at, '196.201.214.200', true, closed_at,
        lower(state)
    FROM payments_attempt WHERE state IN ('PAID', 'FAILED') ORDER BY id;
    INSERT INTO payments_statusquery (attempt_id, number, token_hash, asked_at, conversation_id, verdict, answered_at)
    SELECT id, 1, encode(sha256(('q' || id)::bytea), 'hex'), opened_at + interval '3 seconds', '',
        CASE state WHEN 'FAILED' THEN 'failed' ELSE 'unknown' END, closed_at
    FROM payments_attempt WHERE state IN ('FAILED', 'IN_DOUBT') ORDER BY id;
    UPDATE payments_transaction t SET
        status = CASE WHEN t.id % 1000 = 8 THEN 'HELD'
            ELSE (ARRAY['COMPLETED', 'FAILED', 'PROCESSING', 'PROCESSING'])
                [array_position(ARRAY['PAID', 'FAILED', 'IN_DOUBT', 'ACCEPTED']::text[], a.state)] END,
        receipt = a.receipt, created_at = a.opened_at - interval '2 hours',
        completed_at = CASE a.state WHEN 'PAID' THEN a.closed_at END,
        failed_at = CASE a.state WHEN 'FAILED' THEN a.closed_at END,
        reason = CASE a.state WHEN 'FAILED' THEN 'It was refused.' ELSE '' END
    FROM payments_attempt a WHERE a.transaction_id = t.id
      AND a.number = CASE WHEN t.id % 1000 BETWEEN 14 AND 29 THEN 2 ELSE 1 END;
"""


def _pay() -> None:
    run_sql(population.superuser_url(), _RESULTS)


def _decisions(second: CustomUser, hot: int, others: population.Population, policy: Policy) -> Transaction:
    """Make a proposal, disputes, notes, and a decision about a held payout. Return the held payout."""
    at, by = timezone.now(), audit.Actor(user_id=second.pk, source="127.0.0.1")
    resolutions.resolve(
        market_id=hot, decision=Decision("WINNER", {OUTCOMES[0]: Decimal(100)}), by=by, at=at,
        policy=replace(policy, approval_above=Decimal(1)),
    )  # fmt: skip
    Market.objects.filter(pk=others.others[1]).update(end_date=at - timedelta(hours=1))
    for payout in Transaction.objects.filter(status="FAILED").select_related("user").order_by("pk")[:DISPUTES]:
        disputes.open_about_transaction(
            user_id=payout.user_id, transaction_id=payout.public_id, text="It has not come to my phone.",
            by=audit.Actor(user_id=payout.user_id, source="127.0.0.1"), at=at, policy=policy,
        )  # fmt: skip
        staff_notes.add(member_id=payout.user_id, text="Called, and was told.", by=by, at=at)
    held = Transaction.objects.filter(status="HELD").order_by("pk")[0]
    decisions.decide_or_propose(
        transaction_id=held.pk, finding=decisions.Finding("", "Line 7 of the statement.", at), by=by, at=at,
        policy=replace(policy, confirm_above=Decimal(1)),
    )  # fmt: skip
    return held


def _remember_decisions(actor: CustomUser) -> None:
    run_sql(
        population.superuser_url(),
        f"""
        INSERT INTO users_auditentry (at, action, actor_id, source, subject, before, after, reason)
        SELECT now() - interval '1 minute' * i, 'payout.retry', {actor.pk}, '127.0.0.1', 'transaction:' || i, '{{}}',
            '{{}}', 'A try' FROM generate_series(1, {DECISIONS}) i;
        """,
    )
