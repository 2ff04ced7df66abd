"""The least that writing a settlement's rows can cost: the same rows, from files, by the server itself.

Each table has a twin with the same columns, checks, indexes and foreign keys, and no triggers. The rows that a
settlement wrote are put into files first; what is measured is one aggregate over the market's bets, COPY of the files
into the twins, and the winners' balances in one UPDATE, in one transaction.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

TABLES = ("payments_transaction", "payments_transfer")


@dataclass(frozen=True)
class Cost:
    """What one way of writing cost: seconds, of which on a processor; bytes of WAL."""

    seconds: float
    cpu: float
    wal: int


def make_twins() -> None:
    """Make the empty twins; what foreign keys the real tables have, theirs have."""
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"CREATE TABLE {_twin(table)} (LIKE {table} INCLUDING ALL)")
        for table in TABLES:
            cursor.execute(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'f'",
                [table],
            )
            for (definition,) in cursor.fetchall():
                for name in TABLES:
                    definition = definition.replace(f"REFERENCES {name}(", f"REFERENCES {_twin(name)}(")
                cursor.execute(f"ALTER TABLE {_twin(table)} ADD {definition}")
        # The verdicts are written into the bets; as rows of their own they would need no more than this.
        cursor.execute("CREATE TABLE floor_bet (id bigint PRIMARY KEY, result varchar(10), payout numeric(14,2))")
        cursor.execute("CREATE TABLE floor_user (LIKE users_customuser INCLUDING ALL)")
        cursor.execute(
            "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'users_customuser'::regclass"
        )
        (options,) = cursor.fetchone()
        if options:
            cursor.execute(f"ALTER TABLE floor_user SET ({options})")
        cursor.execute("CREATE TABLE floor_moved (id bigint PRIMARY KEY, delta numeric)")


def measure(market_id: int, place: Path) -> Cost:
    """Write once more, into the twins, what the market's settlement wrote."""
    files = {name: place / f"bench-{name}" for name in ("floor_bet", *map(_twin, TABLES))}
    rows = {
        "floor_bet": "SELECT id, result, payout FROM markets_bet WHERE market_id = {0} ORDER BY id",
        _twin("payments_transaction"): "SELECT t.* FROM payments_transaction t JOIN payments_settlement s"
        " ON s.id = t.settlement_id WHERE s.market_id = {0} ORDER BY t.id",
        _twin("payments_transfer"): "SELECT t.* FROM payments_transfer t WHERE (debit_id = (SELECT id"
        " FROM payments_ledgeraccount WHERE code = 'pool:{0}')) ORDER BY t.id",
    }
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        twins = ", ".join([*files, "floor_user", "floor_moved"])
        cursor.execute(f"TRUNCATE {twins}")
        for name, file in files.items():
            cursor.execute(f"COPY ({rows[name].format(market_id)}) TO '{file}' (FORMAT binary)")
        cursor.execute("INSERT INTO floor_user SELECT * FROM users_customuser")
        cursor.execute(
            "INSERT INTO floor_moved SELECT a.user_id, sum(t.amount) FROM payments_transfer t"
            " JOIN payments_ledgeraccount a ON a.id = t.credit_id AND a.kind = 'wallet'"
            " JOIN payments_ledgeraccount p ON p.id = t.debit_id AND p.code = %s GROUP BY a.user_id ORDER BY a.user_id",
            [f"pool:{market_id}"],
        )
        for name in ("floor_user", "floor_moved"):
            cursor.execute(f"VACUUM ANALYZE {name}")
    rested()
    wal, cpu, began = wal_written(), cpu_spent(), time.perf_counter()
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(
            "SELECT outcome, count(*), sum(amount) FROM markets_bet WHERE market_id = %s GROUP BY outcome", [market_id]
        )
        cursor.fetchall()
        for name, file in files.items():
            cursor.execute(f"COPY {name} FROM '{file}' (FORMAT binary)")
        cursor.execute("UPDATE floor_user u SET balance = u.balance + m.delta FROM floor_moved m WHERE m.id = u.id")
    return Cost(time.perf_counter() - began, cpu_spent() - cpu, wal_written() - wal)


def rested() -> None:
    """Begin from a checkpoint, so that what is measured pays for its own writes and its own full pages."""
    with connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")


def wal_written() -> int:
    """Bytes of WAL that this session has written so far; what autovacuum writes meanwhile is not ours."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())")
        return int(cursor.fetchone()[0])


def cpu_spent() -> float:
    """Seconds that this session's process of the server, which runs on this machine, was on a processor so far."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (process,) = cursor.fetchone()
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def _twin(table: str) -> str:
    return table.replace("payments_", "floor_")
