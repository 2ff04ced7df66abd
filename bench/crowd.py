"""Members, markets and bets by the million, written the way the services would have left them.

In bulk and past the triggers, which would only say that all is well: stakes are booked, wallets open, markets OPEN. What
is measured later goes through the services.
"""

import os
from dataclasses import dataclass

from django.db import connection

from bench.servers import run_sql
from payments import ledger

OTHERS = 50
FIRST_PHONE = 254_700_000_000


@dataclass(frozen=True)
class Crowd:
    """Twin markets with the same bets in the same order, between the bets of OTHERS further markets."""

    twins: list[int]
    others: list[int]
    members: tuple[int, int]


def gather(*, bets: int, twins: int, others: int = OTHERS) -> Crowd:
    """Make `twins` markets of `bets` bets each, and about as many bets as one of them has on `others` markets.

    Three bets a member, on Yes and No alike, of 10 to 1,000 shillings. Bets of all markets alternate, so the bets of one
    market are on every page of the table, as they are when they were placed over a day.
    """
    members = max(2, bets // 3)
    # A role that may pass the triggers by; nothing else here may.
    root = _as_root()
    first = _ids(root, "SELECT coalesce(max(id), 0) + 1 FROM users_customuser")
    last = first + members - 1
    run_sql(
        root,
        f"""
        SET session_replication_role = replica;
        INSERT INTO users_customuser (id, public_id, phone_number, full_name, balance, password, is_staff, is_active,
            is_superuser, date_joined, failed_logins)
        SELECT i, gen_random_uuid(), ({FIRST_PHONE} + i)::text, 'Member ' || i, 0, '!', false, true, false, now(), 0
        FROM generate_series({first}, {last}) i;
        SELECT setval('users_customuser_id_seq', {last});
        INSERT INTO payments_ledgeraccount (code, kind, user_id)
        SELECT 'wallet:' || i, 'wallet', i FROM generate_series({first}, {last}) i;
        """,
    )
    before = _ids(root, "SELECT coalesce(max(id), 0) FROM markets_market")
    run_sql(
        root,
        f"""
        INSERT INTO markets_market (question, description, category, status, platform_fee_pct, end_date, created_at)
        SELECT 'Market ' || i, '', '', 'OPEN', 5, now() + interval '1 year', now()
        FROM generate_series(1, {twins + others}) i;
        INSERT INTO markets_outcome (market_id, name)
        SELECT m.id, o.name FROM markets_market m, (VALUES (1, 'Yes'), (2, 'No')) o (number, name)
        WHERE m.id > {before} ORDER BY m.id, o.number;
        INSERT INTO payments_ledgeraccount (code, kind, market_id)
        SELECT 'pool:' || id, 'pool', id FROM markets_market WHERE id > {before} ORDER BY id;
        """,
    )
    every = [
        int(str(row[0])) for row in run_sql(root, f"SELECT id FROM markets_market WHERE id > {before} ORDER BY id")
    ]
    opening = ledger.open_accounts([ledger.OPENING])[ledger.OPENING]
    run_sql(
        root,
        f"""
        SET session_replication_role = replica;
        SELECT setseed(0.5);
        CREATE TEMP TABLE drawn AS SELECT i, {first} + floor(random() * {members})::bigint AS user_id,
            CASE WHEN random() < 0.5 THEN 'Yes' ELSE 'No' END AS outcome,
            (1000 + floor(random() * 99001))::numeric / 100 AS amount, floor(random() * {others})::int AS other
        FROM generate_series(1, {bets}) i;
        CREATE TEMP TABLE from_bet AS SELECT coalesce(max(id), 0) AS id FROM markets_bet;
        INSERT INTO markets_bet (public_id, user_id, market_id, outcome, amount, result, payout, placed_at)
        SELECT gen_random_uuid(), user_id, CASE WHEN twin < {twins} THEN {before} + 1 + twin
            ELSE {before} + 1 + {twins} + other END, outcome, amount, 'PENDING', 0, now()
        FROM drawn, generate_series(0, {twins if others else twins - 1}) twin ORDER BY i, twin;
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
        SELECT 'stake:' || b.id, {opening}, a.id, b.amount, 'stake', now()
        FROM markets_bet b JOIN payments_ledgeraccount a ON a.code = 'pool:' || b.market_id
        WHERE b.id > (SELECT id FROM from_bet) ORDER BY b.id;
        """,
    )
    for table in ("users_customuser", "markets_bet", "payments_transfer", "payments_ledgeraccount", "markets_market"):
        run_sql(root, f"VACUUM (ANALYZE) {table}")
    return Crowd(twins=every[:twins], others=every[twins:], members=(first, last))


def _ids(root: str, statement: str) -> int:
    ((number,),) = run_sql(root, statement)
    return int(str(number))


def _as_root() -> str:
    """The superuser's URL of the database that is measured."""
    root = os.environ["KASOKO_BENCH_ROOT_URL"]
    return root.removesuffix("/postgres") + "/" + str(connection.settings_dict["NAME"])
