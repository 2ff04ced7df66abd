"""What our Utility account holds, as M-Pesa last said: beside a payment's result, or when we asked for it.

The float is only read here; what it should be follows from the ledger.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import transaction

from payments.models import FloatReading
from payments.mpesa import client, gateway_errors, messages
from payments.mpesa.callback_urls import Addresses, token_hash

log = logging.getLogger(__name__)

UTILITY = "Utility Account"
# Each paid result tells the float; one row for that long is enough.
EVERY = timedelta(seconds=10)


@dataclass(frozen=True)
class BalanceQuestion:
    """A balance query to be POSTed now, its row committed."""

    reading_id: int
    token: str


def latest() -> FloatReading | None:
    """The last that we know of the float, or None where we know nothing yet."""
    return FloatReading.objects.filter(read_at__isnull=False).order_by("-read_at").first()


def note(amount: Decimal | None, *, at: datetime) -> None:
    """Keep what a payment's result says the float was after it, in the caller's transaction, every few seconds."""
    if amount is None or FloatReading.objects.filter(read_at__gt=at - EVERY).exists():
        return
    FloatReading.objects.create(source=FloatReading.Source.RESULT, amount=amount, read_at=at)


def ask(*, at: datetime, addresses: Addresses) -> BalanceQuestion:
    """Write a balance query down before it is put. Its address has a token of its own, like every other."""
    with transaction.atomic(durable=True):
        reading = FloatReading.objects.create(source=FloatReading.Source.BALANCE, asked_at=at)
        token = addresses.token(f"balance?{reading.pk}")
        reading.token_hash = token_hash(token)
        reading.save(update_fields=["token_hash"])
    return BalanceQuestion(reading.pk, token)


def put(question: BalanceQuestion, *, gateway: client.Gateway, addresses: Addresses) -> bool:
    """POST one balance query; whether Daraja took it. Touches no database."""
    try:
        gateway.ask_balance(
            result_url=addresses.balance_result(question.token),
            timeout_url=addresses.timeout(question.token),
            remarks="Float",
        )
    except gateway_errors.GatewayError as error:
        log.warning("Balance query not taken: %s", error)
        return False
    return True


def hear(reading_id: int, body: bytes, *, trusted: bool, at: datetime) -> str:
    """Apply the answer to a balance query, in the caller's transaction, and say what came of it.

    Raises: strict_json.Unreadable.
    """
    balances = messages.parse_balance(body)
    if not trusted:
        return "nothing: it came from an address that is not M-Pesa's"
    if UTILITY not in balances:
        return "nothing: the query failed"
    reading = FloatReading.objects.select_for_update(no_key=True).get(pk=reading_id)
    reading.amount, reading.read_at = balances[UTILITY].available, at
    reading.save(update_fields=["amount", "read_at"])
    return f"the Utility account holds {reading.amount}"
