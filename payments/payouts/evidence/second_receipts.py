"""Second receipts: payments that M-Pesa reports besides the booked payment of the same request.

A trusted and complete result books the second payment of a small amount. From `MPESA_CONFIRM_ABOVE` on, or if a field
is missing, the receipt is kept on the attempt and M-Pesa is asked about it. Its answer books the payment or drops the
receipt. The caller owns the database transaction and holds the Transaction and the Attempt.
"""

import logging
from datetime import datetime

from payments.ledger import journal
from payments.models import Attempt

alarm = logging.getLogger("kasoko.alarm")


def key_of(receipt: str) -> str:
    """Return the key of the transfer that books a second payment."""
    return f"second:{receipt.upper()[:50]}"


def has_place(attempt: Attempt, receipt: str) -> str:
    """Return why a second receipt needs no booking, in words, or an empty string."""
    if journal.is_booked(key_of(receipt)):
        return f"a second receipt {receipt}: booked already"
    if Attempt.objects.filter(receipt__iexact=receipt).exclude(pk=attempt.pk).exists():
        return f"a second receipt {receipt}: it belongs to another payment, so nothing is booked"
    return ""


def ask_about(attempt: Attempt, receipt: str, *, outcome: str, at: datetime) -> str:
    """Keep a second receipt on its attempt, and make a status query about it due now. Return the outcome in words."""
    receipt = receipt[:64]
    if settled := has_place(attempt, receipt):
        return settled
    if attempt.second_receipt.upper() not in ("", receipt.upper()):
        alarm.critical(
            "Attempt %s has a further receipt %s while we ask M-Pesa about %s. Nothing was booked for it. Check"
            " M-Pesa's statement.",
            attempt,
            receipt,
            attempt.second_receipt,
        )
        return f"a further receipt {receipt}: we still ask M-Pesa about {attempt.second_receipt}"
    attempt.second_receipt, attempt.next_query_at = receipt, at
    attempt.save(update_fields=["second_receipt", "next_query_at"])
    return outcome


def end(attempt: Attempt, receipt: str) -> None:
    """End the questions about a second receipt, because it has its place or M-Pesa contradicted it."""
    if attempt.second_receipt and attempt.second_receipt.upper() == receipt.upper():
        attempt.second_receipt, attempt.next_query_at = "", None
        attempt.save(update_fields=["second_receipt", "next_query_at"])


def next_query_after_reversal(attempt: Attempt) -> datetime | None:
    """Return when M-Pesa is asked next about a request whose payment it reversed: only about a second receipt."""
    return attempt.next_query_at if attempt.second_receipt else None
