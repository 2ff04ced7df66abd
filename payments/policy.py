"""Policy of payments: one frozen value that views, tasks and commands build from the settings."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Self


@dataclass(frozen=True)
class Policy:
    """The operator's rules. They come from settings, which `.env.example` explains. Amounts are shillings."""

    production: bool
    protect_stake: bool
    destination: str
    min_amount: int
    max_amount: int
    day_limit: int
    query_after: timedelta
    query_gap: timedelta
    review_after: timedelta
    resend_horizon: timedelta
    retry_after: timedelta
    confirm_above: Decimal
    settlement_chunk: int
    max_attempts: int = 20
    payouts_a_second: Decimal = Decimal(5)
    in_flight: int = 400
    canary: tuple[int, ...] = ()
    paused: bool = False
    breaker_pause: timedelta = timedelta(seconds=1)
    breaker_longest_pause: timedelta = timedelta(seconds=20)
    breaker_window: int = 20
    breaker_failure_share: Decimal = Decimal("0.5")
    dispute_window: timedelta = timedelta(days=30)
    dispute_answer_within: timedelta = timedelta(hours=72)
    holds: tuple[tuple[Decimal, timedelta], ...] = ()
    approval_above: Decimal | None = None
    terms_notice: timedelta = timedelta(hours=24)
    close_reminder: timedelta = timedelta(minutes=60)
    outcome_reminder: timedelta = timedelta(hours=24)
    void_proposal: timedelta | None = None
    phone_change_hold: timedelta = timedelta(hours=24)
    legal_limits: bool = False

    def hold_for(self, pool: Decimal) -> timedelta:
        """Return the time for which a settlement's payouts are held, by its pool in shillings."""
        return next((hold for minimum, hold in sorted(self.holds, reverse=True) if pool >= minimum), timedelta(0))

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """Build the policy from Django's settings."""
        return cls(
            production=settings.MPESA_PRODUCTION,
            protect_stake=settings.PAYOUT_PROTECT_STAKE,
            destination=settings.PAYOUT_DESTINATION,
            min_amount=settings.PAYOUT_MIN_AMOUNT,
            max_amount=settings.PAYOUT_MAX_AMOUNT,
            day_limit=settings.PAYOUT_DAY_LIMIT,
            query_after=timedelta(seconds=settings.PAYOUT_QUERY_AFTER),
            query_gap=timedelta(seconds=settings.PAYOUT_QUERY_GAP),
            review_after=timedelta(seconds=settings.PAYOUT_REVIEW_AFTER),
            resend_horizon=timedelta(seconds=settings.PAYOUT_RESEND_HORIZON),
            retry_after=timedelta(seconds=settings.PAYOUT_RETRY_AFTER),
            confirm_above=settings.MPESA_CONFIRM_ABOVE,
            settlement_chunk=settings.SETTLEMENT_CHUNK,
            max_attempts=settings.PAYOUT_MAX_ATTEMPTS,
            payouts_a_second=settings.PAYOUT_TPS,
            in_flight=settings.PAYOUT_IN_FLIGHT,
            canary=settings.PAYOUT_CANARY,
            paused=settings.PAYOUTS_PAUSED,
            breaker_pause=timedelta(seconds=settings.BREAKER_PAUSE),
            breaker_longest_pause=timedelta(seconds=settings.BREAKER_LONGEST_PAUSE),
            breaker_window=settings.BREAKER_WINDOW,
            breaker_failure_share=settings.BREAKER_SHARE,
            dispute_window=timedelta(days=settings.DISPUTE_WINDOW_DAYS),
            dispute_answer_within=timedelta(hours=settings.DISPUTE_ANSWER_HOURS),
            holds=tuple((minimum, timedelta(minutes=minutes)) for minimum, minutes in settings.SETTLEMENT_HOLD_MINUTES),
            approval_above=settings.RESOLVE_APPROVAL_ABOVE,
            terms_notice=timedelta(hours=settings.TERMS_NOTICE_HOURS),
            close_reminder=timedelta(minutes=settings.CLOSE_REMINDER_MINUTES),
            outcome_reminder=timedelta(hours=settings.OUTCOME_REMINDER_HOURS),
            void_proposal=timedelta(hours=settings.VOID_PROPOSAL_HOURS) if settings.VOID_PROPOSAL_HOURS else None,
            phone_change_hold=timedelta(hours=settings.PHONE_CHANGE_HOLD_HOURS),
            legal_limits=settings.PRODUCTION,
        )
