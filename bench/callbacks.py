"""Cost of the callback view, and the rate at which stored callbacks are applied."""

import argparse
import json
import statistics
import sys
import time

import django

from bench.figures import Line, Measured, Row, alternated, at_least, at_most, hand_over, median_ratio
from testing.figures import Progress


def result(ocid: str, amount: int, phone: str, receipt: str) -> bytes:
    """Return a result as M-Pesa posts it, with every parameter that M-Pesa documents."""
    values = {
        "TransactionAmount": amount,
        "TransactionReceipt": receipt,
        "B2CRecipientIsRegisteredCustomer": "Y",
        "B2CChargesPaidAccountAvailableFunds": 0,
        "ReceiverPartyPublicName": f"{phone} - JOHN DOE",
        "TransactionCompletedDateTime": "16.02.2026 10:30:05",
        "B2CUtilityAccountAvailableFunds": 10116.00,
        "B2CWorkingAccountAvailableFunds": 900000.00,
    }
    parameters = [{"Key": key, "Value": value} for key, value in values.items()]
    body = {
        "ResultType": 0,
        "ResultCode": 0,
        "ResultDesc": "The service request is processed successfully.",
        "OriginatorConversationID": ocid,
        "ConversationID": "AG_20260216_1",
        "TransactionID": receipt,
        "ResultParameters": {"ResultParameter": parameters},
    }
    return json.dumps({"Result": body}).encode()


class Bench:
    """Attempts that M-Pesa has accepted, and the results that M-Pesa posts for these attempts."""

    def __init__(self) -> None:
        from django.conf import settings
        from django.test import Client

        from payments.policy import Policy

        settings.ALLOWED_HOSTS = ["testserver"]
        self.client = Client()
        self.policy = Policy.from_settings(settings)
        self.receipts = 0

    def posts(self, count: int) -> list[tuple[str, bytes]]:
        """Make `count` attempts, and return the path and the body of the callback for each attempt."""
        from django.utils import timezone

        from bench import winners
        from payments import wiring
        from payments.mpesa import client
        from payments.payouts.sending import claims as sending_claims
        from payments.payouts.sending import responses

        winners.settlement_with_due_payouts(count)
        posts: list[tuple[str, bytes]] = []
        addresses = wiring.addresses()
        while len(posts) < count:
            claims = sending_claims.claim(at=timezone.now(), policy=self.policy, addresses=addresses, limit=500)
            if not claims:
                raise AssertionError("No payout may leave, although payouts are due.")
            answers: list[tuple[sending_claims.Claim, sending_claims.Response]] = [
                (claim, client.Accepted("AG_1", claim.originator_conversation_id)) for claim in claims
            ]
            responses.record_all(answers, at=timezone.now(), policy=self.policy)
            for claim in claims:
                self.receipts += 1
                body = result(
                    claim.originator_conversation_id, claim.amount_shillings, claim.phone_number,
                    f"SKG{self.receipts:07d}",
                )  # fmt: skip
                posts.append((f"/api/payments/b2c-callback/{claim.token}/", body))
        return posts

    def store(self, posts: list[tuple[str, bytes]]) -> float:
        """Post callbacks to the view, and return the CPU seconds of this process for each callback."""
        used = time.process_time()
        for path, body in posts:
            if self.client.post(path, body, content_type="application/json").status_code != 200:
                raise AssertionError("A callback was refused.")
        return (time.process_time() - used) / len(posts)

    def nothing(self, posts: list[tuple[str, bytes]]) -> float:
        """Post to an empty view behind the same middleware, and return the CPU seconds for each post."""
        used = time.process_time()
        for _, body in posts:
            self.client.post("/empty/", body, content_type="application/json")
        return (time.process_time() - used) / len(posts)

    def apply(self, posts: list[tuple[str, bytes]], batch: int) -> float:
        """Store callbacks, apply them in batches, and return the number applied a second."""
        self.store(posts)
        return len(posts) / self.drain(batch)

    def drain(self, batch: int) -> float:
        """Apply all stored callbacks in batches, and return the seconds it took."""
        from django.utils import timezone

        from payments.models import Callback
        from payments.payouts.evidence import callbacks

        began, last = time.monotonic(), 0
        while ids := callbacks.to_apply(after=last, limit=batch):
            last = ids[-1]
            if left := callbacks.apply_paid(callback_ids=ids, at=timezone.now(), policy=self.policy):
                raise AssertionError(f"{len(left)} plain payments were not booked in bulk.")
        took = time.monotonic() - began
        if Callback.objects.filter(applied_at=None).exists():
            raise AssertionError("Some callbacks are not applied.")
        return took

    def apply_each(self, posts: list[tuple[str, bytes]]) -> float:
        """Store callbacks, apply them one by one, and return the number applied a second."""
        from django.utils import timezone

        from payments.payouts.evidence import callbacks

        self.store(posts)
        began = time.monotonic()
        for callback_id in callbacks.to_apply(after=0, limit=len(posts)):
            callbacks.apply(callback_id=callback_id, at=timezone.now(), policy=self.policy)
        return len(posts) / (time.monotonic() - began)


def with_an_empty_view() -> None:
    """Add a view that does nothing to the project's URLs."""
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt
    from django.views.decorators.http import require_POST

    from api import urls

    @csrf_exempt
    @require_POST
    def empty(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"ResultCode": 0, "ResultDesc": "Accepted"})

    urls.urlpatterns.append(path("empty/", empty))


def main(arguments: list[str]) -> None:
    """Measure the view and the booking, and report the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args(arguments).full
    django.setup()
    with_an_empty_view()
    times, count = (9, 3_000) if full else (3, 400)
    bench, progress = Bench(), Progress("callbacks", 3 * times + 4)
    views = alternated(
        {"ours": lambda: bench.store(bench.posts(count)), "empty": lambda: bench.nothing(bench.posts(count))}, times
    )
    progress.at(2 * times)
    ratio = median_ratio(views["ours"], views["empty"])
    met, stretched = at_most(ratio, 4, 2.6)
    ours, empty = statistics.median(views["ours"]), statistics.median(views["empty"])
    rows = [
        Row(
            "C1",
            "CPU of the callback view",
            f"{ours * 1e6:.0f} µs",
            f"an empty view {empty * 1e6:.0f} µs",
            ratio,
            "≤ 4",
            "≤ 2.6",
            met,
            stretched,
            "the view runs one SQL statement and calls Redis at most 20 times a second; through Django's test client",
        )
    ]
    bench.drain(1_000)
    rates = alternated(
        {
            "in bulk": lambda: bench.apply(bench.posts(2 * count), 500),
            "each": lambda: bench.apply_each(bench.posts(count // 5)),
        },
        times,
    )
    progress.at(3 * times)
    rate, each = statistics.median(rates["in bulk"]), statistics.median(rates["each"])
    met, stretched = at_least(rate, 2_000, 20_000)
    rows.append(
        Row(
            "C2",
            "stored callbacks applied a second, in batches of 500",
            f"{rate:,.0f}/s",
            f"one by one {each:,.0f}/s",
            rate / each,
            "≥ 2,000/s",
            "≥ 20,000/s",
            met,
            stretched,
            "most of the time is spent on reading each body strictly, and on three transfers and their indexes",
        )
    )
    points = [(float(size), bench.apply(bench.posts(count), size)) for size in (10, 100, 500, 1_000)]
    line = Line(
        "callbacks", "applied a second", points, "Stored callbacks applied in batches", "in a batch", "a second"
    )
    hand_over(Measured(rows, [line]))


if __name__ == "__main__":
    main(sys.argv[1:])
