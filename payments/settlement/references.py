"""External references of payouts, derived from the debt and never drawn.

A server that lost its last commits settles again under the same references. M-Pesa then refuses a second request for a
debt that it has already paid, because the id of the request is the same.
"""

import hashlib
from uuid import UUID

# A reference counts in steps: tranches first, then kinds, then the settlements of the market. All places together fill
# 32 bits: settlements and tranches are smallints.
TRANCHES = 1 << 15
# One number for each type and destination. Never change a number: references that exist depend on it.
KINDS = {("PAYOUT", "mpesa"): 0, ("PAYOUT", "wallet"): 1, ("REFUND", "mpesa"): 2, ("REFUND", "wallet"): 3}

# The digits of the row's reference as SQL, equal to `digits`. A row has user_id, destination and tranche; `member` is
# its row of users_customuser. `first_place` gives the parameters.
DIGITS = """lpad(to_hex((
    ('x' || encode(substr(sha256(uuid_send(%(market_public_id)s::uuid) || uuid_send(member.public_id)), 1, 4), 'hex')
    )::bit(32)::bigint
    + CASE destination WHEN 'mpesa' THEN %(mpesa_place)s::bigint ELSE %(wallet_place)s::bigint END
    + tranche - 1) & 4294967295), 8, '0')"""


def base(market_public_id: UUID, member_public_id: UUID) -> int:
    """Return the number of 32 bits from which the references of one member in one market count up."""
    digest = hashlib.sha256(market_public_id.bytes + member_public_id.bytes).digest()
    return int.from_bytes(digest[:4], "big")


def first_place(*, settlement_number: int, kind: tuple[str, str]) -> int:
    """Return the place of the first tranche of one kind in one settlement, counted from the member's base.

    `kind` is a type and a destination, a key of KINDS.
    """
    return (settlement_number * len(KINDS) + KINDS[kind]) * TRANCHES


def digits(member_base: int, *, settlement_number: int, kind: tuple[str, str], tranche: int) -> str:
    """Return the eight hex digits of a payout's reference. `DIGITS` states the same rule as SQL.

    The reference is KASOKO-<market id>-<member id>-<digits>. Amount, phone number and settings are no part of it.
    Within one market and member no two places are equal, so no two references are equal.
    A restored database may give an id again to another market or member. Its public id differs, so its digits differ,
    except with a probability of about one in four thousand million for each pair of debts with equal ids. A debt that
    is settled under another settlement number than before the loss has another reference. Only the result of the lost
    request then shows that it was paid.
    """
    place = first_place(settlement_number=settlement_number, kind=kind)
    return f"{(member_base + place + tranche - 1) % 2**32:08x}"
