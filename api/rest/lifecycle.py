"""Staff calls for the life of a market: create, change its terms, suspend, resume, close."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.decorators import api_view, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import LARGEST_ID, Body, Percentage, StrictInteger, StrictText, actor, checked
from api.rest.proposals import proposed
from markets import lifecycle, locks, queries, terms, terms_proposals
from markets.models import DEFAULT_OUTCOMES, Market, default_fee_pct
from payments import wiring
from payments.settlement import market_sending
from users import proposals

REASON = 300


class Close(serializers.DateTimeField):
    """A time with its offset, such as 2026-12-01T18:00:00+03:00. A time without one is refused."""

    default_error_messages: ClassVar = {
        "offset": "Must be a time with its offset, such as 2026-12-01T18:00:00+03:00.",
    }

    def enforce_timezone(self, value: datetime) -> datetime:
        if value.tzinfo is None:
            self.fail("offset")
        return super().enforce_timezone(value)


class TermsBody(Body):
    """The terms of a market. Without outcomes it has Yes and No; without a fee, that of the setting."""

    question = StrictText(max_length=terms.LONGEST["question"])
    end_date = Close()
    description = StrictText(
        max_length=terms.LONGEST["description"], default="", allow_blank=True, trim_whitespace=False
    )
    source = StrictText(max_length=terms.LONGEST["source"], default="", allow_blank=True)  # type: ignore[assignment]
    outcomes = serializers.ListField(
        child=StrictText(max_length=terms.LONGEST_OUTCOME), min_length=2, max_length=terms.MOST_OUTCOMES, required=False
    )
    platform_fee_pct = Percentage(required=False)


class CreateBody(TermsBody):
    category = StrictText(max_length=lifecycle.LONGEST_CATEGORY, default="", allow_blank=True)


class ChangeBody(Body):
    """The terms that change; the others stay. `terms_version` is the version that the caller has read."""

    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    terms_version = StrictInteger(min_value=1, max_value=32_767)
    reason = StrictText(max_length=REASON)
    question = StrictText(max_length=terms.LONGEST["question"], required=False)
    end_date = Close(required=False)
    description = StrictText(
        max_length=terms.LONGEST["description"], required=False, allow_blank=True, trim_whitespace=False
    )
    source = StrictText(max_length=terms.LONGEST["source"], required=False, allow_blank=True)  # type: ignore[assignment]
    outcomes = serializers.ListField(
        child=StrictText(max_length=terms.LONGEST_OUTCOME), min_length=2, max_length=terms.MOST_OUTCOMES, required=False
    )
    platform_fee_pct = Percentage(required=False)


class WithReasonBody(Body):
    market_id = StrictInteger(min_value=1, max_value=LARGEST_ID)
    reason = StrictText(max_length=REASON)


@api_view(["POST"])
@permission_classes([act("market.create")])
def create_market(request: Request) -> Response:
    """`POST …/admin/create/` {question, end_date}: create a market. Without outcomes it has Yes and No.

    Optional: description, source, category, outcomes, platform_fee_pct. Answers 201 with the market's id.
    """
    body = checked(CreateBody(data=request.data))
    category = body.pop("category")
    market = lifecycle.create(draft=_draft(body), category=category, by=actor(request), at=wiring.now())
    return Response(_market_body("created", market), status=201)


def _draft(body: dict[str, Any]) -> terms.Draft:
    outcomes = tuple(body.pop("outcomes", DEFAULT_OUTCOMES))
    fee_pct: Decimal = body.pop("platform_fee_pct", default_fee_pct())
    return terms.Draft(outcomes=outcomes, platform_fee_pct=fee_pct, **body)


@api_view(["POST"])
@permission_classes([act("market.change")])
def change_market(request: Request) -> Response:
    """`POST …/admin/change/` {market_id, terms_version, reason, …}: change the terms that the body names.

    Answers 202 after the first bet: another person must approve, and betting is suspended until then.
    """
    body = checked(ChangeBody(data=request.data))
    market_id, seen_version, reason = (body.pop(name) for name in ("market_id", "terms_version", "reason"))
    market = queries.listed().filter(pk=market_id).first()
    if market is None:
        raise locks.MarketNotFound(f"There is no market {market_id}.")
    if "outcomes" in body:
        body["outcomes"] = tuple(body["outcomes"])
    changed = terms_proposals.change(
        market_id=market_id,
        draft=replace(terms.of(market), **body),
        seen_version=seen_version,
        reason=reason,
        by=actor(request),
        at=wiring.now(),
        notice=wiring.policy().terms_notice,
    )
    if isinstance(changed, proposals.Proposed):
        return proposed(changed)
    return Response(
        {
            "status": "changed" if changed.differences else "unchanged",
            "market_id": changed.market_id,
            "terms_version": changed.version,
            "changes": [
                {"field": each.field, "before": each.before, "after": each.after} for each in changed.differences
            ],
        }
    )


@api_view(["POST"])
@permission_classes([act("market.suspend_betting")])
def suspend_betting(request: Request) -> Response:
    """`POST …/admin/suspend-betting/` {market_id, reason}: take no bets until a person resumes betting."""
    body = checked(WithReasonBody(data=request.data))
    return Response(_market_body("suspended", lifecycle.suspend_betting(**body, by=actor(request), at=wiring.now())))


@api_view(["POST"])
@permission_classes([act("market.resume_betting")])
def resume_betting(request: Request) -> Response:
    """`POST …/admin/resume-betting/` {market_id, reason}: take bets again."""
    body = checked(WithReasonBody(data=request.data))
    return Response(_market_body("resumed", lifecycle.resume_betting(**body, by=actor(request), at=wiring.now())))


@api_view(["POST"])
@permission_classes([act("market.close")])
def close_market(request: Request) -> Response:
    """`POST …/admin/close/` {market_id, reason}: close the market now, for good. It then waits for its outcome."""
    body = checked(WithReasonBody(data=request.data))
    closed = lifecycle.close(**body, by=actor(request), at=wiring.now())
    return Response({"status": "closed", "market_id": closed.market_id, "closed_at": closed.closed_at})


@api_view(["POST"])
@permission_classes([act("market.suspend_sending")])
def suspend_sending(request: Request) -> Response:
    """`POST …/admin/suspend-sending/` {market_id, reason}: send no payout of this market until a person resumes it."""
    body = checked(WithReasonBody(data=request.data))
    settlement = market_sending.suspend(**body, by=actor(request), at=wiring.now())
    return Response({"status": "suspended", "market_id": settlement.market_id})


@api_view(["POST"])
@permission_classes([act("market.resume_sending")])
def resume_sending(request: Request) -> Response:
    """`POST …/admin/resume-sending/` {market_id, reason}: send the payouts of this market again.

    Answers 202 with a proposal if the payouts that wait need a second person.
    """
    body = checked(WithReasonBody(data=request.data))
    done = market_sending.resume(**body, by=actor(request), at=wiring.now())
    if isinstance(done, proposals.Proposed):
        return proposed(done)
    wiring.after_approval(done)
    return Response({"status": "resumed", "market_id": done.market_id})


def _market_body(status: str, market: Market) -> dict[str, Any]:
    return {
        "status": status,
        "market_id": market.pk,
        "terms_version": market.terms_version,
        "end_date": market.end_date.astimezone(UTC),
    }
