"""Callbacks: what the view costs beside an empty one, and how many stored ones are applied in a second."""

import argparse
import json
import statistics
import sys
import time

import django

from bench.figures import Line, Measured, Row, alternated, at_least, at_most, hand_over, median_ratio
from testing.figures import Progress


def result(ocid: str, amount: int, phone: str, receipt: str) -> bytes:
    """A result as M-Pesa posts it, with everything that its documentation has in it."""
    found = {
        "TransactionAmount": amount,
        "TransactionReceipt": receipt,
        "B2CRecipientIsRegisteredCustomer": "Y",
        "B2CChargesPaidAccountAvailableFunds": 0,
        "ReceiverPartyPublicName": f"{phone} - JOHN DOE",
        "TransactionCompletedDateTime": "16.02.2026 10:30:05",
        "B2CUtilityAccountAvailableFunds": 10116.00,
        "B2CWorkingAccountAvailableFunds": 900000.00,
    }
    parameters = [{"Key": key, "Value": value} for key, value in found.items()]
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
    """Attempts that M-Pesa has acknowledged, and their results."""

    def __init__(self) -> None:
        from django.conf import settings
        from django.test import Client

        from payments.policy import Policy

        settings.ALLOWED_HOSTS = ["testserver"]
        self.client = Client()
        self.policy = Policy.from_settings(settings)
        self.receipts = 0

    def posts(self, count: int) -> list[tuple[str, bytes]]:
        """So many new results, each with the address it comes to."""
        from django.utils import timezone

        from bench import winners
        from payments import wiring
        from payments.mpesa import client
        from payments.payouts.sending import claims as sending_claims
        from payments.payouts.sending import responses

        winners.due(count)
        made: list[tuple[str, bytes]] = []
        addresses = wiring.addresses()
        while len(made) < count:
            claims = sending_claims.claim(at=timezone.now(), policy=self.policy, addresses=addresses, limit=500)
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
                made.append((f"/api/payments/b2c-callback/{claim.token}/", body))
        return made

    def store(self, posts: list[tuple[str, bytes]]) -> float:
        """CPU seconds of this process for each callback that the view takes."""
        used = time.process_time()
        for path, body in posts:
            if self.client.post(path, body, content_type="application/json").status_code != 200:
                raise AssertionError("A callback was not taken")
        return (time.process_time() - used) / len(posts)

    def nothing(self, posts: list[tuple[str, bytes]]) -> float:
        """The same for a view that answers and does nothing, behind the same middleware."""
        used = time.process_time()
        for _, body in posts:
            self.client.post("/empty/", body, content_type="application/json")
        return (time.process_time() - used) / len(posts)

    def apply(self, posts: list[tuple[str, bytes]], batch: int) -> float:
        """Stored callbacks applied in a second."""
        self.store(posts)
        return len(posts) / self.drain(batch)

    def drain(self, batch: int) -> float:
        """Apply all that is stored: the seconds it took."""
        from django.utils import timezone

        from payments.models import Callback
        from payments.payouts.evidence import callbacks

        began, last = time.monotonic(), 0
        while ids := callbacks.to_apply(after=last, limit=batch):
            last = ids[-1]
            if left := callbacks.apply_paid(callback_ids=ids, at=timezone.now(), policy=self.policy):
                raise AssertionError(f"{len(left)} plain payments were not booked together")
        took = time.monotonic() - began
        if Callback.objects.filter(applied_at=None).exists():
            raise AssertionError("Callbacks are left over")
        return took

    def apply_each(self, posts: list[tuple[str, bytes]]) -> float:
        from django.utils import timezone

        from payments.payouts.evidence import callbacks

        self.store(posts)
        began = time.monotonic()
        for callback_id in callbacks.to_apply(after=0, limit=len(posts)):
            callbacks.apply(callback_id=callback_id, at=timezone.now(), policy=self.policy)
        return len(posts) / (time.monotonic() - began)


def with_an_empty_view() -> None:
    """Put a view that does nothing beside the project's own."""
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
            "one statement, and Redis twenty times a second; Django's own test client",
        )  # fmt: skip
    ]
    bench.drain(1_000)
    rates = alternated(
        {
            "together": lambda: bench.apply(bench.posts(2 * count), 500),
            "each": lambda: bench.apply_each(bench.posts(count // 5)),
        },
        times,
    )
    progress.at(3 * times)
    rate, each = statistics.median(rates["together"]), statistics.median(rates["each"])
    met, stretched = at_least(rate, 2_000, 20_000)
    rows.append(
        Row(
            "C2",
            "stored callbacks applied in a second, in batches of 500",
            f"{rate:,.0f}/s",
            f"one by one {each:,.0f}/s",
            rate / each,
            "≥ 2,000/s",
            "≥ 20,000/s",
            met,
            stretched,
            "most of it is reading each body strictly, three transfers and their indices",
        )  # fmt: skip
    )
    points = [(float(size), bench.apply(bench.posts(count), size)) for size in (10, 100, 500, 1_000)]
    line = Line(
        "callbacks", "applied a second", points, "Stored callbacks applied in batches", "in a batch", "a second"
    )
    hand_over(Measured(rows, [line]))


if __name__ == "__main__":
    main(sys.argv[1:])
