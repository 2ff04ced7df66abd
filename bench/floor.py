"""Floor of a settlement: the cheapest way to write the same rows.

Each table has an empty copy with the same columns, checks, indexes and foreign keys, but without triggers. First the
rows of a settlement are written to files. Then one transaction is measured. It sums the market's bets, and reads the
files into the empty copies with a server-side COPY. It updates all winners' balances in one UPDATE.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

TABLES = ("payments_transaction", "payments_transfer")


@dataclass(frozen=True)
class Cost:
    """Cost of writing the rows: seconds, CPU seconds of the server's process, and bytes of WAL."""

    seconds: float
    cpu: float
    wal: int


def make_copies() -> None:
    """Create the empty copies of the tables, with the foreign keys of the real tables."""
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"CREATE TABLE {_copy_of(table)} (LIKE {table} INCLUDING ALL)")
        for table in TABLES:
            cursor.execute(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'f'",
                [table],
            )
            for (definition,) in cursor.fetchall():
                for name in TABLES:
                    definition = definition.replace(f"REFERENCES {name}(", f"REFERENCES {_copy_of(name)}(")
                cursor.execute(f"ALTER TABLE {_copy_of(table)} ADD {definition}")
        # The settlement updates the bets. The floor writes each result as a new row, which needs only these columns.
        cursor.execute("CREATE TABLE floor_bet (id bigint PRIMARY KEY, result varchar(10), payout numeric(14,2))")
        cursor.execute("CREATE TABLE floor_user (LIKE users_customuser INCLUDING ALL)")
        cursor.execute(
            "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'users_customuser'::regclass"
        )
        (options,) = cursor.fetchone()
        if options:
            cursor.execute(f"ALTER TABLE floor_user SET ({options})")
        cursor.execute("CREATE TABLE floor_moved (id bigint PRIMARY KEY, delta numeric)")


def measure(market_id: int, directory: Path) -> Cost:
    """Write the rows of the market's settlement into the empty copies, and return the cost."""
    files = {name: directory / f"bench-{name}" for name in ("floor_bet", *map(_copy_of, TABLES))}
    rows = {
        "floor_bet": "SELECT id, result, payout FROM markets_bet WHERE market_id = {0} ORDER BY id",
        _copy_of("payments_transaction"): "SELECT t.* FROM payments_transaction t JOIN payments_settlement s"
        " ON s.id = t.settlement_id WHERE s.market_id = {0} ORDER BY t.id",
        _copy_of("payments_transfer"): "SELECT t.* FROM payments_transfer t WHERE (debit_id = (SELECT id"
        " FROM payments_ledgeraccount WHERE code = 'pool:{0}')) ORDER BY t.id",
    }
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        copies = ", ".join([*files, "floor_user", "floor_moved"])
        cursor.execute(f"TRUNCATE {copies}")
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
    """Write a checkpoint, so that the next measurement counts only its own writes and full-page images."""
    with connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")


def wal_written() -> int:
    """Return the bytes of WAL that this session has written so far. The WAL of autovacuum is not counted."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())")
        return int(cursor.fetchone()[0])


def cpu_spent() -> float:
    """Return the CPU seconds that this session's server process has used so far. It runs on this machine."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (process,) = cursor.fetchone()
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def _copy_of(table: str) -> str:
    return table.replace("payments_", "floor_")
