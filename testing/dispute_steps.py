"""Steps of a dispute by members and operators."""

from typing import Any

from markets.models import Bet
from payments import disputes
from payments.models import Dispute, Transaction
from testing import builders
from testing.builders import AT, member, settled_market
from testing.payout_steps import failed
from users.audit import Actor
from users.models import CustomUser, Notice

TEXT = "The match ended 2:1, so Yes has won."
POLICY = builders.policy()


def lost_bet(user: CustomUser, at: Any = AT, outcomes: tuple[str, ...] = ("Yes", "No")) -> Bet:
    """Create a lost bet of 200 shillings on a settled market."""
    settled = settled_market([(member(), "Yes", 100), (user, "No", 200)], outcomes=outcomes, at=at)
    return Bet.objects.select_related("market").get(market=settled, user=user)


def failed_payout(user: CustomUser, at: Any = AT) -> Transaction:
    """Create a payout of 285 shillings to this member that M-Pesa refused."""
    payout = builders.payout(285, user=user, at=at)
    failed(payout, at)
    return payout


def actor_of(user: CustomUser) -> Actor:
    """Return the actor of a person at a fixed address."""
    return Actor(user.pk, "192.0.2.7")


def dispute(of: Bet | Transaction, at: Any = AT, text: str = TEXT) -> Dispute:
    """Open a dispute of a bet or a transaction, as the member to whom it belongs."""
    subject = {"user_id": of.user_id, "text": text, "by": Actor(of.user_id, "192.0.2.8"), "at": at, "policy": POLICY}
    if isinstance(of, Bet):
        return disputes.open_about_bet(market_id=of.market_id, bet_id=of.public_id, **subject)
    return disputes.open_about_transaction(transaction_id=of.public_id, **subject)


def decide(of: Dispute, step: str, by: CustomUser, at: Any = AT, text: str = "Because.", **more: Any) -> Any:
    """Take an operator's step on a dispute: answer, reject or uphold."""
    return getattr(disputes, step)(dispute_id=of.public_id, text=text, by=actor_of(by), at=at, **more)


def reply(of: Dispute, at: Any = AT) -> Dispute:
    """Reply to an operator's answer, as the member."""
    by = Actor(of.user_id, "192.0.2.8")
    return disputes.reply(user_id=of.user_id, dispute_id=of.public_id, text=TEXT, by=by, at=at, policy=POLICY)


def notices_of(user: CustomUser) -> list[str]:
    """Return the texts of the notices to a member, oldest first."""
    return list(Notice.objects.filter(user=user).order_by("pk").values_list("text", flat=True))
