"""Floor of a settlement: the server itself copies the same rows from files.

Each table has a twin with the same columns, checks, indexes and foreign keys, and no triggers. The rows of a settlement
are first written to files. One transaction is measured: one aggregate over the market's bets, COPY of the files into
the twins, and the winners' balances in one UPDATE.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

TABLES = ("payments_transaction", "payments_transfer")


@dataclass(frozen=True)
class Cost:
    """Cost of writing the rows: seconds, the part of them on a processor, and bytes of WAL."""

    seconds: float
    cpu: float
    wal: int


def make_twins() -> None:
    """Make the empty twins, with the foreign keys of the real tables."""
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
        # Results are written into the bets. As rows of their own they need no more columns than these.
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
    """Write the rows of the market's settlement into the twins, and return the cost."""
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
    checkpoint()
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


def checkpoint() -> None:
    """Write a checkpoint, so that the next measurement pays for its own writes and its own full pages."""
    with connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")


def wal_written() -> int:
    """Return the bytes of WAL that this session has written so far, without those of autovacuum."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())")
        return int(cursor.fetchone()[0])


def cpu_spent() -> float:
    """Return the processor seconds so far of this session's server process, which runs on this machine."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (process,) = cursor.fetchone()
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def _twin(table: str) -> str:
    return table.replace("payments_", "floor_")
