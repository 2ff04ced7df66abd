"""Search for payouts by phone, receipt, reference, market or number, using indexes only."""

import re
from dataclasses import dataclass

from django.db.models import QuerySet

from payments.models import Attempt, Transaction
from payments.payouts.operations import failures
from users import phone
from users.models import CustomUser

_REFERENCE = re.compile(r"KASOKO-([0-9A-Z]+)-([0-9]+)-[0-9a-f]{8}(?:-[0-9]+)?", re.IGNORECASE)
# The filters of the list: the value in the URL, and its label on the page.
STATES = {
    "": "All",
    "pending": "Pending",
    "processing": "Processing",
    "in_doubt": "In doubt",
    "held": "Held",
    "failed": "Failed",
    "completed": "Completed",
    "cancelled": "Cancelled",
}


@dataclass(frozen=True)
class SearchResult:
    """The payouts that match a search. `understood` states in words how the typed text was read."""

    payouts: QuerySet[Transaction]
    understood: str


def search(typed: str = "", *, state: str = "", code: str = "", market_id: int | None = None) -> SearchResult:
    """Return the transactions that match the typed text and the chosen filters, in no particular order."""
    payouts = Transaction.objects.select_related("user", "settlement").defer("user__password")
    payouts, understood = _typed(payouts, typed.strip())
    if state == "in_doubt":
        payouts = payouts.filter(pk__in=Attempt.objects.in_doubt().values("transaction"))
    elif state in STATES and state:
        payouts = payouts.filter(status=state.upper())
    if code:
        payouts = failures.with_code(payouts.filter(status=Transaction.Status.FAILED)).filter(code=code)
    if market_id is not None:
        payouts = payouts.filter(settlement__market=market_id)
    return SearchResult(payouts, understood)


def _typed(payouts: QuerySet[Transaction], typed: str) -> tuple[QuerySet[Transaction], str]:
    """Return the payouts that match the typed text, and a description of how the text was read."""
    if not typed:
        return payouts, ""
    try:
        number = phone.normalise(typed)
    except phone.NotAPhoneNumber:
        pass
    else:
        members = CustomUser.objects.filter(phone_number=number)
        return payouts.filter(user__in=members), f"payouts to {phone.masked(number)}"
    if match := re.fullmatch(r"(?:market|m)\s*[:#]?\s*([0-9]{1,18})", typed, re.IGNORECASE):
        return payouts.filter(settlement__market=int(match[1])), f"payouts of market {match[1]}"
    if match := re.fullmatch(r"#?([0-9]{1,18})", typed):
        return payouts.filter(pk=int(match[1])), f"transaction {match[1]}"
    if _REFERENCE.fullmatch(typed):
        attempts = Attempt.objects.filter(originator_conversation_id=typed)
        by_reference = payouts.filter(external_ref=typed)
        return by_reference | payouts.filter(pk__in=attempts.values("transaction")), f"reference {typed}"
    attempts = Attempt.objects.filter(receipt=typed.upper())
    return payouts.filter(pk__in=attempts.exclude(receipt="").values("transaction")), f"receipt {typed.upper()}"
