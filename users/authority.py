"""The one table of acts of staff: who may do each act, with which proof, and with how many people.

REST calls, pages of the console and commands name their act and ask this table. None of them has a rule of its own.
docs/authority.md is generated from the table.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

People = Literal["one", "two by amount", "two"]


@dataclass(frozen=True)
class Act:
    """One act of staff.

    `name`: the name that the audit trail and API keys use, such as market.resolve.
    `permission`: codename in users.roles that a person needs.
    `words`: completes "This person may …".
    `money`: True if the act needs a recent code of the authenticator app, or in the console a recent PIN.
    `people`: "one"; "two" if a second person must always approve; "two by amount" if this depends on the act's amount
    and on the actor's acts of the last 24 hours (users.figures has the thresholds).
    `threshold`: the act whose threshold and sums count, if this act has none of its own.
    `approval`: codename that the second person needs.
    `reason`: True if the person must give a reason.
    `own`: the affair that must not be the person's own, such as "payout". Empty if the act concerns nobody's affairs.
    `machine`: True if an API key may hold the act. It then proposes the act, and a person approves it.
    """

    name: str
    permission: str
    words: str
    money: bool = False
    people: People = "one"
    threshold: str = ""
    approval: str = ""
    reason: bool = False
    own: str = ""
    machine: bool = False


def _account_acts(kind: str, permission: str, whom: str, *, approval: str) -> list[Act]:
    """Return the acts that staff and members have in common. What gives access to an account takes two people."""
    at_once = {"suspend": f"suspend {whom}", "unlock": f"end the lock of {whom} after wrong PINs"}
    by_two = {
        "reinstate": f"reinstate {whom}",
        "reset_pin": f"set a new PIN for {whom}",
        "phone": f"change the phone of {whom}",
    }
    return [
        *(Act(f"{kind}.{verb}", permission, words, money=True, reason=True, own="account")
          for verb, words in at_once.items()),
        *(Act(f"{kind}.{verb}", permission, words, money=True, people="two", approval=approval, reason=True,
              own="account") for verb, words in by_two.items()),
    ]  # fmt: skip


_TABLE = (
    # Reading.
    Act("console.view", "view_console", "see the home page, markets, payouts and payouts in doubt", machine=True),
    Act("ledger.view", "view_ledger", "see accounts, transfers, the trial balance and member debts", machine=True),
    Act("ledger.export", "export_books", "download accounts and balances", machine=True),
    Act("audit.view", "view_audit", "see and verify the audit trail"),
    Act("audit.export", "view_audit", "download the audit trail"),
    Act("members.view", "view_members", "see members' wallets, bets and statements, with phones masked"),
    Act("member.phone_opened", "open_phone", "see a member's whole phone number", reason=True),
    Act("member.note", "note_member", "write notes about a member"),
    Act("disputes.view", "answer_dispute", "see members' disputes"),
    # API keys.
    Act("api_key.make", "make_api_keys", "make an API key for a machine", money=True),
    Act("api_key.revoke", "make_api_keys", "revoke an API key", reason=True),
    # Markets.
    Act("market.preview", "view_console", "preview the payouts of a decision on a market", machine=True),
    Act("market.resolve", "resolve_market", "resolve a market", money=True, people="two by amount",
        approval="approve_resolution", own="stake", machine=True),
    Act("market.void", "resolve_market", "void a market and return its stakes", money=True, people="two by amount",
        approval="approve_resolution", reason=True, own="stake", machine=True),
    Act("market.scratch", "resolve_market", "scratch an outcome and return its stakes", money=True,
        people="two by amount", approval="approve_resolution", reason=True, own="stake"),
    Act("market.undo", "resolve_market", "undo a settlement", money=True, people="two by amount",
        approval="approve_resolution", reason=True, own="stake"),
    Act("market.withdraw", "resolve_market", "withdraw a resolution before its payouts leave", money=True, reason=True,
        own="stake"),
    Act("market.create", "run_market", "create a market"),
    Act("market.change", "run_market", "change a market's terms", money=True, people="two",
        approval="approve_resolution", reason=True, own="stake"),
    Act("market.suspend_betting", "run_market", "suspend betting on a market", reason=True, own="stake"),
    Act("market.resume_betting", "run_market", "resume betting on a market", money=True, reason=True, own="stake"),
    Act("market.close", "run_market", "close a market now, for good", money=True, reason=True, own="stake"),
    Act("market.suspend_sending", "switch_sending", "suspend the sending of one market's payouts", money=True,
        reason=True, own="stake"),
    Act("market.resume_sending", "switch_sending", "resume the sending of one market's payouts", money=True,
        people="two by amount", threshold="sending.on", approval="switch_sending", reason=True, own="stake"),
    Act("proposal.view", "view_console", "see proposals that wait for a second person"),
    Act("proposal.approve", "view_console", "approve another person's proposal, with the permission that its act "
        "asks of the second person", money=True, own="stake"),
    Act("proposal.reject", "view_console", "withdraw one's own proposal, or reject another person's if one may "
        "approve it", money=True, reason=True, own="stake"),
    # Law, limits and thresholds.
    Act("figures.view", "view_console", "see the figures of law, limits and thresholds", machine=True),
    Act("figure.set", "approve_resolution", "change a figure of law or a limit", money=True, people="two",
        approval="approve_resolution", reason=True),
    Act("threshold.set", "approve_resolution", "change the amount above which an act takes two people", money=True,
        people="two", approval="approve_resolution", reason=True),
    # Payouts.
    Act("payout.retry", "act_on_payouts", "send a failed payout again", money=True, own="payout"),
    Act("payout.ask", "act_on_payouts", "ask M-Pesa about a payout", machine=True),
    Act("payout.hold", "act_on_payouts", "hold a payout", money=True, reason=True, own="payout"),
    Act("payout.release", "act_on_payouts", "release a held payout", money=True, reason=True, own="payout"),
    Act("payout.to_wallet", "act_on_payouts", "pay a payout to the member's wallet", money=True,
        people="two by amount", approval="decide_payout", reason=True, own="payout"),
    Act("payout.reissue", "decide_payout", "send a payout to the member's new number", money=True, people="two",
        approval="decide_payout", reason=True, own="payout"),
    Act("payout.decide", "decide_payout", "decide a held payout by M-Pesa's statement", money=True,
        people="two by amount", approval="decide_payout", reason=True, own="payout"),
    Act("payout.confirm", "decide_payout", "confirm another person's decision on a payout", money=True, own="payout"),
    Act("payout.reject", "decide_payout", "reject another person's decision on a payout", reason=True, own="payout"),
    # Sending.
    Act("sending.off", "switch_sending", "stop the sending of payouts", money=True, reason=True),
    Act("sending.on", "switch_sending", "start the sending of payouts again", money=True, people="two by amount",
        approval="switch_sending"),
    Act("sending.lift", "switch_sending", "end a stop that waits for a person", money=True, people="two by amount",
        threshold="sending.on", approval="switch_sending", reason=True),
    Act("sending.release", "switch_sending", "let a stopped release of payouts go on", money=True,
        people="two by amount", threshold="sending.on", approval="switch_sending", reason=True, own="payout"),
    Act("restore.decide", "decide_payout", "decide after a restore of the database", money=True, people="two",
        approval="decide_payout", reason=True, own="payout"),
    Act("restore.confirm", "decide_payout", "confirm another person's decision after a restore", money=True,
        own="payout"),
    # Accounts. A change of a staff account needs the right over staff, so that support cannot take over an operator's.
    Act("staff.view", "manage_staff", "see members of staff with their roles"),
    *_account_acts("staff", "manage_staff", "a member of staff", approval="manage_staff"),
    *_account_acts("member", "change_member", "a member", approval="decide_payout"),
    Act("staff.role", "manage_staff", "add a member of staff, or change a role", money=True, people="two",
        approval="manage_staff", reason=True, own="account"),
    Act("staff.reset_app", "manage_staff", "remove the authenticator app of a member of staff", money=True,
        people="two", approval="manage_staff", reason=True, own="account"),
    # Debts and disputes.
    Act("recovery.set_off", "decide_recovery", "set a member's debt off against later dividends", money=True,
        people="two by amount", approval="decide_recovery", own="debt"),
    Act("recovery.write_off", "decide_recovery", "write a member's debt off", money=True, people="two by amount",
        approval="decide_recovery", reason=True, own="debt"),
    Act("dispute.answer", "answer_dispute", "answer a dispute", own="dispute"),
    Act("dispute.reject", "answer_dispute", "reject a dispute", reason=True, own="dispute"),
    Act("dispute.uphold", "answer_dispute", "uphold a dispute and carry out its remedy", money=True,
        people="two by amount", threshold="payout.to_wallet", approval="decide_payout", reason=True, own="dispute"),
)  # fmt: skip
ACTS: dict[str, Act] = {act.name: act for act in _TABLE}


class Person(Protocol):
    """A member of staff, as Django's model of a user shows one."""

    @property
    def is_active(self) -> bool: ...

    @property
    def is_staff(self) -> bool: ...

    def has_perm(self, perm: str, obj: None = None) -> bool: ...


def threshold_of(act_name: str) -> str:
    """Return the name of the act whose threshold and sums count for an act, often its own."""
    return ACTS[act_name].threshold or act_name


def may(person: Person, act_name: str) -> bool:
    """Return True if this member of staff may do the act, by its name in `ACTS`."""
    return holds(person, ACTS[act_name].permission)


def holds(person: Person, permission: str) -> bool:
    """Return True if this active member of staff has a permission, by its codename in users.roles."""
    return person.is_active and person.is_staff and person.has_perm(f"users.{permission}")


def refusal(act_name: str) -> str:
    """Return the sentence for a person whose roles do not allow the act."""
    return f"Your roles do not allow you to {ACTS[act_name].words}. Nothing was done."
