"""Book of the simulator, which records all payments.

The book is an append-only file of JSON lines. The current state is also kept in memory. Every change is an event. The
event is first written to the file and then applied to the state. A restart applies the same events again, so a restart
cannot change the state.
Units: amounts are whole shillings; charges are Decimal shillings.
"""

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from payments.mpesa import tariff
from payments.mpesa.simulator import draws, faults, records
from users import first_figures

# Source: Daraja portal, B2C page, FAQ 9.
SMALLEST, LARGEST, DAILY_LIMIT = 10, 250_000, 500_000
TARIFF = first_figures.bands_of(first_figures.TARIFF)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ATTEMPT_NUMBER = re.compile(r"-[0-9]+$")


class Book:
    """The requests, the payments made and the balance of the Utility account.

    A new file starts with `float_shillings`. An existing file continues with the float that it records.
    The JSON key "verdict" of files and summaries holds the answer to a request: "accepted", "dropped" or an error code.
    Locks: one inner lock; every public method is safe from any thread.
    Raises: ValueError if the file cannot be read as a book of this simulator.
    """

    def __init__(self, path: Path | None, *, float_shillings: int, seed: int, now: Callable[[], datetime]) -> None:
        self.lock = threading.RLock()
        self.payments: dict[str, records.Payment] = {}
        self.deposits: dict[str, records.Deposit] = {}
        self.by_receipt: dict[str, records.Payment] = {}
        self.used_faults: list[tuple[str, str]] = []
        self.utility = 0
        self.working = 0
        self.charges = Decimal(0)
        self._requests: dict[str, list[tuple[str, str]]] = {}
        self._queries: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._paid_on: Counter[tuple[str, str]] = Counter()
        self._by_phone: dict[str, dict[str, int]] = {}
        self._seed, self._now = seed, now
        self._file: int | None = None
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._reload(path)
        if not self._answers["opened"]:
            self._write({"event": "opened", "float": float_shillings})

    def close(self) -> None:
        """Close the file. Later writes are refused."""
        with self.lock:
            if self._file is not None:
                os.close(self._file)
                self._file = -1

    # Changes.

    def refuse(self, *, ocid: str, amount: str, phone: str, answer: str, used_faults: tuple[str, ...] = ()) -> None:
        """Record a payment request that was not accepted. `answer` is its error code, or "dropped"."""
        self._write(
            {
                "event": "refused",
                "ocid": ocid,
                "amount": amount,
                "phone": phone,
                "verdict": answer,
                "spent": list(used_faults),
            }
        )

    def accept(
        self, *, ocid: str, amount: int, phone: str, request: Mapping[str, str], active_faults: faults.ActiveFaults
    ) -> records.Payment | None:
        """Accept a payment request. Return None if its originator conversation id was accepted before."""
        with self.lock:
            if ocid in self.payments:
                return None
            self._write(
                {
                    "event": "accepted",
                    "ocid": ocid,
                    "conversation_id": self.conversation_id(ocid),
                    "amount": amount,
                    "phone": phone,
                    "request": dict(request),
                    "faults": active_faults.texts(),
                    "spent": list(active_faults.used_faults),
                }
            )
            return self.payments[ocid]

    def execute(self, ocid: str, *, dropped: bool = False) -> records.Payment:
        """Execute a payment: check the limits and the float, then move the money or fail.

        Idempotent: a second call finds the payment executed and moves nothing.
        """
        with self.lock:
            payment = self.payments[ocid]
            if payment.state != "accepted":
                return payment
            event: records.Event = {"event": "executed", "ocid": ocid, "state": "failed", "receipt": "", "charge": "0"}
            failure = self._failure(payment)
            if dropped:
                event |= {"state": "dropped", "code": ""}
            elif failure:
                event |= {"code": failure}
            elif payment.active_faults.has("queue_timeout", "expired"):
                event |= {"code": ""}
            elif payment.active_faults.has("system_17", "dropped"):
                event |= {"code": "17"}
            else:
                charge = tariff.charge(Decimal(payment.amount), TARIFF)
                code = "17" if "system_17" in payment.active_faults else "0"
                event |= {"state": "paid", "code": code, "receipt": self._new_receipt(ocid), "charge": str(charge)}
            self._write(event)
            return payment

    def note_callback(self, ocid: str, kind: str, outcome: str) -> None:
        """Record a callback.

        `outcome` is the HTTP status, the error, or "lost" if a fault kept the callback from being sent.
        """
        self._write({"event": "callback", "ocid": ocid, "kind": kind, "outcome": outcome})

    def note_query(self, key: str, phone: str, used_faults: tuple[str, ...]) -> None:
        """Record a status query about an originator conversation id or a receipt."""
        self._write({"event": "query", "key": key, "phone": phone, "spent": list(used_faults)})

    def set_float(self, shillings: int) -> None:
        """Set the balance of the Utility account."""
        self._write({"event": "float", "float": shillings})

    def accept_deposit(
        self, *, merchant_id: str, amount: int, phone: str, callback_url: str, active_faults: faults.ActiveFaults
    ) -> records.Deposit:
        """Accept an M-Pesa Express push."""
        with self.lock:
            number = len(self.deposits) + 1
            stamp = f"{self._now().astimezone(records.NAIROBI):%d%m%Y%H%M%S}"
            checkout_id = f"ws_CO_{stamp}{number:06d}{phone[3:]}"
            self._write(
                {
                    "event": "deposit",
                    "checkout_id": checkout_id,
                    "merchant_id": merchant_id,
                    "amount": amount,
                    "phone": phone,
                    "callback_url": callback_url,
                    "faults": active_faults.texts(),
                    "spent": list(active_faults.used_faults),
                }
            )
            return self.deposits[checkout_id]

    def execute_deposit(self, checkout_id: str) -> records.Deposit:
        """Execute a deposit: the customer answers the push. Idempotent: a deposit with a code does not change."""
        with self.lock:
            deposit = self.deposits[checkout_id]
            if not deposit.code:
                code = (deposit.active_faults.variants.get("fail") or ("0",))[0]
                receipt = self._new_receipt(checkout_id) if code == "0" else ""
                self._write({"event": "deposit_executed", "checkout_id": checkout_id, "code": code, "receipt": receipt})
            return deposit

    def note_deposit_callback(self, checkout_id: str, outcome: str) -> None:
        """Record a deposit's callback. `outcome` is as in `note_callback`."""
        self._write({"event": "deposit_callback", "checkout_id": checkout_id, "outcome": outcome})

    # Questions.

    def requests_of(self, ocid: str) -> int:
        """Count the payment requests for an originator conversation id."""
        with self.lock:
            return len(self._requests.get(ocid, ()))

    def queries_of(self, key: str) -> int:
        """Count the status queries about an originator conversation id or a receipt."""
        with self.lock:
            return self._queries[key]

    def find(self, *, ocid: str, receipt: str) -> records.Payment | None:
        """Find a payment by its originator conversation id, else by its receipt."""
        with self.lock:
            return self.payments.get(ocid) or self.by_receipt.get(receipt)

    def conversation_id(self, *parts: object) -> str:
        """Make Daraja's id of a conversation, `AG_yyyymmdd_<hex>`."""
        return (
            f"AG_{self._now().astimezone(records.NAIROBI):%Y%m%d}_{draws.draw(self._seed, 'conversation', *parts):020x}"
        )

    def entry(self, ocid: str) -> dict[str, object] | None:
        """Return all records of an originator conversation id as JSON types, or None for an unknown id."""
        with self.lock:
            if ocid not in self._requests:
                return None
            payment = self.payments.get(ocid)
            return {
                "requests": [{"verdict": answer, "at": at} for answer, at in self._requests[ocid]],
                "queries": self._queries[ocid],
                "payment": payment and payment.summary(),
            }

    def summary(self, *, with_payments: bool = True) -> dict[str, object]:
        """Return the book as JSON types. `with_payments=False` leaves out the long lists."""
        with self.lock:
            paid = [payment for payment in self.payments.values() if payment.state == "paid"]
            by_reference: dict[str, list[records.Payment]] = {}
            for payment in paid:
                by_reference.setdefault(_ATTEMPT_NUMBER.sub("", payment.ocid), []).append(payment)
            lists = {
                "payments": [payment.summary() for payment in self.payments.values()],
                "deposits": [deposit.summary() for deposit in self.deposits.values()],
            }
            return {
                **(lists if with_payments else {}),
                "totals": {
                    "paid_count": len(paid),
                    "paid_total": sum(payment.amount for payment in paid),
                    "by_phone": {phone: dict(paid_to) for phone, paid_to in self._by_phone.items()},
                    "float": self.utility,
                    "working": self.working,
                    "charges": f"{self.charges:.2f}",
                    "states": Counter(payment.state for payment in self.payments.values()),
                    "verdicts": {key: count for key, count in self._answers.items() if key != "opened"},
                    "queries": self._queries.total(),
                },
                "double_paid": [
                    {
                        "reference": reference,
                        "phones": sorted({payment.phone for payment in same}),
                        "receipts": [payment.receipt for payment in same],
                        "paid_total": sum(payment.amount for payment in same),
                    }
                    for reference, same in by_reference.items()
                    if len(same) > 1
                ],
            }

    # Private methods. `_write` takes the lock. `_reload` runs before other threads know the book. For any other
    # method, the caller holds the lock.

    def _failure(self, payment: records.Payment) -> str | None:
        chosen = payment.active_faults.variants.get("fail")
        if chosen:
            return chosen[0]
        if payment.amount < SMALLEST:
            return "2"
        if payment.amount > LARGEST:
            return "3"
        today = self._now().astimezone(records.NAIROBI).date().isoformat()
        if self._paid_on[payment.phone, today] + payment.amount > DAILY_LIMIT:
            return "4"
        # Charges are taken from the Charges Paid account, which may be negative. The float must cover only the amount.
        return "1" if payment.amount > self.utility else None

    def _new_receipt(self, key: str) -> str:
        for collisions in range(1_000):
            number = draws.draw(self._seed, "receipt", key, collisions)
            receipt = "".join(_ALPHABET[number // 36**place % 36] for place in range(9))
            if f"U{receipt}" not in self.by_receipt:
                return f"U{receipt}"
        raise RuntimeError("no free receipt")

    def _write(self, event: records.Event) -> None:
        with self.lock:
            event["at"] = self._now().astimezone(UTC).isoformat()
            if self._file is not None:
                # One write call per line. If the process is killed after it, the complete line is in the file.
                line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
                if os.write(self._file, line) != len(line):
                    raise OSError("the disk of the book is full")
            self._apply(event)

    def _reload(self, path: Path) -> None:
        complete = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    event = json.loads(line)
                    self._apply(event)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path} line {number} cannot be read as a line of a simulator's book") from error
                self.used_faults.extend((str(event["phone"]), text) for text in event.get("spent", ()))
                complete += len(line)
        # A process that was killed while writing leaves half a line. No answer was sent for it.
        os.truncate(path, complete)

    def _apply(self, event: Mapping[str, Any]) -> None:
        at = datetime.fromisoformat(event["at"])
        match event["event"]:
            case "opened":
                self._answers["opened"] += 1
                self.utility = event["float"]
            case "float":
                self.utility = event["float"]
            case "refused":
                self._answers[event["verdict"]] += 1
                self._requests.setdefault(event["ocid"], []).append((event["verdict"], event["at"]))
            case "accepted":
                self._answers["accepted"] += 1
                self._requests.setdefault(event["ocid"], []).append(("accepted", event["at"]))
                self.payments[event["ocid"]] = records.Payment(
                    event["ocid"],
                    event["conversation_id"],
                    event["amount"],
                    event["phone"],
                    event["request"],
                    faults.active_faults_from(event["faults"]),
                    at,
                )
            case "executed":
                self._apply_execution(self.payments[event["ocid"]], event, at)
            case "callback":
                self.payments[event["ocid"]].callbacks.append((event["kind"], event["outcome"], at))
            case "query":
                self._queries[event["key"]] += 1
            case "deposit":
                self.deposits[event["checkout_id"]] = records.Deposit(
                    event["checkout_id"],
                    event["merchant_id"],
                    event["amount"],
                    event["phone"],
                    event["callback_url"],
                    faults.active_faults_from(event["faults"]),
                    at,
                )
            case "deposit_executed":
                deposit = self.deposits[event["checkout_id"]]
                deposit.code, deposit.receipt = event["code"], event["receipt"]
                self.working += deposit.amount if deposit.code == "0" else 0
            case "deposit_callback":
                self.deposits[event["checkout_id"]].reported = True
            case unknown:
                raise ValueError(f"unknown event {unknown!r}")

    def _apply_execution(self, payment: records.Payment, event: Mapping[str, Any], at: datetime) -> None:
        payment.state, payment.code, payment.receipt = event["state"], event["code"], event["receipt"]
        payment.charge, payment.executed_at = Decimal(event["charge"]), at
        if payment.state == "paid":
            self.utility -= payment.amount
            self.charges += payment.charge
            self.by_receipt[payment.receipt] = payment
            self._paid_on[payment.phone, at.astimezone(records.NAIROBI).date().isoformat()] += payment.amount
            paid_to = self._by_phone.setdefault(payment.phone, {"count": 0, "total": 0})
            paid_to["count"] += 1
            paid_to["total"] += payment.amount
        payment.utility_after, payment.charges_after = self.utility, self.charges
