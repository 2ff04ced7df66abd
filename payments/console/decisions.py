"""The operator's decisions on a market: resolve or void in three steps, approve, withdraw, undo, scratch.

First a preview side by side for every outcome; then the chosen one with its evidence; then the word is typed. What was
seen is what is done: the preview's hash goes with the form, and a number that has moved is a refusal.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import cast

from django.core.exceptions import ValidationError
from django.core.validators import URLValidator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from markets import parimutuel
from markets.models import NAIROBI, Market
from payments import approvals, preview, proposals, resolutions, settlement_tasks, stakes, undo
from payments.models import Proposal
from users.console import paging, shell

VOID_WORDS = {
    "cancelled": "the event was cancelled",
    "postponed": "the event was put off",
    "ambiguous": "the question has no clear answer",
    "no_result": "there was no result",
    "error": "the market was set up wrongly",
}


class NotAnAddress(ValueError):
    """What was typed as the evidence's address is none."""


REFUSALS = (
    stakes.MarketNotFound,
    stakes.MarketNotOpen,
    stakes.OutcomeNotInMarket,
    resolutions.MarketAlreadyResolved,
    resolutions.UnknownReason,
    resolutions.BadCloseTime,
    resolutions.NothingToWithdraw,
    resolutions.BeingSettled,
    resolutions.AlreadyReleased,
    resolutions.TooFewOutcomes,
    undo.NotUndoable,
    parimutuel.UnknownOutcome,
    parimutuel.BadWeights,
    preview.FiguresDisagree,
    proposals.StakeInMarket,
    proposals.ProposalWaits,
    proposals.PreviewMoved,
    proposals.PersonNeeded,
    approvals.ProposalNotFound,
    approvals.ProposalDecided,
    approvals.ProposerCannotApprove,
    NotAnAddress,
)


# --- resolve and void ------------------------------------------------------------------------------------------------


@shell.page("resolve_market")
def choose(request: HttpRequest, market_id: int) -> HttpResponse:
    """Step one: what each decision would do, side by side."""
    market = _undecided(market_id)
    at, policy = timezone.now(), settlement_tasks.policy()
    found = [preview.preview(market, rule=rule, weights=w, at=at, policy=policy) for rule, w in preview.choices(market)]
    context = {
        "title": f"Resolve market {market.pk}",
        "market": market,
        "previews": [(_name(one), _value(one), one) for one in found],
        "approval_above": policy.approval_above,
        "stake_of_mine": market.bets.filter(user=request.user.pk).exists(),
        "early": market.end_date > at,
    }
    return shell.render(request, "console/resolve.html", context)


@shell.page("resolve_market", posts=True)
def resolve(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Steps two and three: the chosen decision in full, its evidence, and the word typed."""
    market = _undecided(market_id)
    asked = request.POST if request.method == "POST" else request.GET
    kind, _, outcome = asked.get("decision", "").partition(":")
    if kind not in ("win", "void") or (kind == "win" and outcome not in market.running_outcomes):
        return HttpResponseRedirect(reverse("admin:market_choose", args=[market.pk]))
    at, policy = timezone.now(), settlement_tasks.policy()
    rule: parimutuel.Rule = "WINNER" if kind == "win" else "VOID"
    weights = {outcome: Decimal(100)} if kind == "win" else {}
    ended, problem = _moment(asked.get("ended", ""))
    if ended is not None and ended <= at:
        market.effective_close_at = ended
    seen = preview.preview(market, rule=rule, weights=weights, at=at, policy=policy)
    pool = Decimal(seen.figures.division.pool + seen.figures.division.late_refund) / 100
    two = policy.needs_approval(pool)
    question = shell.Question(
        title=f"Market {market.pk}: {outcome} wins" if kind == "win" else f"Void market {market.pk}",
        will=_will(seen, two=two, hold=policy.hold_for(pool)),
        button="Propose it" if two else ("Resolve and pay" if kind == "win" else "Void and refund"),
        back=reverse("admin:market_choose", args=[market.pk]),
        fields=_fields(kind, asked.get("ended", "")),
        typed=outcome if kind == "win" else "void",
        danger=True,
        template="console/decide.html",
        more={
            "market": market,
            "seen": seen,
            "decision": f"{kind}:{outcome}",
            "hash": seen.figures.preview_hash,
            "moment_problem": problem,
        },
    )

    def act(answers: dict[str, str]) -> str:
        if problem:
            raise resolutions.BadCloseTime(problem)
        if answers.get("evidence_url"):
            try:
                URLValidator(schemes=["http", "https"])(answers["evidence_url"])
            except ValidationError:
                raise NotAnAddress("The evidence's address must begin with http:// or https://.") from None
        done = resolutions.resolve(
            market_id=market.pk,
            rule=rule,
            weights=weights,
            by=shell.actor(request),
            at=timezone.now(),
            policy=policy,
            reason=answers.get("reason", ""),
            grounds=resolutions.Grounds(url=answers.get("evidence_url", ""), note=answers.get("evidence_note", "")),
            effective_close_at=ended,
            preview_hash=request.POST.get("hash", ""),
        )
        return _said(done)

    return shell.ask(request, question, act, refusals=REFUSALS, done=reverse("admin:market", args=[market.pk]))


def _said(done: resolutions.Resolved | proposals.Proposed) -> str:
    if isinstance(done, proposals.Proposed):
        link = reverse("admin:proposal", args=[done.proposal_id])
        return f"It is proposed. Nothing is paid until a second person approves it; send them the address {link}"
    settlement_tasks.hint(settlement_tasks.settle_market, done.market_id, task_id=done.public_id)
    return f"Market {done.market_id} is decided. Its settlement runs now; this page shows how far it is."


def _fields(kind: str, ended: str) -> list[shell.Field]:
    fields = []
    if kind == "void":
        choices = [("", "choose"), *((reason, VOID_WORDS[reason]) for reason in resolutions.VOID_REASONS)]
        fields.append(shell.Field("reason", "Void because", choices=choices))
    else:
        fields += [
            shell.Field(
                "evidence_url", "Where the result stands", required=False, max_length=500,
                help="A public page. It stands on the certificate for everyone; we never open it.",
            ),
            shell.Field("evidence_note", "What it says", kind="area", max_length=1_000, help="For everyone to read."),
        ]  # fmt: skip
    fields.append(
        shell.Field(
            "ended", "When the event really ended", kind="datetime-local", required=False, value=ended, max_length=30,
            help="Nairobi. Bets placed later get their stakes back before the pool is divided.",
        )
    )  # fmt: skip
    return fields


def _will(seen: preview.Preview, *, two: bool, hold: timedelta = timedelta(0)) -> list[str]:
    members, divided = seen.figures.members, seen.figures.division
    sentences = [seen.equation]
    if divided.refund:
        sentences.append("Every stake goes back to its wallet at once. This is final: a void is never undone.")
    else:
        winners, payments = members["winners"], members["payments"]
        sentences.append(
            f"{winners:,} {'member wins' if winners == 1 else 'members win'} KES {members['amount']:,.2f}:"
            f" KES {members['by_mpesa']:,.2f} leaves over M-Pesa in {payments:,} payment{'' if payments == 1 else 's'},"
            f" KES {members['to_wallet']:,.2f} goes to wallets."
        )
        if hold:
            minutes = int(hold.total_seconds() // 60)
            sentences.append(f"Payouts are held for {minutes} minutes; until then the resolution can be withdrawn.")
        sentences.append("What M-Pesa has paid cannot be taken back.")
    if two:
        sentences.append("The pool is large: nothing is paid until a second person approves just these figures.")
    return sentences


# --- the second person -----------------------------------------------------------------------------------------------


@shell.page("view_console", posts=True)
def proposal(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """What the first person proposed, beside the figures of now; the second approves just that."""
    found = _proposal(proposal_id)
    market = found.market
    if found.state != Proposal.State.OPEN or not shell.may(request, "approve_resolution"):
        context = {"title": f"Proposal {found.pk}", "proposal": found, "market": market}
        return shell.render(request, "console/proposal.html", context)
    now = _figures_now(found)
    own = found.proposed_by_id == request.user.pk
    question = shell.Question(
        title=f"Approve proposal {found.pk}",
        will=[
            _proposed_words(found),
            *(_will(now, two=False) if now is not None else []),
            *([] if not own else ["You proposed it: another person must approve it."]),
        ],
        button="Approve and carry out",
        back=reverse("admin:market", args=[market.pk]),
        typed="approve",
        danger=True,
        template="console/approve.html",
        more={
            "proposal": found,
            "market": market,
            "seen": now,
            "own": own,
            "moved": now is not None and now.figures.preview_hash != found.preview_hash,
        },
    )

    def act(answers: dict[str, str]) -> str:
        done = approvals.approve(
            proposal_id=found.pk,
            preview_hash=request.POST.get("hash", ""),
            by=shell.actor(request),
            at=timezone.now(),
            policy=settlement_tasks.policy(),
        )
        if isinstance(done, undo.Undoing):
            settlement_tasks.hint(settlement_tasks.undo_market, done.market_id)
            return f"Approved. Market {done.market_id} is being undone; nothing of it is sent any more."
        settlement_tasks.hint(settlement_tasks.settle_market, done.market_id, task_id=done.public_id)
        return f"Approved. Market {done.market_id} is decided, and its settlement runs now."

    return shell.ask(request, question, act, refusals=REFUSALS)


@shell.page("view_console", posts=True)
def reject(request: HttpRequest, proposal_id: int) -> HttpResponseBase:
    """Against a proposal: by whoever may approve, or by the one who made it."""
    found = _proposal(proposal_id)
    if not shell.may(request, "approve_resolution") and found.proposed_by_id != request.user.pk:
        context = {"title": "Not for your role", "needed": "Approve what another person proposed for a market"}
        return shell.render(request, "console/refused.html", context, status=403)
    question = shell.Question(
        title=f"Reject proposal {found.pk}",
        will=[_proposed_words(found), "It is not carried out. A market that it had closed is open again."],
        button="Reject it",
        back=reverse("admin:proposal", args=[found.pk]),
        fields=[shell.Field("reason", "Why", kind="area")],
    )

    def act(answers: dict[str, str]) -> str:
        approvals.reject(proposal_id=found.pk, reason=answers["reason"], by=shell.actor(request), at=timezone.now())
        return "The proposal is rejected. No money was moved."

    done = reverse("admin:market", args=[found.market_id])
    return shell.ask(request, question, act, refusals=REFUSALS, done=done)


def _proposed_words(found: Proposal) -> str:
    what = {
        Proposal.Kind.UNDO: f"undo the settlement of market {found.market_id}: {found.reason}",
    }.get(cast(Proposal.Kind, found.kind), "")
    if not what:
        what = f"void market {found.market_id} ({found.reason})" if found.rule == "VOID" else (
            f"resolve market {found.market_id}: {' and '.join(found.weights)} wins"
        )  # fmt: skip
    evidence = " ".join(filter(None, (found.evidence_note, found.evidence_url)))
    return f"{found.proposed_by} proposes to {what}." + (f" Evidence: {evidence}" if evidence else "")


def _figures_now(found: Proposal) -> preview.Preview | None:
    if found.kind != Proposal.Kind.RESOLVE:
        return None
    market = found.market
    market.effective_close_at = found.effective_close_at
    weights = {outcome: Decimal(weight) for outcome, weight in found.weights.items()}
    rule = cast(parimutuel.Rule, found.rule)
    return preview.preview(market, rule=rule, weights=weights, at=timezone.now(), policy=settlement_tasks.policy())


# --- taking back -----------------------------------------------------------------------------------------------------


@shell.page("resolve_market", posts=True)
def withdraw(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = _market(market_id)
    will = [
        "The resolution is taken back before its payouts leave: the market is closed again, and may be resolved anew.",
        "What was credited to wallets comes back by reversing transfers. Once payouts have left, undo it instead.",
    ]

    def act(reason: str) -> str:
        done = resolutions.withdraw(market_id=market.pk, reason=reason, by=shell.actor(request), at=timezone.now())
        if done.undoing:
            settlement_tasks.hint(settlement_tasks.undo_market, done.market_id)
        return f"The resolution of market {market.pk} is withdrawn. No payout of it leaves."

    return _take_back(request, market, f"Withdraw the resolution of market {market.pk}", will, "withdraw", act)


@shell.page("resolve_market", posts=True)
def undo_settlement(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = _market(market_id)
    will = [
        "From this moment on nothing more of the settlement is sent.",
        "Payouts that have not left are cancelled; what went to wallets comes back as far as the wallets hold it.",
        "What M-Pesa has carried stays with the members and becomes their debt to us: later you keep a part of their"
        " winnings, or bear the loss.",
        "The market is closed again, and may be resolved anew; then the rightful winners are paid at once.",
        "A large pool takes a second person's approval; sending stops meanwhile all the same.",
    ]

    def act(reason: str) -> str:
        done = undo.undo(
            market_id=market.pk,
            reason=reason,
            by=shell.actor(request),
            at=timezone.now(),
            policy=settlement_tasks.policy(),
        )
        if isinstance(done, proposals.Proposed):
            link = reverse("admin:proposal", args=[done.proposal_id])
            return f"Sending is stopped for this market. The undo waits for a second person at {link}"
        settlement_tasks.hint(settlement_tasks.undo_market, done.market_id)
        return f"Market {market.pk} is being undone. Nothing more of it is sent."

    return _take_back(request, market, f"Undo the settlement of market {market.pk}", will, "undo", act)


def _take_back(
    request: HttpRequest, market: Market, title: str, will: list[str], typed: str, act: Callable[[str], str]
) -> HttpResponseBase:
    question = shell.Question(
        title=title,
        will=will,
        button=title,
        back=reverse("admin:market", args=[market.pk]),
        facts=[("Market", market.question), ("State", market.status.lower())],
        fields=[shell.Field("reason", "Why", kind="area", help="It stands in the audit trail.")],
        typed=typed,
        danger=True,
    )
    return shell.ask(request, question, lambda answers: act(answers["reason"]), refusals=REFUSALS)


@shell.page("resolve_market", posts=True)
def scratch(request: HttpRequest, market_id: int) -> HttpResponseBase:
    market = _market(market_id)
    running = market.running_outcomes
    question = shell.Question(
        title=f"Scratch an outcome of market {market.pk}",
        will=[
            "The outcome takes no bets any more, and its stakes go back to their wallets at once.",
            "The market goes on with the others. It cannot be put back.",
        ],
        button="Scratch it",
        back=reverse("admin:market", args=[market.pk]),
        fields=[
            shell.Field("outcome", "Outcome", choices=[("", "choose"), *((name, name) for name in running)]),
            shell.Field("reason", "Why", kind="area"),
        ],
        typed="scratch",
        danger=True,
    )

    def act(answers: dict[str, str]) -> str:
        done = resolutions.scratch(
            market_id=market.pk,
            outcome=answers["outcome"],
            reason=answers["reason"],
            by=shell.actor(request),
            at=timezone.now(),
            policy=settlement_tasks.policy(),
        )
        settlement_tasks.hint(settlement_tasks.settle_market, done.market_id, task_id=done.public_id)
        return f"{answers['outcome']} is scratched; its stakes are going back."

    return shell.ask(request, question, act, refusals=REFUSALS)


# --- finding ---------------------------------------------------------------------------------------------------------


def _market(market_id: int) -> Market:
    found = Market.objects.filter(pk=market_id).first() if market_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no market {market_id}.")
    return found


def _undecided(market_id: int) -> Market:
    found = _market(market_id)
    if found.status not in (Market.Status.OPEN, Market.Status.CLOSED):
        raise Http404(f"Market {market_id} is {found.status.lower()}: its outcome has been declared.")
    return found


def _proposal(proposal_id: int) -> Proposal:
    proposals_ = Proposal.objects.select_related("market", "proposed_by", "decided_by")
    found = proposals_.filter(pk=proposal_id).first() if proposal_id <= paging.LARGEST_ID else None
    if found is None:
        raise Http404(f"There is no proposal {proposal_id}.")
    return found


def _moment(typed: str) -> tuple[datetime | None, str]:
    """A moment as a browser's field has it, in Nairobi."""
    if not typed.strip():
        return None, ""
    try:
        found = parse_datetime(typed.strip())
    except ValueError:
        found = None
    if found is None:
        return None, "That is no date and time. Type it as 2026-02-16T21:45."
    return (found if found.tzinfo else found.replace(tzinfo=NAIROBI)), ""


def _name(one: preview.Preview) -> str:
    return next(iter(one.weights)) if one.weights else "Void"


def _value(one: preview.Preview) -> str:
    return f"win:{next(iter(one.weights))}" if one.weights else "void:"


urls = [
    path("markets/<int:market_id>/resolve/", choose, name="market_choose"),
    path("markets/<int:market_id>/resolve/decide/", resolve, name="market_resolve"),
    path("markets/<int:market_id>/withdraw/", withdraw, name="market_withdraw"),
    path("markets/<int:market_id>/undo/", undo_settlement, name="market_undo"),
    path("markets/<int:market_id>/scratch/", scratch, name="market_scratch"),
    path("proposals/<int:proposal_id>/", proposal, name="proposal"),
    path("proposals/<int:proposal_id>/reject/", reject, name="proposal_reject"),
]
