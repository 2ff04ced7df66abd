"""The timeline of one payout: its debt, requests, status queries, callbacks, transfers and manual actions.

Personal facts are masked. Tokens and credentials are never stored.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from payments.ledger import journal
from payments.models import Attempt, Callback, StatusQuery, Transaction, Transfer, Verdict
from payments.mpesa import redaction, result_codes, strict_json
from payments.payouts import eligibility, waiting
from payments.payouts.operations import actions, failures, tranches
from payments.policy import Policy
from users import phone
from users.models import AuditEntry, CustomUser

# Beat's sweep sends a due payout within seconds. A payout that nothing stops is late after this time.
LATE = timedelta(minutes=1)
_NOT_FINAL = (Transaction.Status.FAILED, Transaction.Status.HELD, Transaction.Status.PENDING)
DESTINATIONS = {"mpesa": "M-Pesa", "wallet": "the wallet"}
# Fields of M-Pesa's messages that are shown unmasked: ids, codes, amounts, times. Other fields hold names and phones.
SHOWN = {
    "Result", "ResultType", "ResultCode", "ResultDesc", "OriginatorConversationID", "ConversationID", "TransactionID",
    "ResultParameters", "ResultParameter", "Key", "ReferenceData", "ReferenceItem", "TransactionAmount",
    "TransactionReceipt", "TransactionCompletedDateTime", "TransactionStatus", "ReceiptNo", "Amount", "FinalisedTime",
    "InitiatedTime", "TransactionReason", "ReasonType", "DebitPartyCharges", "DebitAccountType", "ExternalReference",
    "B2CChargesPaidAccountAvailableFunds", "B2CRecipientIsRegisteredCustomer", "errorCode", "errorMessage", "requestId",
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One event. `tone` is good, bad, care, busy or calm. `details` are pairs of (name, value) in words.

    `action` is the code of a manual action in the audit trail; then `title` is the person.
    """

    at: datetime
    title: str
    tone: str
    words: str = ""
    details: tuple[tuple[str, str], ...] = ()
    raw: str = ""
    action: str = ""


@dataclass(frozen=True)
class Timeline:
    """A payout with its events, oldest first, an explanation of its state, and the actions that it allows now.

    `waits` are the causes for which a pending payout does not leave. `verdict` is a decision that waits for a second
    person; `decided` are the confirmed decisions of two people.
    """

    payout: Transaction
    events: list[Event]
    attempts: list[Attempt]
    verdict: Verdict | None
    decided: list[Verdict]
    waits: list[waiting.Wait]
    owed: Decimal
    words: str
    advice: str
    actions: frozenset[str]
    main_action: str
    plan: tranches.Plan | None = None


def of_payout(transaction_id: int, *, at: datetime, policy: Policy) -> Timeline | None:
    """Return the timeline of one payout at `at`, or None if the transaction does not exist."""
    payout = Transaction.objects.select_related("user", "settlement__market").filter(pk=transaction_id).first()
    if payout is None:
        return None
    attempts = list(payout.attempts.order_by("number"))
    queries = list(StatusQuery.objects.filter(attempt__in=attempts).order_by("asked_at"))
    callbacks = list(Callback.objects.filter(attempt__in=attempts).order_by("received_at", "pk"))
    callbacks += list(Callback.objects.filter(query__in=queries, attempt__isnull=True).order_by("received_at", "pk"))
    transfers = list(payout.transfers.select_related("debit", "credit").order_by("pk"))
    decisions = list(
        AuditEntry.objects.filter(subject=f"transaction:{payout.pk}").select_related("actor").order_by("number")
    )
    verdicts = list(payout.verdicts.select_related("proposed_by", "closed_by").order_by("pk"))
    events = [_creation(payout)]
    events += [event for attempt in attempts for event in _of_attempt(attempt)]
    events += [_of_query(query) for query in queries]
    events += [_of_callback(callback, policy) for callback in callbacks]
    events += [_of_transfer(transfer) for transfer in transfers]
    events += [_of_audit_entry(entry) for entry in decisions]
    last = attempts[-1] if attempts else None
    waits = waiting.of_payout(payout, at=at, policy=policy)
    words, advice = _explanation(payout, last, is_late=not waits and payout.due_at <= at - LATE)
    stop = eligibility.stop_of(payout, at=at) if payout.status in _NOT_FINAL else ""
    allowed = _allowed_actions(payout, attempts, stopped=stop != "")
    if differs := actions.number_differs(payout) if "reissue" in allowed else "":
        advice = differs
    return Timeline(
        payout=payout,
        events=sorted(events, key=lambda event: event.at),
        attempts=attempts,
        verdict=next((verdict for verdict in verdicts if verdict.closed_at is None), None),
        decided=[verdict for verdict in verdicts if verdict.confirmed],
        waits=waits,
        owed=journal.owed(payout.pk),
        words=words,
        advice=advice if payout.status == Transaction.Status.PENDING else stop or advice,
        actions=allowed,
        main_action=_main_action(payout, last, allowed),
        plan=tranches.of_payout(payout, at=at, policy=policy),
    )


def _allowed_actions(payout: Transaction, attempts: Iterable[Attempt], *, stopped: bool) -> frozenset[str]:
    """Return the actions that the page offers. Each action checks its conditions again under lock."""
    open_states = {attempt.state for attempt in attempts if attempt.state in Attempt.OPEN}
    asked = any(attempt.next_query_at for attempt in attempts)
    free = not open_states and not asked and payout.type == Transaction.Type.PAYOUT and not stopped
    held = payout.status == Transaction.Status.HELD
    allowed = set()
    if held:
        allowed |= {"release"} if free or (open_states == {"WAITING"} and not stopped) else set()
        allowed |= {"decide"} if open_states else set()
    if free and (payout.status == Transaction.Status.FAILED or (held and not payout.held_by_person)):
        allowed.add("wallet")
        if actions.number_differs(payout):
            allowed.add("reissue")
        elif not held:
            allowed.add("retry")
    if payout.status == Transaction.Status.PENDING and payout.destination == Transaction.Destination.MPESA:
        allowed |= {"hold"} if stopped else {"hold", "release"}
    if actions.is_kept_back(payout):
        allowed.add("hold")
    if open_states & {"ACCEPTED", "IN_DOUBT"}:
        allowed.add("ask")
    return frozenset(allowed)


def _main_action(payout: Transaction, last: Attempt | None, allowed: frozenset[str]) -> str:
    """Return the action that the advice names, or an empty string."""
    if "reissue" in allowed:
        return "reissue"
    if payout.status == Transaction.Status.FAILED and "wallet" in allowed:
        helps = failures.words_of(last.result_code if last is not None else "")[2]
        return "retry" if helps else "wallet"
    is_to_release = payout.status == Transaction.Status.HELD and not actions.is_kept_back(payout)
    return "release" if is_to_release and "release" in allowed else ""


def _explanation(payout: Transaction, last: Attempt | None, *, is_late: bool) -> tuple[str, str]:
    """Return an explanation of the payout's state in plain words, and advice for the next step.

    `is_late`: the payout is due, nothing that we know of stops it, and it has not left.
    """
    status = payout.status
    if status == Transaction.Status.COMPLETED and payout.goes_to == Transaction.Destination.WALLET:
        return "The money went to the member's wallet.", "Nothing to do."
    if status == Transaction.Status.COMPLETED and last is not None and last.decision == Attempt.Decision.PAID:
        return (
            f"Staff decided that M-Pesa paid it, receipt {payout.receipt}. M-Pesa has not confirmed this yet.",
            "Nothing to do. We ask M-Pesa about the receipt. If M-Pesa contradicts it, the payout is held again.",
        )
    if status == Transaction.Status.COMPLETED and payout.receipt:
        return f"M-Pesa paid it, receipt {payout.receipt}. The money is on the member's phone.", "Nothing to do."
    if status == Transaction.Status.COMPLETED:
        return payout.reason or "It is paid.", "Nothing to do."
    if status == Transaction.Status.FAILED:
        words, advice, _ = failures.words_of(last.result_code if last is not None else "")
        return f"It failed, and the money is still with us, owed to the member. {words}", advice
    if last is not None and last.is_in_doubt:
        words = result_codes.meaning(last.result_code).words if last.result_code else ""
        held = status == Transaction.Status.HELD
        return (
            f"We do not know whether M-Pesa paid it. The money counts as in flight. {words}".strip(),
            "Find it in M-Pesa's statement, then decide whether it was paid."
            if held
            else "Nothing to do yet. We ask M-Pesa automatically, and never pay again before we know.",
        )
    if actions.is_kept_back(payout):
        return (
            f"It is held, and the money is still with us. {payout.reason}",
            "Decide the dispute on the page Disputes. If it is rejected, the payout leaves automatically.",
        )
    if status == Transaction.Status.HELD:
        return (
            f"It is held, and the money is still with us. {payout.reason}",
            "Release it when the reason for the hold is gone."
            if payout.held_by_person
            else "A person must release it or pay it into the wallet.",
        )
    if status == Transaction.Status.PENDING:
        return (
            f"It waits to be sent, and the money is still with us. {payout.reason}".strip(),
            "It should have left already. Check on the home page that beat and the workers are running."
            if is_late
            else "Nothing to do. It leaves automatically.",
        )
    if status == Transaction.Status.CANCELLED:
        return "It was cancelled and will not be paid.", "Nothing to do."
    return "M-Pesa has the request. The money is in flight.", "Nothing to do. The result arrives automatically."


def _creation(payout: Transaction) -> Event:
    details = [
        ("Amount", f"KES {payout.amount:,.2f}"),
        ("To", f"{DESTINATIONS[payout.destination]} · {phone.masked(payout.phone_number)}"),
        ("Reference", payout.external_ref),
    ]
    if payout.settlement is not None:
        details.insert(0, ("Market", f"{payout.settlement.market_id}, settlement {payout.settlement.number}"))
    if payout.tranche > 1:
        details.append(("Tranche", str(payout.tranche)))
    return Event(payout.created_at, f"{payout.get_type_display()} created", "calm", details=tuple(details))


def _of_attempt(attempt: Attempt) -> list[Event]:
    sent = attempt.first_sent_at or attempt.posted_at or attempt.opened_at
    details = [("Id", attempt.originator_conversation_id), ("Kind", attempt.get_kind_display())]
    request = {
        "OriginatorConversationID": attempt.originator_conversation_id,
        "Amount": str(int(attempt.amount)),
        "PartyB": phone.masked(attempt.phone_number),
        "SecurityCredential": "[redacted]",
        "ResultURL": "[redacted]",
    }
    if attempt.conversation_id:
        details.append(("M-Pesa's id", attempt.conversation_id))
    raw = json.dumps(request, indent=2) if attempt.kind == Attempt.Kind.B2C else ""
    response = (
        "M-Pesa queued it, which is not a payment yet." if attempt.conversation_id else "No acknowledgement came."
    )
    events = [Event(sent, f"Request {attempt.number} to M-Pesa", "busy", response, tuple(details), raw)]
    if attempt.asked_first_at is not None and attempt.posted_at is None:  # Our books have no row of its POST.
        title = f"Request {attempt.number} may have left before a restore of the database"
        events = [
            Event(attempt.asked_first_at, title, "care", "M-Pesa is asked before it leaves.", tuple(details), raw)
        ]
    if attempt.posted_at and attempt.posted_at > sent:
        events.append(Event(attempt.posted_at, f"Request {attempt.number} sent again with the same id", "busy"))
    if attempt.doubted_at:
        events.append(
            Event(attempt.doubted_at, f"Request {attempt.number} in doubt", "care", _clean(attempt.result_words))
        )
    if attempt.known_at:
        words = "We only ask about it, and do not send it again."
        events.append(Event(attempt.known_at, f"M-Pesa already has request {attempt.number}", "care", words))
    if attempt.closed_at:
        paid = attempt.state in (Attempt.State.PAID, Attempt.State.REVERSED)
        proven = "decided as" if attempt.decision else "proven"
        meaning = failures.words_of(attempt.result_code)[0] if attempt.result_code and not paid else ""
        words = " ".join(filter(None, (attempt.result_code, _clean(attempt.result_words))))
        closed = (("Receipt", attempt.receipt),) if attempt.receipt else ()
        events.append(
            Event(
                attempt.closed_at,
                f"Request {attempt.number} {proven} {'paid' if paid else 'not executed'}",
                "good" if paid else "bad",
                words if paid or not words else f"{meaning} M-Pesa said: {words}".strip(),
                closed,
            )
        )
    return events


def _of_query(query: StatusQuery) -> Event:
    answer = f"Answer: {query.get_verdict_display().lower()}." if query.verdict else "No answer yet."
    about = f" about receipt {query.receipt}" if query.receipt else ""
    return Event(query.asked_at, f"Status query {query.number} to M-Pesa{about}", "busy", answer)


CALLBACK_TITLES = {
    "result": "Result received",
    "timeout": "Queue timeout received",
    "status": "Answer to a status query received",
}


def _of_callback(callback: Callback, policy: Policy) -> Event:
    # In development the simulator's callbacks come from this machine, and every callback counts as trusted.
    trusted = callback.trusted or not policy.production
    untrusted = "" if trusted else " It came from an address that is not M-Pesa's."
    return Event(
        callback.received_at,
        CALLBACK_TITLES.get(callback.kind, "Plain callback received"),
        "busy" if trusted else "care",
        (f"Outcome: {callback.verdict.rstrip('.')}." if callback.verdict else "Stored, not applied yet.") + untrusted,
        (("From", callback.source_ip or "unknown"),),
        redacted(bytes(callback.body)),
    )


def _of_transfer(transfer: Transfer) -> Event:
    return Event(
        transfer.at,
        f"Transfer of KES {transfer.amount:,.2f}: {transfer.debit.code} → {transfer.credit.code}",
        "calm",
        details=(("Key", transfer.key),),
    )


def _of_audit_entry(entry: AuditEntry) -> Event:
    who = str(entry.actor) if entry.actor else "The system"
    details = (("Action", entry.action), ("From", entry.source), ("Audit entry", str(entry.number)))
    return Event(entry.at, who, "care", entry.reason, details, action=entry.action)


def redacted(body: bytes) -> str:
    """Return a callback's body for a page. Ids, codes, amounts and times are shown; all other values are masked."""
    try:
        message = strict_json.read_message(body)
    except strict_json.Unreadable as error:
        return f"[{len(body)} bytes that cannot be read: {error}]"
    return json.dumps(_masked(message), indent=2, ensure_ascii=False)


def _masked(value: object, *, shown: bool = True) -> object:
    if isinstance(value, dict):
        # In a pair of Key and Value, the value of Key names the field.
        named = str(value.get("Key", "")).replace(" ", "")
        return {
            str(key): _masked(inner, shown=(named in SHOWN if key == "Value" and named else str(key) in SHOWN))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_masked(inner, shown=shown) for inner in value]
    if value is None:
        return None
    return _clean(str(value)) if shown else "•••"


def _clean(text: str) -> str:
    return redaction.redact(text)


def of_member(member: CustomUser) -> list[Transaction]:
    """Return a member's latest 50 transactions, newest first."""
    return list(member.transactions.select_related("settlement").order_by("-pk")[:50])
