"""Locks of markets, and the registry of all advisory lock numbers.

An advisory lock of PostgreSQL is a 64-bit number. Its top byte is the kind of the lock, so two kinds never share a
number:

| byte | number | locks | taken by |
|---|---|---|---|
| 7 | `market_lock(id)` | one market; bets share the lock | this module, `wallet.bets`, a trigger of `markets` |
| 8 | `AUDIT_CHAIN` | the end of the audit trail | a trigger of `users`, which may not import this module |
| 9 | `certificate_lock(id)` | the issuing of one settlement's certificate | `settlement.certificates.issuing` |
| 10 | `RESTORES` | a new restore; settlements share it while they are finished | `payouts.restores` |
| 11 | `receipt_lock(receipt)` | decisions with one M-Pesa receipt | `payouts.operations.decisions` |
| 12 | `acts_lock(act, user)` | the amounts that the person decided alone in a day | `users.second_person` |
| 13 | `figure_lock(name)` | changes of a figure of law, a limit or a threshold | `users.figure_changes` |

A transaction holds each of these locks until it ends. A new kind takes the next byte and a row in this table.
"""

import hashlib

from django.db import connection

from markets.models import Market
from users.refusal import Refusal

AUDIT_CHAIN = (8 << 56) + (2 << 48) + 1
RESTORES = 10 << 56


def market_lock(market_id: int) -> int:
    """Return the number of a market's advisory lock. The trigger that guards bets computes the same number."""
    return (7 << 56) + market_id % (1 << 56)


def certificate_lock(settlement_id: int) -> int:
    """Return the number of the lock that lets one worker at a time issue a settlement's certificate."""
    return (9 << 56) + settlement_id % (1 << 56)


def receipt_lock(receipt: str) -> int:
    """Return the number of the lock that lets one transaction at a time decide with an M-Pesa receipt."""
    return (11 << 56) + int.from_bytes(hashlib.sha256(receipt.encode()).digest()[:7])


class MarketNotFound(Refusal):
    """No market has this id."""


class MarketNotOpen(Refusal):
    """The market takes no bets now."""


class OutcomeNotInMarket(Refusal):
    """The market does not have this outcome."""


def locked_market(market_id: int) -> Market:
    """Lock a market for a decision and return it.

    Each bet takes a share of the market's advisory lock. The queue of this lock is fair, so a decision gets its turn.
    The queue of the row's own lock is not fair: a stream of bets that share it would keep a decision waiting.
    Locks: the market's advisory lock, then its row.
    Raises: MarketNotFound.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [market_lock(market_id)])
    market = Market.objects.select_for_update(no_key=True, of=("self",)).filter(pk=market_id).first()
    if market is None:
        raise MarketNotFound(f"There is no market {market_id}.")
    return market
