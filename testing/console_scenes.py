"""Test data and helpers for the console: staff, logged-in clients, forms, and payouts in every state."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.test import Client
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from markets.models import Market
from payments import disputes
from payments.models import LedgerAccount, Recovery, Transaction
from payments.monitoring import overview
from payments.mpesa import gateway_errors
from payments.payouts import breakers, float_balance
from payments.settlement import approvals, resolutions, undo
from testing import builders, database, payout_steps
from users import audit, proposals, roles, second_factor
from users.models import CustomUser

ACTOR = audit.Actor(user_id=None, source="test")
POLICY_WITH_APPROVAL = builders.policy(approval_above=Decimal(500))
TIMED_OUT = gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
NOT_REGISTERED = 2040


def staff(role: str | None = None, **fields: Any) -> CustomUser:
    """Create a member of staff with this role. Without a role, create a superuser."""
    from django.contrib.auth.models import Group, Permission
    from django.contrib.contenttypes.models import ContentType

    person = builders.operator(is_superuser=role is None, **fields)
    if role is not None:
        with database.as_owner():
            roles.install(Group, Permission, ContentType)
        person.groups.add(Group.objects.get(name=role))
    return person


def client_of(user: CustomUser) -> Client:
    """Return a test client in which this person is logged in."""
    client = Client()
    client.force_login(user)
    return client


def page_text(response: Any) -> str:
    """Return a page's HTML with apostrophes and ampersands unescaped."""
    return response.content.decode().replace("&#x27;", "'").replace("&amp;", "&")


def submit(client: Client, path: str, **form: str) -> str:
    """Send a form with the PIN. Return the HTML of the page that follows."""
    return page_text(client.post(path, {"proof": builders.PIN, **form}, follow=True))


def hidden_value(page: str, name: str) -> str:
    """Return the value of a form's hidden field."""
    return page.partition(f'name="{name}" value="')[2].partition('"')[0]


def code_of(user: CustomUser, steps: int = 0) -> str:
    """Return the code that the user's app shows now, or after `steps` periods of 30 seconds."""
    device = TOTPDevice.objects.get(user=user)
    return f"{totp(device.bin_key, t0=-30 * steps):06d}"


def enrol(user: CustomUser, at: datetime) -> list[str]:
    """Set up an authenticator app for the user, and return the recovery codes."""
    second_factor.begin(user, at=at)
    codes = second_factor.confirm(user=user, code=code_of(user), by=ACTOR, at=at)
    # The set-up has used the current code. Let the test use it once more.
    TOTPDevice.objects.filter(user=user).update(last_t=-1)
    return codes


def log_in(client: Client, user: CustomUser, code: str = "", pin: str = builders.PIN) -> str:
    """Send the login form. Return the HTML of the page that follows."""
    form = {"username": user.phone_number, "password": pin, "code": code, "next": "/admin/"}
    return page_text(client.post("/admin/login/", form, follow=True))


def pay(payout: Transaction, at: datetime, receipt: str, after: float = 4) -> None:
    """Send a payout. Deliver M-Pesa's result after `after` seconds: the payout is paid."""
    attempt = payout_steps.sent(payout, at=at)
    body = payout_steps.result_body(attempt, receipt=receipt)
    payout_steps.deliver_result(attempt, body, at + timedelta(seconds=after))


def send_to_unregistered_phone(payout: Transaction, at: datetime) -> None:
    """Send a payout to a phone that is not registered. M-Pesa's result and a status query both say that it failed."""
    attempt = payout_steps.sent(payout, at=at)
    payout_steps.deliver_result(attempt, payout_steps.result_body(attempt, NOT_REGISTERED), at + timedelta(seconds=3))
    payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), at + timedelta(seconds=5))


def send_and_refuse(payout: Transaction, at: datetime) -> None:
    """Send a payout. M-Pesa rejects the request at once."""
    payout_steps.sent(payout, gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB"), at=at)


def send_and_time_out(payout: Transaction, at: datetime) -> None:
    """Send a payout. Its request times out, so its result is not known."""
    payout_steps.sent(payout, TIMED_OUT, at=at)


def held_in_doubt(amount: int, at: datetime) -> Transaction:
    """Create a payout that was sent two days ago, is still in doubt, and is therefore held."""
    long_ago = at - timedelta(days=2)
    payout = builders.payout(amount, at=long_ago)
    attempt = payout_steps.sent(payout, TIMED_OUT, at=long_ago)
    payout_steps.question(attempt, at - timedelta(hours=1))
    payout.refresh_from_db()
    assert payout.status == Transaction.Status.HELD
    return payout


def failed_payout(amount: int = 285) -> Transaction:
    """Create a payout that has failed because M-Pesa rejected its request."""
    payout = builders.payout(amount)
    payout_steps.failed(payout)
    return payout


def market_of_two(no_stake: int = 200) -> Market:
    """Create a market with KES 100 on Yes and `no_stake` on No."""
    market = builders.market()
    builders.orm_bet(market, builders.member(), "Yes", 100)
    builders.orm_bet(market, builders.member(), "No", no_stake)
    return market


def step_two_form(client: Client, market: Market, decision: str = "win:Yes", **more: str) -> dict[str, str]:
    """Open step two of a resolution. Return the form with all its fields filled in."""
    page = page_text(client.get(f"/admin/markets/{market.pk}/resolve/decide/", {"decision": decision, **more}))
    assert "Step 2 of 3" in page
    typed = decision.partition(":")[2] or "void"
    form = {"decision": decision, "hash": hidden_value(page, "hash"), "typed": typed, "evidence_note": "Kenya Met."}
    return form | more


NAMES = (
    "Wanjiku Kamau", "Otieno Ouma", "Amina Yusuf", "Kiprop Cheruiyot", "Njeri Mwangi", "Baraka Mutua", "Zawadi Ali",
    "Mumbi Njoroge", "Odhiambo Owino", "Halima Abdi", "Cherono Koech", "Mutiso Musyoka",
)  # fmt: skip


def to_decide(at: datetime) -> dict[str, Any]:
    """Create an open market, a proposal, a dispute to answer and two member debts. Return some of them by name."""
    running = builders.market(["A", "B", "C"], question="Which of three?")
    builders.bet(running, builders.member(balance=100), "A", 100, at=at)
    large = builders.market(["In June", "Later this year", "Never"], question="When will the tower be finished?")
    stakes = (("In June", 900), ("Later this year", 650), ("In June", 250), ("Never", 120), ("Later this year", 80))
    for name, (outcome, amount) in zip(NAMES, stakes, strict=False):
        builders.bet(large, builders.member(balance=amount, full_name=name), outcome, amount, at=at)
    proposed = builders.resolve(large, "In June", by=staff(full_name="Grace First"), at=at, policy=POLICY_WITH_APPROVAL)
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
    """Create a debt for each name and amount: undo a settlement after M-Pesa has paid the members."""
    market = builders.market(question="Did Gor Mahia win on Saturday?", fee_pct=0)
    for name, amount in owed:
        builders.bet(market, builders.member(balance=amount, full_name=name), "Yes", amount, at=at)
    builders.resolve(market, "Yes", at=at, by=staff(full_name="Grace Hasty"))
    builders.settle(market, at=at)
    for payout in Transaction.objects.filter(settlement__market=market, destination="mpesa"):
        pay(payout, at, f"SKG7OWE{payout.pk:03}", after=0)
    undo.undo(market_id=market.pk, reason="The referee's report.", by=ACTOR, at=at, policy=payout_steps.POLICY)
    undo.carry_out(market_id=market.pk, at=at, policy=payout_steps.POLICY, keep_going=lambda: True)
    return list(Recovery.objects.filter(settlement__market=market).order_by("pk"))


def taken_back(at: datetime) -> dict[str, Market]:
    """Create markets with a scratched outcome, an undone settlement, a proposed undo and a void, by name."""
    first, second = staff(full_name="Grace First"), staff(full_name="Peter Second")
    scratched = builders.market(["Kipchoge", "Bekele", "Kamworor"], question="Who wins the Nairobi marathon?")
    for outcome, amount in (("Kipchoge", 300), ("Bekele", 100), ("Kamworor", 600), ("Kipchoge", 60)):
        builders.bet(scratched, builders.member(balance=amount), outcome, amount, at=at - timedelta(hours=amount // 60))
    resolutions.scratch(
        market_id=scratched.pk, outcome="Kamworor", reason="He withdrew.", by=builders.actor(first), at=at,
        policy=payout_steps.POLICY,
    )  # fmt: skip
    builders.settle(scratched, at=at)
    markets = {"scratched": scratched}
    for name, question in (("undone", "Did AFC Leopards win on Friday?"), ("stopped", "Did it rain on Friday?")):
        market = builders.market(question=question, fee_pct=0)
        for outcome, amount in (("Yes", 285), ("Yes", 140), ("No", 900)):
            builders.bet(market, builders.member(balance=amount), outcome, amount, at=at)
        builders.resolve(market, "Yes", at=at, by=first)
        builders.settle(market, at=at)
        payout = Transaction.objects.filter(settlement__market=market, destination="mpesa").order_by("pk")[0]
        pay(payout, at, f"SKG7TAK{market.pk:03}", after=0)
        proposed = undo.undo(
            market_id=market.pk, reason="The referee's report.", by=builders.actor(first), at=at,
            policy=POLICY_WITH_APPROVAL,
        )  # fmt: skip
        assert isinstance(proposed, proposals.Proposed)
        if name == "undone":
            proposals.approve(
                proposal_id=proposed.proposal_id, preview_hash=proposed.preview_hash, holds=lambda _: True,
                by=builders.actor(second), at=at, acts=approvals.procedures(POLICY_WITH_APPROVAL),
            )  # fmt: skip
            undo.carry_out(market_id=market.pk, at=at, policy=payout_steps.POLICY, keep_going=lambda: True)
        markets[name] = market
    void = market_of_two()
    builders.resolve(void, rule="VOID", at=at, by=first)
    builders.settle(void, at=at)
    return markets | {"void": void}


def busy_day(at: datetime) -> dict[str, Any]:
    """Create rows in every state for the pages, and figures for the home page. Return some rows by name.

    The rows: an open market, a market that has ended and awaits a decision, a settled market, and payouts.
    """
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
    pay(payouts[0], at - timedelta(minutes=55), "SKG7ABC111", 4)
    pay(payouts[1], at - timedelta(minutes=54), "SKG7ABC222", 7)
    pay(payouts[2], at - timedelta(minutes=53), "SKG7ABC333", 21)
    send_to_unregistered_phone(payouts[3], at - timedelta(minutes=50))
    send_and_time_out(payouts[4], at - timedelta(minutes=12))
    held = held_in_doubt(60_000, at)
    send_and_refuse(builders.payout(410, at=at - timedelta(hours=3)), at - timedelta(hours=3))
    # A payment closes a breaker, so the breaker opens after the last payment.
    decisions = to_decide(at) | taken_back(at)
    with transaction.atomic():
        breakers.trip(
            breakers.Cause.NO_FLOAT,
            reason="M-Pesa's code 1: The balance is insufficient for the transaction.",
            at=at,
            policy=payout_steps.POLICY,
        )
    float_balance.note(Decimal(84_500), at=at - timedelta(minutes=2))
    overview.measure(at=at)
    overview.check_books(at=at, keep_going=lambda: True)
    overview.beat(worker="celery@kasoko", at=at)
    return decisions | {
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
    """Create a settled market with six winners."""
    when = at - timedelta(hours=1)
    question = "Will the shilling close above 129 to the dollar?"
    market = builders.market(question=question, category="Economy", end_date=when + timedelta(seconds=1))
    for place, person in enumerate(people[:6]):
        builders.bet(market, person, "Yes", 200 + 40 * place, at=when - timedelta(hours=place))
    builders.bet(market, builders.member(balance=5_000, full_name="Achieng Atieno"), "No", 2_400, at=when)
    builders.resolve(market, "Yes", at=when, by=staff(full_name="Grace Operator"))
    builders.settle(market, at=when)
    return market
