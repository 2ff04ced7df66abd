"""A start of sending takes two people above the threshold, by the sum of the payouts that wait."""

from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.conf import Settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import transaction

from payments.models import Breaker
from payments.payouts import breakers
from payments.payouts.operations import starting
from testing.builders import AT, PIN, actor, at_once, operator, payout
from testing.settlement_steps import anything
from users import audit, figures, proposals
from users.models import AuditEntry, CustomUser, Proposal

pytestmark = pytest.mark.django_db(transaction=True)
NOW = AT + timedelta(hours=1)
Cause = Breaker.Cause
ACTIONS = {Cause.SWITCH: "sending.switch_on", Cause.ORPHAN: "sending.lift"}


@pytest.fixture
def _threshold() -> None:
    with transaction.atomic():
        figures.set_value(figures.Change("threshold:sending.on", "300", AT, "Test"), by=audit.MACHINE, at=AT)


def stop(cause: Breaker.Cause, minutes: int = 0) -> None:
    at = NOW + timedelta(minutes=minutes)
    if cause == Cause.SWITCH:
        breakers.switch_off(reason="A rumour.", by=actor(operator()), at=at)
    else:
        with transaction.atomic():
            breakers.stop(cause, reason="A lost payment.", at=at)


def start(cause: Breaker.Cause, *people: CustomUser) -> Any:
    return starting.start(cause, people=[actor(person) for person in people], reason="Looked at.", at=NOW)


def approve(made: proposals.Proposed, by: CustomUser) -> Any:
    return proposals.approve(
        proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor(by), at=NOW,
        acts=starting.procedures(),
    )  # fmt: skip


def is_stopped(cause: Breaker.Cause) -> bool:
    return Breaker.objects.filter(cause=cause, opened_at__isnull=False).exists()


@pytest.mark.usefixtures("_threshold")
@pytest.mark.parametrize("cause", ACTIONS)
def test_start_above_the_threshold_takes_a_second_person(cause: Breaker.Cause) -> None:
    # given
    first, second = operator(), operator()
    payout(200)
    payout(101)
    stop(cause)

    # when
    made = start(cause, first)

    # then
    assert isinstance(made, proposals.Proposed)
    assert (is_stopped(cause), Proposal.objects.get().amount) == (True, 301)
    for refused, person in ((proposals.ProposerCannotApprove, first), (proposals.ProposalWaits, None)):
        with pytest.raises(refused):
            approve(made, person) if person else start(cause, second)

    # when: more payouts wait meanwhile, and the second person approves
    payout(50_000)
    done = approve(made, second)

    # then
    assert (done, is_stopped(cause)) == (starting.Started(cause), False)
    trail = AuditEntry.objects.filter(action=ACTIONS[cause], subject=f"breaker:{cause}").order_by("number")
    assert list(trail.values_list("actor", flat=True)) == [first.pk, second.pk]


@pytest.mark.usefixtures("_threshold")
def test_starts_of_one_person_count_together_for_a_day() -> None:
    first, other = operator(), operator()
    payout(200)
    for cause in (Cause.SWITCH, Cause.ORPHAN):
        stop(cause)
    assert start(Cause.SWITCH, first) == starting.Started(Cause.SWITCH)
    assert isinstance(start(Cause.ORPHAN, first), proposals.Proposed)
    Proposal.objects.update(state="REJECTED")
    assert start(Cause.ORPHAN, other) == starting.Started(Cause.ORPHAN)


@pytest.mark.usefixtures("_threshold")
def test_approval_does_not_end_a_later_stop() -> None:
    # given: a proposal about a stop that two people ended by the command
    first, second = operator(), operator()
    payout(301)
    stop(Cause.SWITCH)
    made = start(Cause.SWITCH, first)
    start(Cause.SWITCH, first, second)
    assert (is_stopped(Cause.SWITCH), Proposal.objects.get().state) == (False, "STALE")

    # when: another stop, and a proposal from before it
    stop(Cause.SWITCH, minutes=1)
    made = start(Cause.SWITCH, first)
    Breaker.objects.filter(cause=Cause.SWITCH).update(opened_at=NOW + timedelta(minutes=2))

    # then
    with pytest.raises(proposals.PreviewMoved):
        approve(made, second)
    assert is_stopped(Cause.SWITCH)


@pytest.mark.usefixtures("_threshold")
def test_approvals_at_once_start_once() -> None:
    payout(301)
    stop(Cause.SWITCH)
    made = start(Cause.SWITCH, operator())
    answers = at_once(*[partial(approve, made, operator()) for _ in range(4)])
    assert sorted(type(answer).__name__ for answer in answers) == ["ProposalDecided"] * 3 + ["Started"]
    assert AuditEntry.objects.filter(action="sending.switch_on").count() == 2


def test_without_a_threshold_one_person_is_enough() -> None:
    payout(240_000)
    stop(Cause.SWITCH)
    assert start(Cause.SWITCH, operator()) == starting.Started(Cause.SWITCH)


def test_command_in_production_starts_only_with_a_person(settings: Settings) -> None:
    settings.PRODUCTION = True
    stop(Cause.SWITCH)
    with pytest.raises(CommandError, match="Name who starts the sending"):
        call_command("sending", "on", stdout=StringIO())
    assert is_stopped(Cause.SWITCH)


@pytest.mark.usefixtures("_threshold")
def test_command_starts_only_with_people_and_above_the_threshold_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setattr("getpass.getpass", lambda prompt: PIN)
    first, second = operator(), operator()
    payout(301)
    stop(Cause.SWITCH)

    # when, then
    for by, words in (([], "takes members of staff"), ([first], "need two people"), ([first] * 2, "waits")):
        with pytest.raises(CommandError, match=words):
            call_command("sending", "on", by=[person.phone_number for person in by], stdout=StringIO())
        assert is_stopped(Cause.SWITCH)
    call_command("sending", "on", by=[first.phone_number, second.phone_number], stdout=StringIO())
    assert (is_stopped(Cause.SWITCH), Proposal.objects.get().state) == (False, "STALE")
    trail = AuditEntry.objects.filter(action="sending.switch_on").order_by("number")
    assert list(trail.values_list("actor", "source")) == [(first.pk, "command"), (second.pk, "command")]
