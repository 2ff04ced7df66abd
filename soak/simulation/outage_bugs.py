"""Planted bugs in breakers and canary, which an outage at pace finds (`outages`)."""

from collections.abc import Iterator
from datetime import datetime

from payments.models import Attempt
from payments.mpesa import gateway_errors
from payments.payouts import outcomes
from payments.payouts.sending import canary
from payments.payouts.sending.answers import Answers
from soak.simulation import outages
from soak.simulation.outages import Outage
from soak.simulation.planting import Catalogue, instead_of

BUGS = Catalogue()
State = Attempt.State


@BUGS.bug(
    "newest requests judged instead of outcomes",
    "D9: breakers judge the latest requests that have an outcome",
    {"no results": 1.0},
    simulate=outages.run,
)
def _(outage: Outage) -> Iterator[None]:
    def latest(*, since: datetime | None, at: datetime, window: int) -> outcomes.Latest:
        newest = Attempt.objects.filter(posted_at__gt=since) if since else Attempt.objects.all()
        states = list(newest.order_by("-pk").values_list("state", flat=True)[:window])
        return outcomes.Latest(len(states), states.count(State.IN_DOUBT), states.count(State.FAILED))

    with instead_of(outcomes, "latest", latest):
        yield


@BUGS.bug(
    "silence does not pause sending",
    "D9: while the oldest request waits too long for an answer, only probes leave",
    {"silent": 1.0},
    simulate=outages.run,
)
def _(outage: Outage) -> Iterator[None]:
    def silence(self: Answers, at: float) -> float | None:
        return None

    with instead_of(Answers, "silence", silence):
        yield


@BUGS.bug(
    "canary hands on the place of a failed payout",
    "D9: a canary that ends badly stops its release",
    {"failing": 1.0},
    simulate=outages.run,
)
def _(outage: Outage) -> Iterator[None]:
    with instead_of(canary._Members, "stop_reason", ""):
        yield


@BUGS.bug(
    "refusal of our field read as the member's",
    "D4: a fault of ours fails no winner",
    {"refused": 1.0},
    simulate=outages.run,
)
def _(outage: Outage) -> Iterator[None]:
    with instead_of(gateway_errors.Rejected, "our_fault", None):
        yield
