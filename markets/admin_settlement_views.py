"""The names by which the guide's part 2.6 imports its four views; they live in `api.rest.settlement`."""

from api.rest.settlement import resolve_market, retry_failed_payouts_batch, retry_payout, settlement_status

__all__ = ["resolve_market", "retry_failed_payouts_batch", "retry_payout", "settlement_status"]
