"""M-Pesa Express (STK push) of the simulator: deposits that a customer confirms on the phone."""

import base64
import binascii
from collections.abc import Callable
from datetime import datetime

from payments.mpesa.simulator import messages, replies, request_reading
from payments.mpesa.simulator.book import Book
from payments.mpesa.simulator.delivery import Delivery
from payments.mpesa.simulator.fault_schedule import Schedule
from payments.mpesa.simulator.messages import Refused
from payments.mpesa.simulator.terms import Terms


class Express:
    """Answers to M-Pesa Express calls. `new_id` returns an unused merchant request id."""

    def __init__(
        self,
        *,
        terms: Terms,
        book: Book,
        schedule: Schedule,
        delivery: Delivery,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._terms, self._book, self._schedule, self._delivery = terms, book, schedule, delivery
        self._now, self._new_id = now, new_id

    def resume(self) -> None:
        """Continue the deposits that an earlier process accepted and did not finish."""
        for deposit in list(self._book.deposits.values()):
            if not deposit.reported:
                self._delivery.after(self._terms.callback_delay, self._finish, deposit.checkout_id)

    def push(self, body: request_reading.Body) -> replies.Reply:
        """Accept a push, which asks a customer for a deposit. Raises: Refused."""
        shortcode = request_reading.matching_field(body, "BusinessShortCode", request_reading.SHORTCODE)
        self._check_password(body, shortcode)
        transaction_type = request_reading.text_field(body, "TransactionType", 1, 64)
        if transaction_type not in ("CustomerPayBillOnline", "CustomerBuyGoodsOnline"):
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
        active_faults = self._schedule.active_faults("deposit", key=phone, phone=phone, earlier=0)
        merchant_id = self._new_id()
        deposit = self._book.accept_deposit(
            merchant_id=merchant_id, amount=amount, phone=phone, callback_url=url, active_faults=active_faults
        )
        self._delivery.after(self._terms.callback_delay, self._finish, deposit.checkout_id)
        return replies.reply(
            {
                "MerchantRequestID": merchant_id,
                "CheckoutRequestID": deposit.checkout_id,
                "ResponseCode": "0",
                "ResponseDescription": "Success. Request accepted for processing",
                "CustomerMessage": "Success. Request accepted for processing",
            },
            delay=active_faults.seconds.get("slow", 0.0),
            dropped="ack_lost" in active_faults,
        )

    def query(self, body: request_reading.Body) -> replies.Reply:
        """Answer a query about a push. Raises: Refused, also while the customer has not answered yet."""
        self._check_password(body, request_reading.matching_field(body, "BusinessShortCode", request_reading.SHORTCODE))
        deposit = self._book.deposits.get(request_reading.text_field(body, "CheckoutRequestID", 1, 100))
        if deposit is None:
            raise request_reading.invalid_field("CheckoutRequestID")
        if not deposit.code:
            raise Refused(500, "500.001.1001", "The transaction is being processed")
        return replies.reply(
            {
                "ResponseCode": "0",
                # Daraja's own spelling.
                "ResponseDescription": "The service request has been accepted successsfully",
                "MerchantRequestID": deposit.merchant_id,
                "CheckoutRequestID": deposit.checkout_id,
                "ResultCode": deposit.code,
                "ResultDesc": messages.deposit_description(deposit.code),
            }
        )

    def _finish(self, checkout_id: str) -> None:
        active_faults = self._book.execute_deposit(checkout_id).active_faults
        if "callback_lost" in active_faults:
            self._book.note_deposit_callback(checkout_id, "lost")
            return
        for _ in range(2 if "callback_doubled" in active_faults else 1):
            self._delivery.after(active_faults.seconds.get("callback_late", 0.0), self._report, checkout_id)

    def _report(self, checkout_id: str) -> None:
        deposit = self._book.deposits[checkout_id]
        message = messages.encode(messages.deposit_result(deposit, at=self._now()))
        self._book.note_deposit_callback(checkout_id, self._delivery.post(deposit.callback_url, message))

    def _check_password(self, body: request_reading.Body, shortcode: str) -> None:
        stamp = request_reading.matching_field(body, "Timestamp", request_reading.STAMP)
        try:
            password = base64.b64decode(request_reading.text_field(body, "Password", 1, 500), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise request_reading.invalid_field("Password") from error
        passkey = self._terms.passkey
        fits = password == f"{shortcode}{passkey}{stamp}" if passkey else password.startswith(shortcode)
        if not fits or not password.endswith(stamp):
            raise Refused(500, "500.001.1001", "Wrong credentials")
