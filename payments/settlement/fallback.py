"""Fallback for markets that nobody resolves: the machine proposes to void them, and two people decide.

The proposal blocks nothing. It lapses when people decide the market otherwise.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from markets import locks
from markets.models import Market
from payments.models import Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals
from payments.settlement.decision import Decision, Evidence
from users import audit
from users.proposals import Proposed, open_about, open_subjects, rejected_subjects

NOTE = "Proposed by the system, because nobody has resolved the market since its close."


def due(*, at: datetime, after: timedelta, limit: int) -> list[int]:
    """Return the ids of the markets that were closed `after` ago without an outcome and have no open proposal."""
    waiting = _waiting(at, after).exclude(pk__in=open_subjects("market"))
    return list(waiting.order_by("end_date", "pk").values_list("pk", flat=True)[:limit])


def propose_void(*, market_id: int, at: datetime, after: timedelta, policy: Policy) -> Proposed | None:
    """Propose to void a market that nobody has resolved for so long. Return None if it is not due.

    Idempotent: one open proposal for each market.
    Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound; preview.FiguresDisagree.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        subject = proposals.subject(market.pk)
        if not _waiting(at, after).filter(pk=market.pk).exists() or open_about(subject).exists():
            return None
        decision = Decision("VOID", {}, reason="no_result", evidence=Evidence(note=NOTE))
        figures = preview.figures(market, decision, at=at, policy=policy)
        pool = Decimal(figures.division.pool + figures.division.late_refund) / 100
        return proposals.propose_decision(
            market, decision, preview_hash=figures.preview_hash, pool=pool, by=audit.MACHINE, at=at
        )


def _waiting(at: datetime, after: timedelta) -> QuerySet[Market]:
    """Return the markets that closed `after` ago and wait for an outcome.

    A market that a shell made with a past end counts only from its close by a person. The time begins again at an undo,
    at a withdrawal, and when people reject the machine's proposal: they know of the market and work on it.
    """
    closed = Q(closed_at__lte=at - after) | Q(closed_at=None, end_date__lte=at - after, end_date__gt=F("created_at"))
    taken_back = Settlement.objects.filter(market=OuterRef("pk")).exclude(rule=Settlement.Rule.SCRATCH)
    # A market that was resolved before its end has no close of its own.
    decided_early = Q(Exists(taken_back.filter(undone_at__lte=at - after)), status=Market.Status.CLOSED, closed_at=None)
    return Market.objects.filter(
        closed | decided_early,
        ~Exists(taken_back.filter(undone_at__gt=at - after)),
        status__in=[Market.Status.OPEN, Market.Status.CLOSED],
    ).exclude(pk__in=rejected_subjects("market", proposals.VOID, since=at - after))
