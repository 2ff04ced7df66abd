"""Daraja's side of the simulator: B2C payments and queries."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from payments.mpesa.simulator import draws, faults, messages, replies, request_reading
from payments.mpesa.simulator.access_tokens import AccessTokens
from payments.mpesa.simulator.book import Book
from payments.mpesa.simulator.delivery import Delivery
from payments.mpesa.simulator.express import Express
from payments.mpesa.simulator.fault_schedule import Schedule
from payments.mpesa.simulator.messages import Refused
from payments.mpesa.simulator.records import Payment
from payments.mpesa.simulator.terms import Terms


@dataclass(frozen=True, slots=True)
class _StatusQuery:
    """An accepted status query. `may_find` is False if a fault hides the payment."""

    ocid: str
    receipt: str
    may_find: bool
    shortcode: str
    url: str
    conversation_id: str
    query_ocid: str


class Provider:
    """Daraja's B2C and query calls. It answers the calls, keeps the book and posts the callbacks.

    `tokens` issues the access tokens; `express` answers the M-Pesa Express calls.
    """

    def __init__(
        self,
        *,
        terms: Terms,
        book: Book,
        schedule: Schedule,
        delivery: Delivery,
        now: Callable[[], datetime],
    ) -> None:
        self.book, self.schedule = book, schedule
        self._terms, self._delivery, self._now = terms, delivery, now
        self.tokens = AccessTokens(terms=terms, seed=schedule.seed)
        self.express = Express(
            terms=terms,
            book=book,
            schedule=schedule,
            delivery=delivery,
            now=now,
            new_id=lambda: self._query_ids()[1],
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._recent: deque[float] = deque()
        self._held: set[str] = set()
        self._security_credential = ""

    def resume(self) -> None:
        """Continue the payments and deposits that an earlier process accepted and did not finish."""
        for payment in list(self.book.payments.values()):
            if payment.state == "accepted" and not payment.timed_out:
                self._delivery.after(self._terms.callback_delay, self._finish, payment.ocid)
            elif payment.state != "dropped" and not payment.reported:
                self._delivery.after(self._terms.callback_delay, self._execute_and_report, payment.ocid)
        self.express.resume()

    # B2C payments.

    def pay(self, body: request_reading.Body) -> replies.Reply:
        """Accept a payment request. The money moves later. Raises: Refused."""
        ocid, amount, phone = (str(body.get(name, "")) for name in ("OriginatorConversationID", "Amount", "PartyB"))
        active_faults = faults.NO_FAULTS
        try:
            request = request_reading.payment_request(body)
            self._throttle()
            known = ocid in self.book.payments
            if not known:
                earlier = self.book.requests_of(ocid)
                active_faults = self.schedule.active_faults("payment", key=ocid, phone=phone, earlier=earlier)
                self._refuse_by_fault(active_faults)
        except Refused as refusal:
            self.book.refuse(
                ocid=ocid[:128],
                amount=amount[:20],
                phone=phone[:20],
                answer=refusal.code,
                used_faults=active_faults.used_faults,
            )
            raise
        if known:
            return self._repeated(ocid, phone)
        if active_faults.has("error_500", "dropped"):
            self.book.refuse(
                ocid=ocid, amount=amount, phone=phone, answer="dropped", used_faults=active_faults.used_faults
            )
            return replies.server_error(active_faults)
        self._security_credential = str(body["SecurityCredential"])
        payment = self.book.accept(
            ocid=ocid, amount=int(amount), phone=phone, request=request, active_faults=active_faults
        )
        if payment is None:
            return self._repeated(ocid, phone)
        if "callback_early" in active_faults:
            self._delivery.at_once(self._finish, ocid)
        else:
            self._delivery.after(self._terms.callback_delay, self._finish, ocid)
        if "error_500" in active_faults:
            return replies.server_error(active_faults)
        return replies.reply(
            messages.acknowledgement(conversation_id=payment.conversation_id, ocid=ocid),
            delay=active_faults.seconds.get("slow", 0.0),
            dropped="ack_lost" in active_faults,
        )

    def _throttle(self) -> None:
        """Count a payment request. Raises: Refused if there are too many in one second."""
        if not self._terms.tps:
            return
        with self._lock:
            moment = time.monotonic()
            while self._recent and self._recent[0] <= moment - 1:
                self._recent.popleft()
            if len(self._recent) >= self._terms.tps:
                raise Refused(500, "500.003.02", "Error Occurred: Spike Arrest Violation")
            self._recent.append(moment)

    def _refuse_by_fault(self, active_faults: faults.ActiveFaults) -> None:
        if "token_expired" in active_faults:
            raise replies.bad_token(active_faults.variants["token_expired"][0], self.tokens.end())
        if "spike_arrest" in active_faults:
            raise Refused(500, "500.003.02", "Error Occurred: Spike Arrest Violation")
        if "quota" in active_faults:
            raise Refused(500, "500.003.03", "Error Occurred: Quota Violation")

    def _repeated(self, ocid: str, phone: str) -> replies.Reply:
        payment = self.book.payments[ocid]
        refusal = Refused(500, "500.002.1001", "Duplicate OriginatorConversationID.")
        self.book.refuse(ocid=ocid, amount=str(payment.amount), phone=phone, answer=refusal.code)
        if "duplicate_id" not in payment.active_faults:
            raise refusal
        conversation_id = self.book.conversation_id(ocid, next(self._numbers))
        self._delivery.after(self._terms.callback_delay, self._report_duplicate, ocid, conversation_id)
        return replies.reply(messages.acknowledgement(conversation_id=conversation_id, ocid=ocid))

    def _finish(self, ocid: str) -> None:
        payment = self.book.payments[ocid]
        if "queue_timeout" not in payment.active_faults:
            self._execute_and_report(ocid)
            return
        message = messages.queue_timeout(payment, security_credential=self._security_credential)
        outcome = self._delivery.post(payment.request["QueueTimeOutURL"], messages.encode(message))
        if payment.active_faults.has("queue_timeout", "dropped"):
            self.book.execute(ocid, dropped=True)
        self.book.note_callback(ocid, "timeout", outcome)
        if payment.state == "accepted":
            self._delivery.after(self._terms.callback_delay, self._execute_and_report, ocid)

    def _execute_and_report(self, ocid: str) -> None:
        payment = self.book.execute(ocid)
        active_faults = payment.active_faults
        if "callback_lost" in active_faults or any(
            active_faults.has("queue_timeout", variant) for variant in ("silence", "expired")
        ):
            self.book.note_callback(ocid, "result", "lost")
            return
        wait = active_faults.seconds.get("callback_late", 0.0)
        with self._lock:
            self._held.add(ocid)
        if "out_of_order" in active_faults and not payment.answered:
            wait += active_faults.seconds["out_of_order"]
        if wait:
            self._delivery.after(wait, self._report, ocid)
        else:
            self._report(ocid)

    def _report(self, ocid: str) -> None:
        with self._lock:
            if ocid not in self._held:
                return
            self._held.discard(ocid)
        payment = self.book.payments[ocid]
        if "callback_doubled" in payment.active_faults:
            self._delivery.after(0, self._post_result, payment)
        self._post_result(payment)

    def _post_result(self, payment: Payment) -> None:
        body = messages.encode_result(messages.payment_result(payment), payment)
        in_chunks = payment.active_faults.has("odd_body", "chunked")
        outcome = self._delivery.post(payment.request["ResultURL"], body, in_chunks=in_chunks)
        self.book.note_callback(payment.ocid, "result", outcome)

    def _report_duplicate(self, ocid: str, conversation_id: str) -> None:
        payment = self.book.payments[ocid]
        message = messages.duplicate_result(payment, conversation_id=conversation_id)
        self.book.note_callback(
            ocid, "duplicate", self._delivery.post(payment.request["ResultURL"], messages.encode(message))
        )

    # Queries.

    def ask_status(self, body: request_reading.Body) -> replies.Reply:
        """Accept a query about a payment, by its originator conversation id or its receipt. Raises: Refused."""
        ocid = request_reading.text_field(body, "OriginalConversationID", 0, 128)
        receipt = request_reading.text_field(body, "TransactionID", 0, 20)
        shortcode, url = self._check_query(body, "TransactionStatusQuery")
        payment = self.book.find(ocid=ocid, receipt=receipt)
        key = payment.ocid if payment else ocid or receipt
        phone = payment.phone if payment else ""
        active_faults = self.schedule.active_faults("status", key=key, phone=phone, earlier=self.book.queries_of(key))
        self.book.note_query(key, phone, active_faults.used_faults)
        ids = self._query_ids()
        if "status_lost" not in active_faults:
            may_find = "status_not_found" not in active_faults
            query = _StatusQuery(ocid, receipt, may_find, shortcode, url, *ids)
            self._delivery.after(self._terms.callback_delay, self._answer_status, query)
        return replies.reply(messages.acknowledgement(conversation_id=ids[0], ocid=ids[1]))

    def _answer_status(self, query: _StatusQuery) -> None:
        payment = self.book.find(ocid=query.ocid, receipt=query.receipt)
        ids = {"conversation_id": query.conversation_id, "query_ocid": query.query_ocid}
        if not query.ocid and not query.receipt:
            message = messages.query_refusal("25", **ids)
        elif payment is None or payment.state == "dropped" or not query.may_find:
            message = messages.query_refusal(self._terms.not_found_code, **ids)
        else:
            message = messages.status_answer(payment, shortcode=query.shortcode, **ids)
        outcome = self._delivery.post(query.url, messages.encode(message))
        if payment is not None:
            self.book.note_callback(payment.ocid, "status", outcome)
            if "out_of_order" in payment.active_faults:
                self._report(payment.ocid)

    def ask_balance(self, body: request_reading.Body) -> replies.Reply:
        """Accept a query about the balances of the shortcode's accounts. Raises: Refused."""
        _, url = self._check_query(body, "AccountBalance")
        ids = self._query_ids()
        self._delivery.after(self._terms.callback_delay, self._answer_balance, url, *ids)
        return replies.reply(messages.acknowledgement(conversation_id=ids[0], ocid=ids[1]))

    def _answer_balance(self, url: str, conversation_id: str, query_ocid: str) -> None:
        with self.book.lock:
            message = messages.balance_answer(
                working=self.book.working,
                utility=self.book.utility,
                charges=self.book.charges,
                at=self._now(),
                conversation_id=conversation_id,
                query_ocid=query_ocid,
            )
        self._delivery.post(url, messages.encode(message))

    def _check_query(self, body: request_reading.Body, command: str) -> tuple[str, str]:
        """Check the fields that all queries share and return (shortcode, result URL). Raises: Refused."""
        for name in ("Initiator", "SecurityCredential"):
            request_reading.text_field(body, name, 1, 1_000)
        if request_reading.text_field(body, "CommandID", 1, 64) != command:
            raise request_reading.invalid_field("CommandID")
        if request_reading.text_field(body, "IdentifierType", 1, 2) != "4":
            raise request_reading.invalid_field("IdentifierType")
        request_reading.text_field(body, "Remarks", 1, 100)
        request_reading.text_field(body, "Occasion", 0, 100)
        request_reading.url_field(body, "QueueTimeOutURL")
        shortcode = request_reading.matching_field(body, "PartyA", request_reading.SHORTCODE)
        return shortcode, request_reading.url_field(body, "ResultURL")

    def _query_ids(self) -> tuple[str, str]:
        """Return an unused pair of (conversation id, originator conversation id)."""
        number = next(self._numbers)
        drawn = draws.draw(self.schedule.seed, "query", number)
        return (
            self.book.conversation_id("query", number),
            f"{drawn % 90_000 + 10_000}-{drawn // 90_000 % 9_000_000 + 1_000_000}-{number}",
        )
