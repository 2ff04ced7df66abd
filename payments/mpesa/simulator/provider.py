"""The Daraja side of the simulator: what each call is answered, and what happens to the money afterwards."""

import base64
import binascii
import hmac
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

from payments.mpesa.simulator import draws, fault_schedule, faults, messages, replies, request_reading, terms
from payments.mpesa.simulator.book import Book
from payments.mpesa.simulator.delivery import Delivery
from payments.mpesa.simulator.messages import Refused
from payments.mpesa.simulator.records import Payment


class Provider:
    """Answers Daraja's calls, keeps the book and posts the callbacks."""

    def __init__(
        self,
        *,
        terms: terms.Terms,
        book: Book,
        schedule: fault_schedule.Schedule,
        delivery: Delivery,
        now: Callable[[], datetime],
    ) -> None:
        self.book, self.schedule = book, schedule
        self._terms, self._delivery, self._now = terms, delivery, now
        self._lock = threading.Lock()
        self._token, self._token_ends = "", 0.0
        self._numbers = itertools.count(1)
        self._tokens_issued = itertools.count(1)
        self._recent: deque[float] = deque()
        self._held: set[str] = set()
        self._security_credential = ""

    def resume(self) -> None:
        """Continue what a former run accepted and did not finish."""
        for payment in list(self.book.payments.values()):
            if payment.state == "accepted" and not payment.timed_out:
                self._delivery.after(self._terms.callback_delay, self._conclude, payment.ocid)
            elif payment.state != "dropped" and not payment.reported:
                self._delivery.after(self._terms.callback_delay, self._settle, payment.ocid)
        for deposit in list(self.book.deposits.values()):
            if not deposit.reported:
                self._delivery.after(self._terms.callback_delay, self._conclude_deposit, deposit.checkout_id)

    # Tokens.

    def issue_token(self, *, authorization: str, grant_type: str) -> replies.Reply:
        """Issue a token, which ends the one before it. Raises: Refused."""
        if not self._knows(authorization):
            raise Refused(400, "400.008.01", "Invalid Authentication passed")
        if grant_type != "client_credentials":
            raise Refused(400, "400.008.02", "Invalid grant type passed")
        number = next(self._tokens_issued)
        life = self._terms.token_life
        with self._lock:
            drawn = draws.draw(self.schedule.seed, "token", number, time.time_ns())
            self._token = base64.b64encode(f"{drawn:021d}".encode()).decode()
            self._token_ends = time.monotonic() + life
            token = self._token
        as_text = draws.fraction(self.schedule.seed, "expires_in", number) < 0.5
        return replies.reply({"access_token": token, "expires_in": str(life) if as_text else life})

    def check_token(self, authorization: str, spelling: str) -> None:
        """Refuse a call without the current token, in the spelling of that API. Raises: Refused."""
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise replies.bad_token("404.001.04", "")
        with self._lock:
            current = self._token if time.monotonic() < self._token_ends else ""
        if not current or not hmac.compare_digest(token.encode(), current.encode()):
            raise replies.bad_token(spelling, token)

    def _knows(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            key, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        terms = self._terms
        right = (not terms.consumer_key or key == terms.consumer_key) and (
            not terms.consumer_secret or secret == terms.consumer_secret
        )
        return scheme == "Basic" and bool(key and secret) and right

    # B2C payments.

    def pay(self, body: request_reading.Body) -> replies.Reply:
        """Accept a payment request or refuse it; the money moves later. Raises: Refused."""
        asked = {name: str(body.get(name, "")) for name in ("OriginatorConversationID", "Amount", "PartyB")}
        ocid, phone = asked["OriginatorConversationID"], asked["PartyB"]
        strikes = faults.NO_STRIKES
        try:
            request = request_reading.payment_request(body)
            self._throttle()
            known = ocid in self.book.payments
            if not known:
                earlier = self.book.requests_of(ocid)
                strikes = self.schedule.strikes("payment", key=ocid, phone=phone, earlier=earlier)
                self._refuse_by_fault(strikes)
        except Refused as refusal:
            amount = asked["Amount"][:20]
            self.book.refuse(
                ocid=ocid[:128], amount=amount, phone=phone[:20], verdict=refusal.code, spent=strikes.spent
            )
            raise
        if known:
            return self._repeated(ocid, phone)
        if strikes.has("error_500", "dropped"):
            self.book.refuse(ocid=ocid, amount=asked["Amount"], phone=phone, verdict="dropped", spent=strikes.spent)
            return replies.server_error(strikes)
        self._security_credential = str(body["SecurityCredential"])
        payment = self.book.accept(
            ocid=ocid, amount=int(asked["Amount"]), phone=phone, request=request, strikes=strikes
        )
        if payment is None:
            return self._repeated(ocid, phone)
        if "callback_early" in strikes:
            self._delivery.at_once(self._conclude, ocid)
        else:
            self._delivery.after(self._terms.callback_delay, self._conclude, ocid)
        if "error_500" in strikes:
            return replies.server_error(strikes)
        return replies.reply(
            messages.acknowledgement(conversation_id=payment.conversation_id, ocid=ocid),
            delay=strikes.seconds.get("slow", 0.0),
            dropped="ack_lost" in strikes,
        )

    def _throttle(self) -> None:
        if not self._terms.tps:
            return
        with self._lock:
            moment = time.monotonic()
            while self._recent and self._recent[0] <= moment - 1:
                self._recent.popleft()
            if len(self._recent) >= self._terms.tps:
                raise Refused(500, "500.003.02", "Error Occurred: Spike Arrest Violation")
            self._recent.append(moment)

    def _refuse_by_fault(self, strikes: faults.Strikes) -> None:
        if "token_expired" in strikes:
            with self._lock:
                ended, self._token = self._token, ""
            raise replies.bad_token(strikes.faults["token_expired"][0], ended)
        if "spike_arrest" in strikes:
            raise Refused(500, "500.003.02", "Error Occurred: Spike Arrest Violation")
        if "quota" in strikes:
            raise Refused(500, "500.003.03", "Error Occurred: Quota Violation")

    def _repeated(self, ocid: str, phone: str) -> replies.Reply:
        payment = self.book.payments[ocid]
        refusal = Refused(500, "500.002.1001", "Duplicate OriginatorConversationID.")
        self.book.refuse(ocid=ocid, amount=str(payment.amount), phone=phone, verdict=refusal.code)
        if "duplicate_id" not in payment.strikes:
            raise refusal
        conversation_id = self.book.conversation_id(ocid, next(self._numbers))
        self._delivery.after(self._terms.callback_delay, self._report_duplicate, ocid, conversation_id)
        return replies.reply(messages.acknowledgement(conversation_id=conversation_id, ocid=ocid))

    def _conclude(self, ocid: str) -> None:
        payment = self.book.payments[ocid]
        if "queue_timeout" not in payment.strikes:
            self._settle(ocid)
            return
        message = messages.queue_timeout(payment, security_credential=self._security_credential)
        outcome = self._delivery.post(payment.request["QueueTimeOutURL"], messages.encode(message))
        if payment.strikes.has("queue_timeout", "dropped"):
            self.book.execute(ocid, dropped=True)
        self.book.note_callback(ocid, "timeout", outcome)
        if payment.state == "accepted":
            self._delivery.after(self._terms.callback_delay, self._settle, ocid)

    def _settle(self, ocid: str) -> None:
        payment = self.book.execute(ocid)
        strikes = payment.strikes
        if "callback_lost" in strikes or any(strikes.has("queue_timeout", fate) for fate in ("silence", "expired")):
            self.book.note_callback(ocid, "result", "lost")
            return
        wait = strikes.seconds.get("callback_late", 0.0)
        with self._lock:
            self._held.add(ocid)
        if "out_of_order" in strikes and not payment.answered:
            wait += strikes.seconds["out_of_order"]
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
        if "callback_doubled" in payment.strikes:
            self._delivery.after(0, self._post_result, payment)
        self._post_result(payment)

    def _post_result(self, payment: Payment) -> None:
        outcome = self._delivery.post(payment.request["ResultURL"], messages.encode(messages.payment_result(payment)))
        self.book.note_callback(payment.ocid, "result", outcome)

    def _report_duplicate(self, ocid: str, conversation_id: str) -> None:
        payment = self.book.payments[ocid]
        message = messages.duplicate_result(payment, conversation_id=conversation_id)
        self.book.note_callback(
            ocid, "duplicate", self._delivery.post(payment.request["ResultURL"], messages.encode(message))
        )

    # Queries.

    def ask_status(self, body: request_reading.Body) -> replies.Reply:
        """Accept a question about a payment, by its originator conversation id or its receipt. Raises: Refused."""
        ocid, receipt = (
            request_reading.text_field(body, "OriginalConversationID", 0, 128),
            request_reading.text_field(body, "TransactionID", 0, 20),
        )
        shortcode, url = self._check_query(body, "TransactionStatusQuery")
        payment = self.book.find(ocid=ocid, receipt=receipt)
        key = payment.ocid if payment else ocid or receipt
        phone = payment.phone if payment else ""
        strikes = self.schedule.strikes("status", key=key, phone=phone, earlier=self.book.queries_of(key))
        self.book.note_query(key, phone, strikes.spent)
        ids = self._query_ids()
        if "status_lost" not in strikes:
            found = "status_not_found" not in strikes
            self._delivery.after(
                self._terms.callback_delay, self._answer_status, ocid, receipt, found, shortcode, url, *ids
            )
        return replies.reply(messages.acknowledgement(conversation_id=ids[0], ocid=ids[1]))

    def _answer_status(
        self, ocid: str, receipt: str, found: bool, shortcode: str, url: str, conversation_id: str, query_ocid: str
    ) -> None:
        payment = self.book.find(ocid=ocid, receipt=receipt)
        if not ocid and not receipt:
            message = messages.query_refusal("25", conversation_id=conversation_id, query_ocid=query_ocid)
        elif payment is None or payment.state == "dropped" or not found:
            code = self._terms.not_found_code
            message = messages.query_refusal(code, conversation_id=conversation_id, query_ocid=query_ocid)
        else:
            message = messages.status_answer(
                payment, conversation_id=conversation_id, query_ocid=query_ocid, shortcode=shortcode
            )
        outcome = self._delivery.post(url, messages.encode(message))
        if payment is not None:
            self.book.note_callback(payment.ocid, "status", outcome)
            if "out_of_order" in payment.strikes:
                self._report(payment.ocid)

    def ask_balance(self, body: request_reading.Body) -> replies.Reply:
        """Accept a question about the accounts of the shortcode. Raises: Refused."""
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
        for name in ("Initiator", "SecurityCredential"):
            request_reading.text_field(body, name, 1, 1_000)
        if request_reading.text_field(body, "CommandID", 1, 64) != command:
            raise request_reading.invalid_field("CommandID")
        if request_reading.text_field(body, "IdentifierType", 1, 2) != "4":
            raise request_reading.invalid_field("IdentifierType")
        request_reading.text_field(body, "Remarks", 1, 100)
        request_reading.text_field(body, "Occasion", 0, 100)
        request_reading.url_field(body, "QueueTimeOutURL")
        return request_reading.matching_field(body, "PartyA", request_reading.SHORTCODE), request_reading.url_field(
            body, "ResultURL"
        )

    def _query_ids(self) -> tuple[str, str]:
        number = next(self._numbers)
        drawn = draws.draw(self.schedule.seed, "query", number)
        return (
            self.book.conversation_id("query", number),
            f"{drawn % 90_000 + 10_000}-{drawn // 90_000 % 9_000_000 + 1_000_000}-{number}",
        )

    # M-Pesa Express.

    def push(self, body: request_reading.Body) -> replies.Reply:
        """Ask a customer for a deposit. Raises: Refused."""
        shortcode = request_reading.matching_field(body, "BusinessShortCode", request_reading.SHORTCODE)
        self._check_password(body, shortcode)
        if request_reading.text_field(body, "TransactionType", 1, 64) not in (
            "CustomerPayBillOnline",
            "CustomerBuyGoodsOnline",
        ):
            raise request_reading.invalid_field("TransactionType")
        amount = int(request_reading.matching_field(body, "Amount", request_reading.WHOLE))
        if not 1 <= amount <= 250_000:
            raise request_reading.invalid_field("Amount")
        request_reading.matching_field(body, "PartyA", request_reading.MSISDN)
        request_reading.matching_field(body, "PartyB", request_reading.SHORTCODE)
        phone = request_reading.matching_field(body, "PhoneNumber", request_reading.MSISDN)
        url = request_reading.url_field(body, "CallBackURL")
        request_reading.text_field(body, "AccountReference", 1, 12)
        request_reading.text_field(body, "TransactionDesc", 1, 13)
        strikes = self.schedule.strikes("deposit", key=phone, phone=phone, earlier=0)
        merchant_id = self._query_ids()[1]
        deposit = self.book.accept_deposit(
            merchant_id=merchant_id, amount=amount, phone=phone, callback_url=url, strikes=strikes
        )
        self._delivery.after(self._terms.callback_delay, self._conclude_deposit, deposit.checkout_id)
        return replies.reply(
            {
                "MerchantRequestID": merchant_id,
                "CheckoutRequestID": deposit.checkout_id,
                "ResponseCode": "0",
                "ResponseDescription": "Success. Request accepted for processing",
                "CustomerMessage": "Success. Request accepted for processing",
            },
            delay=strikes.seconds.get("slow", 0.0),
            dropped="ack_lost" in strikes,
        )

    def _conclude_deposit(self, checkout_id: str) -> None:
        strikes = self.book.execute_deposit(checkout_id).strikes
        if "callback_lost" in strikes:
            self.book.note_deposit_callback(checkout_id, "lost")
            return
        for _ in range(2 if "callback_doubled" in strikes else 1):
            self._delivery.after(strikes.seconds.get("callback_late", 0.0), self._report_deposit, checkout_id)

    def _report_deposit(self, checkout_id: str) -> None:
        deposit = self.book.deposits[checkout_id]
        message = messages.encode(messages.deposit_result(deposit, at=self._now()))
        self.book.note_deposit_callback(checkout_id, self._delivery.post(deposit.callback_url, message))

    def ask_push(self, body: request_reading.Body) -> replies.Reply:
        """Answer at once what became of a push. Raises: Refused, also while the customer is being asked."""
        self._check_password(body, request_reading.matching_field(body, "BusinessShortCode", request_reading.SHORTCODE))
        deposit = self.book.deposits.get(request_reading.text_field(body, "CheckoutRequestID", 1, 100))
        if deposit is None:
            raise request_reading.invalid_field("CheckoutRequestID")
        if not deposit.code:
            raise Refused(500, "500.001.1001", "The transaction is being processed")
        return replies.reply(
            {
                "ResponseCode": "0",
                "ResponseDescription": "The service request has been accepted successsfully",
                "MerchantRequestID": deposit.merchant_id,
                "CheckoutRequestID": deposit.checkout_id,
                "ResultCode": deposit.code,
                "ResultDesc": messages.deposit_description(deposit.code),
            }
        )

    def _check_password(self, body: request_reading.Body, shortcode: str) -> None:
        stamp = request_reading.matching_field(body, "Timestamp", request_reading.STAMP)
        try:
            password = base64.b64decode(request_reading.text_field(body, "Password", 1, 500), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise request_reading.invalid_field("Password") from error
        passkey = self._terms.passkey
        right = password == f"{shortcode}{passkey}{stamp}" if passkey else password.startswith(shortcode)
        if not right or not password.endswith(stamp):
            raise Refused(500, "500.001.1001", "Wrong credentials")
