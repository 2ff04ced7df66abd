"""One payout's whole life on one page: its debt, its requests and their answers, what was claimed about it, its money,
and what people did. Personal facts are masked; tokens and credentials were never kept.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from payments.ledger import journal
from payments.models import Attempt, Callback, StatusQuery, Transaction, Transfer, Verdict
from payments.mpesa import redaction, result_codes, strict_json
from payments.payouts.operations import failures
from users import phone
from users.models import AuditEntry, CustomUser

DESTINATIONS = {"mpesa": "M-Pesa", "wallet": "the wallet"}
# What a message of M-Pesa's may show as it is: ids, codes, amounts, times. Everything else holds names and phones.
SHOWN = {
    "Result", "ResultType", "ResultCode", "ResultDesc", "OriginatorConversationID", "ConversationID", "TransactionID",
    "ResultParameters", "ResultParameter", "Key", "ReferenceData", "ReferenceItem", "TransactionAmount",
    "TransactionReceipt", "TransactionCompletedDateTime", "TransactionStatus", "ReceiptNo", "Amount", "FinalisedTime",
    "InitiatedTime", "TransactionReason", "ReasonType", "DebitPartyCharges", "DebitAccountType", "ExternalReference",
    "B2CChargesPaidAccountAvailableFunds", "B2CRecipientIsRegisteredCustomer", "errorCode", "errorMessage", "requestId",
}  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """One thing that happened. `tone`: good, bad, care, busy or calm; `details` are (name, value) in words."""

    at: datetime
    title: str
    tone: str
    words: str = ""
    details: tuple[tuple[str, str], ...] = ()
    raw: str = ""


@dataclass(frozen=True)
class Life:
    """A payout with everything that happened to it, oldest first, and what may be done about it now."""

    payout: Transaction
    moments: list[Moment]
    attempts: list[Attempt]
    verdict: Verdict | None
    owed: Decimal
    words: str
    advice: str
    actions: frozenset[str]


def life(transaction_id: int) -> Life | None:
    """Everything about one payout, or None where there is no such transaction."""
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
    verdict = payout.verdicts.filter(closed_at__isnull=True).select_related("proposed_by").first()
    moments = [_born(payout)]
    moments += [moment for attempt in attempts for moment in _of_attempt(attempt)]
    moments += [_of_query(query) for query in queries]
    moments += [_of_callback(callback) for callback in callbacks]
    moments += [_of_transfer(transfer) for transfer in transfers]
    moments += [_of_decision(entry) for entry in decisions]
    last = attempts[-1] if attempts else None
    words, advice = _explained(payout, last)
    return Life(
        payout=payout,
        moments=sorted(moments, key=lambda moment: moment.at),
        attempts=attempts,
        verdict=verdict,
        owed=journal.owed(payout.pk),
        words=words,
        advice=advice,
        actions=_possible(payout, attempts),
    )


def _possible(payout: Transaction, attempts: Iterable[Attempt]) -> frozenset[str]:
    """What the buttons may offer; each service decides for itself, under lock, whether it still holds."""
    open_states = {attempt.state for attempt in attempts if attempt.state in Attempt.OPEN}
    asked = any(attempt.next_query_at for attempt in attempts)
    mpesa = payout.destination == Transaction.Destination.MPESA
    free = not open_states and not asked and payout.type == Transaction.Type.PAYOUT
    found = set()
    if payout.status == Transaction.Status.FAILED and free:
        found |= {"retry", "wallet"}
    if payout.status == Transaction.Status.HELD:
        found |= {"wallet", "release"} if free else {"release"} if open_states == {"WAITING"} else set()
        found |= {"decide"} if open_states else set()
    if payout.status == Transaction.Status.PENDING and mpesa:
        found |= {"hold", "release"}
    if open_states & {"ACCEPTED", "IN_DOUBT"}:
        found.add("ask")
    return frozenset(found)


def _explained(payout: Transaction, last: Attempt | None) -> tuple[str, str]:
    """The payout's state in plain words: where the money is, and what happens next or is to be done."""
    status = payout.status
    if status == Transaction.Status.COMPLETED and payout.destination == Transaction.Destination.WALLET:
        return "The money is in the member's wallet.", "Nothing to do."
    if status == Transaction.Status.COMPLETED and payout.receipt:
        return f"M-Pesa paid it, receipt {payout.receipt}. The money is on the member's phone.", "Nothing to do."
    if status == Transaction.Status.COMPLETED:
        return payout.reason or "It is paid.", "Nothing to do."
    if status == Transaction.Status.FAILED:
        words, advice, _ = failures.words_of(last.result_code if last is not None else "")
        return f"It failed, and the money is still with us, owed to the member. {words}", advice
    if last is not None and last.state == Attempt.State.IN_DOUBT:
        words = result_codes.meaning(last.result_code).words if last.result_code else ""
        held = status == Transaction.Status.HELD
        return (
            f"We do not know whether M-Pesa paid it. The money counts as on its way. {words}".strip(),
            "Look for it in M-Pesa's statement, then say what became of it."
            if held
            else "Nothing yet: we ask M-Pesa by ourselves, and never pay again before we know.",
        )
    if status == Transaction.Status.HELD:
        return (
            f"It is held, and the money is still with us. {payout.reason}",
            "A person decides: release it, or pay it to the wallet.",
        )
    if status == Transaction.Status.PENDING:
        return (
            f"It waits to be sent; the money is still with us. {payout.reason}".strip(),
            "Nothing to do: it leaves by itself.",
        )
    if status == Transaction.Status.CANCELLED:
        return "It was cancelled and will not be paid.", "Nothing to do."
    return "M-Pesa has the request; the money is on its way.", "Nothing to do: the result comes by itself."


def _born(payout: Transaction) -> Moment:
    details = [
        ("Amount", f"KES {payout.amount:,.2f}"),
        ("To", f"{DESTINATIONS[payout.destination]} · {phone.masked(payout.phone_number)}"),
        ("Reference", payout.external_ref),
    ]
    if payout.settlement is not None:
        details.insert(0, ("Market", f"{payout.settlement.market_id}, settlement {payout.settlement.number}"))
    if payout.tranche > 1:
        details.append(("Tranche", str(payout.tranche)))
    return Moment(payout.created_at, f"{payout.get_type_display()} came into being", "calm", details=tuple(details))


def _of_attempt(attempt: Attempt) -> list[Moment]:
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
    answer = "M-Pesa queued it; that is not paid yet." if attempt.conversation_id else "No acknowledgement came."
    moments = [Moment(sent, f"Request {attempt.number} to M-Pesa", "busy", answer, tuple(details), raw)]
    if attempt.posted_at and attempt.posted_at > sent:
        moments.append(Moment(attempt.posted_at, f"Request {attempt.number}: the same id went again", "busy"))
    if attempt.doubted_at:
        moments.append(
            Moment(attempt.doubted_at, f"Request {attempt.number} is in doubt", "care", _clean(attempt.result_words))
        )
    if attempt.known_at:
        words = "It is asked about, and not sent again."
        moments.append(Moment(attempt.known_at, f"M-Pesa has had request {attempt.number}", "care", words))
    if attempt.closed_at:
        paid = attempt.state == Attempt.State.PAID
        meaning = failures.words_of(attempt.result_code)[0] if attempt.result_code and not paid else ""
        words = " ".join(filter(None, (attempt.result_code, _clean(attempt.result_words))))
        closed = (("Receipt", attempt.receipt),) if attempt.receipt else ()
        moments.append(
            Moment(
                attempt.closed_at,
                f"Request {attempt.number} is proven {'paid' if paid else 'not executed'}",
                "good" if paid else "bad",
                words if paid or not words else f"{meaning} M-Pesa said: {words}".strip(),
                closed,
            )
        )
    return moments


def _of_query(query: StatusQuery) -> Moment:
    said = f"It answered: {query.get_verdict_display().lower()}." if query.verdict else "No answer yet."
    return Moment(query.asked_at, f"Question {query.number} to M-Pesa: what became of it?", "busy", said)


def _of_callback(callback: Callback) -> Moment:
    strange = "" if callback.trusted else " It came from an address that is not M-Pesa's."
    return Moment(
        callback.received_at,
        {"result": "A result came", "timeout": "A queue timeout came", "status": "An answer to a question came"}.get(
            callback.kind, "A plain callback came"
        ),
        "busy" if callback.trusted else "care",
        (f"What came of it: {callback.verdict.rstrip('.')}." if callback.verdict else "Stored, not applied yet.")
        + strange,
        (("From", callback.source_ip or "unknown"),),
        redacted(bytes(callback.body)),
    )


def _of_transfer(transfer: Transfer) -> Moment:
    return Moment(
        transfer.at,
        f"Booked KES {transfer.amount:,.2f}: {transfer.debit.code} → {transfer.credit.code}",
        "calm",
        details=(("Key", transfer.key),),
    )


def _of_decision(entry: AuditEntry) -> Moment:
    who = str(entry.actor) if entry.actor else "The machine"
    return Moment(
        entry.at, f"{who}: {entry.action}", "care", entry.reason, (("From", entry.source), ("Entry", str(entry.number)))
    )


def redacted(body: bytes) -> str:
    """A callback's body for the screen: ids, codes, amounts and times as they are, everything else masked."""
    try:
        message = strict_json.read_object(body)
    except strict_json.Unreadable as error:
        return f"[{len(body)} bytes that cannot be read: {error}]"
    return json.dumps(_masked(message), indent=2, ensure_ascii=False)


def _masked(value: object, *, shown: bool = True) -> object:
    if isinstance(value, dict):
        # A pair of Key and Value is named by its key's value.
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
    """A member's latest transactions, newest first."""
    return list(member.transactions.select_related("settlement").order_by("-pk")[:50])
