"""Millions of members, markets and bets, in the same state as if the services had made them.

The rows are written in bulk, with the triggers disabled. For these rows the triggers would accept everything and change
nothing. Stakes on the twin markets (see Population) are booked, each member has a wallet account, and all markets are
OPEN. All later work, which is measured, uses the services.
"""

import os
from dataclasses import dataclass

from django.db import connection

from bench.servers import run_sql
from payments.ledger import journal

OTHERS = 50
FIRST_PHONE = 254_700_000_000


@dataclass(frozen=True)
class Population:
    """Twin markets, which have the same bets in the same order.

    In the table, bets on other markets stand between the bets of a twin. `members` are the first and the last id of
    the members.
    """

    twins: list[int]
    others: list[int]
    members: tuple[int, int]


def make(
    *,
    bets: int,
    twins: int,
    others: int = OTHERS,
    bets_per_member: int = 3,
    outcomes: tuple[str, ...] = ("Yes", "No"),
    days: int = 0,
) -> Population:
    """Make `twins` markets with `bets` bets each. Between them, make bets on `others` other markets.

    For each bet on a twin there is one bet on another market, chosen at random from `others` markets. A member places
    on average `bets_per_member` bets on each twin. A stake is 10 to 1,000 shillings. The bets' times are spread evenly
    over the last `days` days. The outcomes get about equally many bets. A twin's bets alternate with bets on other
    markets, and are therefore on twice as many table pages. On a live market bets are scattered in the same way. The
    stakes on the other markets are not booked, because those bets only separate the twins' bets.
    """
    members = max(2, bets // bets_per_member)
    names = ", ".join(f"({number}, '{name}')" for number, name in enumerate(outcomes, 1))
    moment = f"now() - interval '1 day' * {days} * (1 - i / {bets}.0)"
    # Only the superuser may bypass the triggers.
    superuser = superuser_url()
    first = _one_number(superuser, "SELECT coalesce(max(id), 0) + 1 FROM users_customuser")
    last = first + members - 1
    run_sql(
        superuser,
        f"""
        SET session_replication_role = replica;
        INSERT INTO users_customuser (id, public_id, phone_number, full_name, balance, password, is_staff, is_active,
            is_superuser, date_joined)
        SELECT i, gen_random_uuid(), ({FIRST_PHONE} + i)::text, 'Member ' || i, 0, '!', false, true, false, now()
        FROM generate_series({first}, {last}) i;
        SELECT setval('users_customuser_id_seq', {last});
        INSERT INTO payments_ledgeraccount (code, kind, user_id)
        SELECT 'wallet:' || i, 'wallet', i FROM generate_series({first}, {last}) i;
        """,
    )
    before = _one_number(superuser, "SELECT coalesce(max(id), 0) FROM markets_market")
    run_sql(
        superuser,
        f"""
        INSERT INTO markets_market (question, description, category, status, platform_fee_pct, end_date, created_at)
        SELECT 'Market ' || i, '', '', 'OPEN', 5, now() + interval '1 year', now() - interval '1 day' * {days}
        FROM generate_series(1, {twins + others}) i;
        INSERT INTO markets_outcome (market_id, name)
        SELECT m.id, o.name FROM markets_market m, (VALUES {names}) o (number, name)
        WHERE m.id > {before} ORDER BY m.id, o.number;
        INSERT INTO payments_ledgeraccount (code, kind, market_id)
        SELECT 'pool:' || id, 'pool', id FROM markets_market WHERE id > {before} ORDER BY id;
        """,
    )
    market_ids = [
        int(str(row[0])) for row in run_sql(superuser, f"SELECT id FROM markets_market WHERE id > {before} ORDER BY id")
    ]
    opening = journal.open_accounts([journal.OPENING])[journal.OPENING]
    run_sql(
        superuser,
        f"""
        SET session_replication_role = replica;
        SELECT setseed(0.5);
        CREATE TEMP TABLE drawn AS SELECT i, {first} + floor(random() * {members})::bigint AS user_id,
            (ARRAY['{"', '".join(outcomes)}'])[1 + floor(random() * {len(outcomes)})::int] AS outcome,
            (1000 + floor(random() * 99001))::numeric / 100 AS amount, floor(random() * {others})::int AS other
        FROM generate_series(1, {bets}) i;
        INSERT INTO markets_bet (public_id, user_id, market_id, outcome, amount, result, payout, placed_at)
        SELECT gen_random_uuid(), user_id, {before} + CASE WHEN on_twin THEN twin ELSE {twins + 1} + other END, outcome,
            amount, 'PENDING', 0, {moment}
        FROM drawn, generate_series(1, {twins}) twin, (VALUES (true), ({"false" if others else "NULL"})) o (on_twin)
        WHERE on_twin IS NOT NULL ORDER BY twin, i, on_twin DESC;
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
        SELECT 'stake:' || b.id, {opening}, a.id, b.amount, 'stake', b.placed_at
        FROM markets_bet b JOIN payments_ledgeraccount a ON a.code = 'pool:' || b.market_id
        WHERE b.market_id > {before} AND b.market_id <= {before + twins} ORDER BY b.id;
        """,
    )
    for table in ("users_customuser", "markets_bet", "payments_transfer", "payments_ledgeraccount", "markets_market"):
        run_sql(superuser, f"VACUUM (ANALYZE) {table}")
    return Population(twins=market_ids[:twins], others=market_ids[twins:], members=(first, last))


def fill_wallets(*, count: int, population: Population) -> range:
    """Put ten million shillings into the wallet of each of about `count` members. Return their ids.

    The ids of these members have equal gaps.
    """
    first, last = population.members
    ids = range(first, last + 1, max(1, (last - first) // count))
    opening = journal.open_accounts([journal.OPENING])[journal.OPENING]
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)"
            " SELECT 'opening:' || user_id || ':1', %s, id, 10000000, 'opening', now() FROM payments_ledgeraccount"
            " WHERE kind = 'wallet' AND user_id = ANY (%s) ORDER BY user_id",
            [opening, list(ids)],
        )
    return ids


def _one_number(url: str, statement: str) -> int:
    ((number,),) = run_sql(url, statement)
    return int(str(number))


def superuser_url() -> str:
    """Return the URL with which the superuser connects to the measured database."""
    url = os.environ["KASOKO_BENCH_ROOT_URL"]
    return url.removesuffix("/postgres") + "/" + str(connection.settings_dict["NAME"])
