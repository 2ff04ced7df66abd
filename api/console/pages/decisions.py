"""Pages for withdrawing a resolution, undoing a settlement and scratching an outcome."""

from collections.abc import Callable, Sequence

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse

from api.console import page
from api.console.pages import proposals, resolve
from api.console.templatetags.console import counted, kes
from markets.models import Market
from payments import wiring
from payments.settlement import resolutions, status, undo
from users.proposals import Proposed

# --- withdraw, undo, scratch -----------------------------------------------------------------------------------------


@page.page("market.withdraw", posts=True)
def withdraw(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Withdraw a resolution before its payouts are sent, or a scratch whose refunds found the books wrong."""
    market = resolve.market_of(market_id)
    scratch = status.failed_scratch(market.pk) if status.deciding_settlement(market.pk) is None else None
    title = f"Withdraw the resolution of market {market.pk}"
    effects = [
        "None of the resolution's payouts will be sent. The market is closed and can be resolved again.",
        "Money in wallets is taken back, up to their balance. The rest becomes the member's debt.",
        "If the hold has ended, undo the settlement instead.",
    ]
    if scratch is not None:
        title = f"Withdraw the scratch of {scratch.scratched}"
        effects = [
            f"{scratch.scratched} may win again. Its bets count again, and their stakes stay in the pool.",
            "Stakes that went back to wallets already are taken back, up to the balance. The rest becomes a debt.",
            "An open market takes bets on it again. A closed market cannot be scratched again: resolve or void it.",
        ]

    def act(reason: str) -> str:
        done = resolutions.withdraw(market_id=market.pk, reason=reason, by=page.actor(request), at=wiring.now())
        wiring.after_decision(done)
        if done.scratched:
            return f"The scratch of {done.scratched} is withdrawn. Its stakes are in the pool again."
        return f"The resolution of market {market.pk} is withdrawn. None of its payouts will be sent."

    return _take_back(request, market, title, effects, "withdraw", act)


@page.page("market.undo", posts=True)
def undo_settlement(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Undo a settlement, or propose the undo if the pool needs two people."""
    market = resolve.market_of(market_id)
    effects = [
        "From now on no payout of the settlement is sent.",
        "Payouts that are not sent yet are cancelled. Money is taken back from wallets, up to their balance. The rest"
        " becomes the member's debt.",
        "Money that M-Pesa has paid stays with the members and becomes their debt to us. Under Member debts you set"
        " each debt off or write it off.",
        "The market is closed. After you resolve it again, the right winners are paid at once.",
        "A large pool needs a second approval. Sending stops before that approval.",
    ]

    def act(reason: str) -> str:
        done = undo.undo(
            market_id=market.pk,
            reason=reason,
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, Proposed):
            link = reverse("admin:proposal", args=[done.proposal_id])
            return f"Sending is stopped for this market. Another person must approve the undo at this address: {link}"
        wiring.after_decision(done)
        return f"The settlement of market {market.pk} is being undone. No more of its payouts will be sent."

    settlement = status.settlement_status(market.pk)
    paid = settlement.by_state["completed"] if settlement is not None else (0, 0)
    sent = settlement.by_state["processing"][1] + settlement.by_state["in_doubt"][1] if settlement is not None else 0
    facts = [
        ("Paid so far", f"{counted(paid[1], 'payout')}, {kes(paid[0])}"),
        ("With M-Pesa now", counted(sent, "payout")),
    ]
    title = f"Undo the settlement of market {market.pk}"
    return _take_back(request, market, title, effects, "undo", act, facts=facts)


def _take_back(
    request: HttpRequest,
    market: Market,
    title: str,
    effects: list[str],
    text_to_type: str,
    act: Callable[[str], str],
    *,
    facts: Sequence[tuple[str, str]] = (),
) -> HttpResponseBase:
    question = page.Question(
        title=title,
        effects=effects,
        button=title,
        back=reverse("admin:market", args=[market.pk]),
        facts=[("Market", market.question), ("State", market.status.capitalize()), *facts],
        fields=[page.Field("reason", "Reason", kind="area", help="Shown in the audit trail.")],
        text_to_type=text_to_type,
        danger=True,
    )
    return page.ask(request, question, lambda answers: act(answers["reason"]))


@page.page("market.scratch", posts=True)
def scratch(request: HttpRequest, market_id: int) -> HttpResponseBase:
    """Scratch an outcome and refund its stakes."""
    market = resolve.market_of(market_id)
    running = market.running_outcomes
    question = page.Question(
        title=f"Scratch an outcome of market {market.pk}",
        effects=[
            "The outcome takes no more bets. Its stakes are refunded to the members' wallets at once.",
            "The market continues with the other outcomes. You cannot take this back.",
        ],
        button="Scratch it",
        back=reverse("admin:market", args=[market.pk]),
        fields=[
            page.Field("outcome", "Outcome", choices=[("", "choose"), *((name, name) for name in running)]),
            page.Field("reason", "Reason", kind="area"),
        ],
        text_to_type="scratch",
        danger=True,
    )

    def act(answers: dict[str, str]) -> str:
        done = resolutions.scratch(
            market_id=market.pk,
            outcome=answers["outcome"],
            reason=answers["reason"],
            by=page.actor(request),
            at=wiring.now(),
            policy=wiring.policy(),
        )
        if isinstance(done, Proposed):
            return proposals.sent_to_another_person(done)
        wiring.after_decision(done)
        return f"{answers['outcome']} is scratched. Its stakes are being refunded."

    return page.ask(request, question, act)


urls = [
    path("markets/<int:market_id>/withdraw/", withdraw, name="market_withdraw"),
    path("markets/<int:market_id>/undo/", undo_settlement, name="market_undo"),
    path("markets/<int:market_id>/scratch/", scratch, name="market_scratch"),
]
