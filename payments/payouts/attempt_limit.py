"""Limit of the requests of one payout: their number, and their failures."""

from payments.models import Attempt, Transaction
from payments.mpesa import result_codes
from payments.policy import Policy

LARGEST_NUMBER = 999
NO_NUMBERS = "This payout has no numbers left for its requests."


def reached(payout: Transaction, attempt: Attempt, policy: Policy) -> str:
    """Return why the payout must not be sent again without a person, or an empty string.

    A request that never left, or that failed by a fault of ours, does not count. The number of a request has at most
    three digits, because its id has at most 36 characters.
    """
    failures = payout.attempts.filter(state=Attempt.State.FAILED, kind=Attempt.Kind.B2C, first_sent_at__isnull=False)
    codes = failures.values_list("result_code", flat=True)
    failed = sum(result_codes.meaning(code).fault != "ours" for code in codes)
    if failed >= policy.max_attempts:
        return f"{failed} requests of this payout failed."
    return NO_NUMBERS if attempt.number >= LARGEST_NUMBER else ""
