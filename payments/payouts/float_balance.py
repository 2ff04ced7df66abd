"""The balance of our Utility account (the float), as M-Pesa last stated it.

M-Pesa states the float in each payment's result, and in the answer to a balance query. This module records what M-Pesa
states. The ledger says what the float should be.
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
# Every result of a payment states the float. One row per interval is enough.
READING_INTERVAL = timedelta(seconds=10)


@dataclass(frozen=True)
class BalanceQuestion:
    """A balance query that is committed and must be POSTed now."""

    reading_id: int
    token: str


def latest() -> FloatReading | None:
    """Return the latest reading of the float, or None if there is none yet."""
    return FloatReading.objects.filter(read_at__isnull=False).order_by("-read_at").first()


def note(amount: Decimal | None, *, at: datetime) -> None:
    """Store the float that a payment's result states, in the caller's transaction.

    Stores nothing if the last reading is younger than READING_INTERVAL.
    """
    if amount is None or FloatReading.objects.filter(read_at__gt=at - READING_INTERVAL).exists():
        return
    FloatReading.objects.create(source=FloatReading.Source.RESULT, amount=amount, read_at=at)


def ask(*, at: datetime, addresses: Addresses) -> BalanceQuestion:
    """Commit a balance query before it is POSTed. Each query has its own callback address with its own token."""
    with transaction.atomic(durable=True):
        reading = FloatReading.objects.create(source=FloatReading.Source.BALANCE, asked_at=at)
        token = addresses.token(f"balance?{reading.pk}")
        reading.token_hash = token_hash(token)
        reading.save(update_fields=["token_hash"])
    return BalanceQuestion(reading.pk, token)


def post(question: BalanceQuestion, *, gateway: client.Gateway, addresses: Addresses) -> bool:
    """POST one balance query and return True if Daraja took the query. Touches no database."""
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


def apply_answer(reading_id: int, answer: messages.BalanceAnswer, *, trusted: bool, at: datetime) -> str:
    """Apply the answer to a balance query in the caller's transaction, and return the outcome in words.

    Locks: the FloatReading.
    """
    balances = answer.balances
    if not trusted:
        return "ignored: the message came from an address that is not M-Pesa's"
    if answer.refuses_our_credentials:
        return f"no balance: M-Pesa refused our initiator with code {answer.result_code}"
    if UTILITY not in balances:
        return "ignored: the balance query failed"
    reading = FloatReading.objects.select_for_update(no_key=True).get(pk=reading_id)
    reading.amount, reading.read_at = balances[UTILITY].available, at
    reading.save(update_fields=["amount", "read_at"])
    return f"the Utility account holds {reading.amount}"
