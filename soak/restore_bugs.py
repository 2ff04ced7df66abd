"""Planted bugs in the procedure after a restore. The drill must find each of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

from payments.models import Attempt
from payments.payouts import breakers, eligibility
from payments.payouts.restores import changes, detection, listing
from soak.simulation.planting import instead_of

BUGS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]]]] = {}


def bug(name: str, drill: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Register the decorated generator as a planted bug, with the name of the drill that finds it."""

    def add(plant: Callable[[], Iterator[None]]) -> None:
        BUGS[name] = (drill, contextmanager(plant))

    return add


@bug("no stop after a restore", "long_loss")
def _() -> Iterator[None]:
    with instead_of(breakers, "stop", lambda *_, **__: None):
        yield


@bug("the last surviving heartbeat ignored", "long_loss")
def _() -> Iterator[None]:
    original = changes.open_in_doubt

    def open_now(payouts: Any, *, maybe_sent_at: Any, at: datetime, **more: Any) -> None:
        original(payouts, maybe_sent_at=dict.fromkeys(maybe_sent_at, at), at=at, **more)
        Attempt.objects.filter(asked_first_at=at).update(first_sent_at=at)

    with instead_of(changes, "open_in_doubt", open_now), instead_of(breakers, "stop", lambda *_, **__: None):
        yield


@bug("only the requests in flight asked about", "long_loss")
def _() -> Iterator[None]:
    with instead_of(detection, "_most_unseen", lambda survived_at, stopped_at, policy: policy.in_flight):
        yield


@bug("settlements made again not asked about", "long_loss")
def _() -> Iterator[None]:
    with instead_of(listing, "list_settlement", lambda **_: None):
        yield


@bug("copies of the heartbeat ignored", "short_loss")
def _() -> Iterator[None]:
    with instead_of(detection, "_sign_of_loss", lambda *_: ""):
        yield


@bug("later requests not asked about", "short_loss")
def _() -> Iterator[None]:
    with instead_of(eligibility, "is_unasked", lambda payout: False):
        yield
