"""Names of the four views that the guide's part 2.6 imports from here.

`api.rest.settlement` has the code.
"""

from api.rest.settlement import resolve_market, retry_failed_payouts_batch, retry_payout, settlement_status

__all__ = ["resolve_market", "retry_failed_payouts_batch", "retry_payout", "settlement_status"]
