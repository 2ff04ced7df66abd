"""What the console's tests look at: a small house on a busy day, with something of everything in it."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.test import Client

from markets.models import Market
from payments import disputes
from payments.models import LedgerAccount, Recovery, Transaction
from payments.monitoring import overview
from payments.mpesa import gateway_errors
from payments.payouts import breakers, float_balance
from payments.settlement import proposals, undo
from testing import builders, payout_steps
from users import audit, roles
from users.models import CustomUser

ACTOR = audit.Actor(user_id=None, source="test")
TWO_PEOPLE = builders.policy(approval_above=Decimal(500))
TIMED_OUT = gateway_errors.OutcomeUnknown(message="no whole answer: ReadTimeout")
NOT_REGISTERED = 2040


def staff(role: str | None = None, **fields: Any) -> CustomUser:
    """A member of staff with a role, or a superuser."""
    from django.contrib.auth.models import Group, Permission
    from django.contrib.contenttypes.models import ContentType

    person = builders.operator(is_superuser=role is None, **fields)
    if role is not None:
        roles.install(Group, Permission, ContentType)
        person.groups.add(Group.objects.get(name=role))
    return person


def of(user: CustomUser) -> Client:
    """A browser in which this person is logged in."""
    client = Client()
    client.force_login(user)
    return client


def text(answer: Any) -> str:
    """A page as it is read."""
    return answer.content.decode().replace("&#x27;", "'").replace("&amp;", "&")


def paid(payout: Transaction, at: datetime, receipt: str, after: float = 4) -> None:
    """Sent, acknowledged, and paid by a result that comes `after` seconds."""
    attempt = payout_steps.sent(payout, at=at)
    body = payout_steps.result_body(attempt, receipt=receipt)
    payout_steps.hear(attempt, body, at + timedelta(seconds=after))


def not_registered(payout: Transaction, at: datetime) -> None:
    """Failed for good: M-Pesa's result and its records both say so."""
    attempt = payout_steps.sent(payout, at=at)
    payout_steps.hear(attempt, payout_steps.result_body(attempt, NOT_REGISTERED), at + timedelta(seconds=3))
    payout_steps.ask_and_hear(attempt, payout_steps.status_body(attempt, "Failed"), at + timedelta(seconds=5))


def refused(payout: Transaction, at: datetime) -> None:
    payout_steps.sent(payout, gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB"), at=at)


def in_doubt(payout: Transaction, at: datetime) -> None:
    payout_steps.sent(payout, TIMED_OUT, at=at)


def held_in_doubt(amount: int, at: datetime) -> Transaction:
    """A payout held after more than a day in doubt."""
    long_ago = at - timedelta(days=2)
    payout = builders.payout(amount, at=long_ago)
    attempt = payout_steps.sent(payout, TIMED_OUT, at=long_ago)
    payout_steps.question(attempt, at - timedelta(hours=1))
    payout.refresh_from_db()
    assert payout.status == Transaction.Status.HELD
    return payout


NAMES = (
    "Wanjiku Kamau", "Otieno Ouma", "Amina Yusuf", "Kiprop Cheruiyot", "Njeri Mwangi", "Baraka Mutua", "Zawadi Ali",
    "Mumbi Njoroge", "Odhiambo Owino", "Halima Abdi", "Cherono Koech", "Mutiso Musyoka",
)  # fmt: skip


def to_decide(at: datetime) -> dict[str, Any]:
    """An open market, a proposal that waits for a second person, and a dispute that waits for an answer."""
    running = builders.market(["A", "B", "C"], question="Which of three?")
    builders.bet(running, builders.member(balance=100), "A", 100, at=at)
    large = builders.market(["In June", "Later this year", "Never"], question="When will the tower be finished?")
    stakes = (("In June", 900), ("Later this year", 650), ("In June", 250), ("Never", 120), ("Later this year", 80))
    for name, (outcome, amount) in zip(NAMES, stakes, strict=False):
        builders.bet(large, builders.member(balance=amount, full_name=name), outcome, amount, at=at)
    proposed = builders.resolve(large, "In June", by=staff(full_name="Grace First"), at=at, policy=TWO_PEOPLE)
    payout = builders.payout(333, at=at)
    dispute = disputes.open_about_transaction(
        user_id=payout.user_id,
        transaction_id=payout.public_id,
        text="It has not come to my phone, please look.",
        by=audit.Actor(user_id=payout.user_id, source="127.0.0.1"),
        at=at,
        policy=payout_steps.POLICY,
    )
    assert isinstance(proposed, proposals.Proposed)
    debt = owing(at, [("Faith Naliaka", 285), ("Brian Kiptoo", 140)])[0]
    return {
        "running": running, "large": large, "proposal": proposed.proposal_id, "dispute": dispute, "debt": debt,
    }  # fmt: skip


def owing(at: datetime, owed: list[tuple[str, int]]) -> list[Recovery]:
    """What members owe back from a market whose settlement M-Pesa had paid when it was undone."""
    made = builders.market(question="Did Gor Mahia win on Saturday?", fee_pct=0)
    for name, amount in owed:
        builders.bet(made, builders.member(balance=amount, full_name=name), "Yes", amount, at=at)
    builders.resolve(made, "Yes", at=at, by=staff(full_name="Grace Hasty"))
    builders.settle(made, at=at)
    for payout in Transaction.objects.filter(settlement__market=made, destination="mpesa"):
        paid(payout, at, f"SKG7OWE{payout.pk:03}", after=0)
    undo.undo(market_id=made.pk, reason="The referee's report.", by=ACTOR, at=at, policy=payout_steps.POLICY)
    undo.carry_out(market_id=made.pk, at=at, policy=payout_steps.POLICY, keep_going=lambda: True)
    return list(Recovery.objects.filter(settlement__market=made).order_by("pk"))


def busy_day(at: datetime) -> dict[str, Any]:
    """Markets open, due and settled; payouts paid, failed, held, pending and in doubt; figures and checks taken."""
    people = [builders.member(balance=20_000, full_name=name) for name in NAMES]
    football = builders.market(
        ["Gor Mahia", "Draw", "AFC Leopards"],
        question="Who wins the Mashemeji derby on Sunday?",
        category="Football",
        description="Full time, without extra time. The result on the league's site counts.",
    )
    for place in range(40):
        outcome = ["Gor Mahia", "AFC Leopards", "Gor Mahia", "Draw", "AFC Leopards"][place * 7 // 3 % 5]
        when = at - timedelta(hours=44 - place)
        builders.bet(football, people[place * 5 % 12], outcome, 50 + 35 * (place * 3 % 11), at=when)
    Market.objects.filter(pk=football.pk).update(end_date=at + timedelta(days=3))
    due = builders.market(question="Will the long rains begin before 25 March?", category="Weather")
    builders.bet(due, people[0], "Yes", 300, at=at - timedelta(days=2))
    builders.bet(due, people[1], "No", 450, at=at - timedelta(days=2))
    Market.objects.filter(pk=due.pk).update(end_date=at - timedelta(hours=5))
    settled = _settled(people, at)
    payouts = list(Transaction.objects.filter(settlement__market=settled, destination="mpesa").order_by("pk"))
    paid(payouts[0], at - timedelta(minutes=55), "SKG7ABC111", 4)
    paid(payouts[1], at - timedelta(minutes=54), "SKG7ABC222", 7)
    paid(payouts[2], at - timedelta(minutes=53), "SKG7ABC333", 21)
    not_registered(payouts[3], at - timedelta(minutes=50))
    in_doubt(payouts[4], at - timedelta(minutes=12))
    held = held_in_doubt(60_000, at)
    refused(builders.payout(410, at=at - timedelta(hours=3)), at - timedelta(hours=3))
    with transaction.atomic():
        breakers.trip(
            breakers.Cause.NO_FLOAT,
            reason="M-Pesa's code 1: The balance is insufficient for the transaction.",
            at=at - timedelta(minutes=4),
            policy=payout_steps.POLICY,
        )
    float_balance.note(Decimal(84_500), at=at - timedelta(minutes=2))
    overview.measure(at=at)
    overview.check_books(at=at, keep_going=lambda: True)
    overview.beat(worker="celery@kasoko", at=at)
    return to_decide(at) | {
        "football": football,
        "due": due,
        "settled": settled,
        "paid": payouts[0],
        "failed": payouts[3],
        "in_doubt": payouts[4],
        "pending": payouts[5],
        "held": held,
        "member": people[3],
        "account": LedgerAccount.objects.get(code="payable"),
    }


def _settled(people: list[CustomUser], at: datetime) -> Market:
    made = builders.market(question="Will the shilling close above 129 to the dollar?", category="Economy")
    when = at - timedelta(hours=1)
    for place, person in enumerate(people[:6]):
        builders.bet(made, person, "Yes", 200 + 40 * place, at=when - timedelta(hours=place))
    builders.bet(made, builders.member(balance=5_000, full_name="Achieng Atieno"), "No", 2_400, at=when)
    builders.resolve(made, "Yes", at=when, by=staff(full_name="Grace Operator"))
    builders.settle(made, at=when)
    Market.objects.filter(pk=made.pk).update(end_date=when - timedelta(minutes=5))
    return made
