"""Calls for proposals: list the open ones, approve, reject; and the answers of calls that make a proposal."""

from functools import partial
from typing import Any

from rest_framework.decorators import api_view, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from api.rest.authority import act
from api.rest.fields import actor, caller
from payments import wiring
from users import authority, proposals
from users.models import Proposal

PAGE = 100
# What the answers of market calls name the acts.
KINDS = {
    "market.resolve": "RESOLVE", "market.void": "RESOLVE", "market.undo": "UNDO", "market.scratch": "SCRATCH",
}  # fmt: skip


def proposed(made: proposals.Proposed) -> Response:
    """Answer 202: nothing is decided yet. A second member of staff must approve with the same preview hash."""
    subject, _, number = made.subject.rpartition(":")
    answer: dict[str, Any] = {"status": "proposed", "proposal_id": made.proposal_id}
    if made.act in KINDS:
        answer |= {"market_id": int(number), "kind": KINDS[made.act]}
    else:
        answer |= {"act": made.act, "subject": f"{subject}:{number}"}
    return Response(answer | {"preview_hash": made.preview_hash}, status=202)


def approve(request: Request, *, proposal_id: int, preview_hash: str) -> Any:
    """Approve a proposal for the caller, wake the workers, and return what the act returned."""
    done = proposals.approve(
        proposal_id=proposal_id,
        preview_hash=preview_hash,
        holds=partial(authority.holds, caller(request)),
        by=actor(request),
        at=wiring.now(),
        acts=wiring.acts(),
    )
    wiring.after_approval(done)
    return done


def reject(request: Request, *, proposal_id: int, reason: str) -> Proposal:
    """Reject a proposal for the caller, or withdraw the caller's own."""
    return proposals.reject(
        proposal_id=proposal_id,
        reason=reason,
        holds=partial(authority.holds, caller(request)),
        by=actor(request),
        at=wiring.now(),
        acts=wiring.acts(),
    )


def approval_status(done: object) -> str:
    """Return the status word of an approval: a machine's proposal waits for a second one."""
    return "approved_once" if isinstance(done, proposals.ApprovedOnce) else "approved"


@api_view(["GET"])
@permission_classes([act("proposal.view")])
def open_proposals(request: Request) -> Response:
    """`GET /api/users/admin/proposals/`: the open proposals, the oldest first."""
    rows = Proposal.objects.filter(state=Proposal.State.OPEN).order_by("pk")[:PAGE]
    return Response({"proposals": [_body(row) for row in rows]})


def _body(row: Proposal) -> dict[str, Any]:
    procedure = wiring.acts().get(row.act)
    return {
        "proposal_id": row.pk,
        "act": row.act,
        "subject": row.subject,
        "words": procedure.words(row) if procedure else [],
        "amount": None if row.amount is None else f"{row.amount:.2f}",
        "reason": row.reason,
        "preview_hash": row.hash,
        "proposed_by": row.proposed_by_id,
        "proposed_at": row.proposed_at,
        "first_approved_by": row.first_approved_by_id,
        "expires_at": row.expires_at,
    }
