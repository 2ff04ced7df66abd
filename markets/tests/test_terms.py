"""Tests of markets/terms.py: changes before and after the first bet, and changes that PostgreSQL refuses."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from markets import lifecycle, locks, stakeholders, terms
from markets.models import Bet, Market, Outcome, Terms
from testing import builders, database
from testing.builders import actor, bet, market, member, operator, orm_bet
from users.models import AuditEntry, CustomUser

NOTICE = timedelta(hours=24)


def draft(**changes: Any) -> terms.Draft:
    written = terms.Draft(
        question="Will it rain tomorrow?",
        outcomes=("Yes", "No"),
        platform_fee_pct=Decimal("5.00"),
        end_date=builders.FAR,
        description="At Dagoretti.",
        source="meteo.go.ke",
    )
    return replace(written, **changes)


def created(by: CustomUser | None = None) -> Market:
    return lifecycle.create(draft=draft(), category="Weather", by=actor(by or operator()), at=timezone.now())


def change(of: Market, *, approved: bool = True, at: datetime | None = None, **changes: Any) -> terms.Changed:
    of.refresh_from_db()
    return terms.change(
        market_id=of.pk,
        draft=replace(terms.of(of), **changes),
        seen_version=of.terms_version,
        reason="The fee was mistyped.",
        by=actor(operator()),
        approved_by=actor(operator()) if approved else None,
        at=at or timezone.now(),
        notice=NOTICE,
    )


def refused_by_database(match: str, model: Any, pk: int, **values: Any) -> None:
    with pytest.raises(IntegrityError, match=match), transaction.atomic():
        model.objects.filter(pk=pk).update(**values)


# --- one draft -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"question": "  "}, "question"),
        ({"question": "Will it\u200b rain?"}, "question"),
        ({"question": "x" * 501}, "question"),
        ({"description": "Read\u202e this."}, "description"),
        ({"source": "meteo\x00"}, "source"),
        ({"outcomes": ("Yes",)}, "outcomes"),
        ({"outcomes": ("Yes", "yes")}, "outcomes"),
        ({"outcomes": ("Yes", "Yеs")}, "outcomes"),
        ({"outcomes": ("Yes", "")}, "outcomes"),
        ({"outcomes": ("Yes", "N" * 121)}, "outcomes"),
        ({"platform_fee_pct": Decimal("100.01")}, "platform_fee_pct"),
        ({"platform_fee_pct": Decimal("5.001")}, "platform_fee_pct"),
        ({"end_date": builders.AT}, "end_date"),
    ],
)
def test_terms_that_mislead_are_refused_at_their_field(db: None, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(terms.BadTerms) as refusal:
        lifecycle.create(draft=draft(**changes), category="", by=actor(operator()), at=timezone.now())
    assert list(refusal.value.details) == [field]
    assert Market.objects.count() == 0


def test_created_market_has_version_1_and_an_entry(db: None) -> None:
    market = created()
    assert market.outcome_names == ("Yes", "No")
    assert [(row.version, row.question) for row in market.terms.all()] == [(1, "Will it rain tomorrow?")]
    assert AuditEntry.objects.get().action == "market.create"


# --- before the first bet --------------------------------------------------------------------------------------------


def test_one_person_changes_terms_that_nobody_has_bet_on(db: None) -> None:
    market = created()
    changed = change(market, approved=False, question="Will it rain?", outcomes=("Rain", "Sun", "Clouds"))
    market.refresh_from_db()
    assert (changed.version, changed.notice_until, market.take_back_until) == (2, None, None)
    assert (market.question, market.outcome_names) == ("Will it rain?", ("Rain", "Sun", "Clouds"))
    assert [each.label for each in changed.differences] == ["Question", "Outcomes"]


def test_terms_that_are_in_force_are_not_changed_again(db: None) -> None:
    market = created()
    assert change(market, approved=False).differences == ()
    assert market.terms.count() == 1


def test_market_made_by_the_orm_gets_its_first_version_with_its_first_change(db: None) -> None:
    rain = market()
    change(rain, approved=False, question="Will it rain?")
    assert list(rain.terms.order_by("version").values_list("version", "question")) == [
        (1, "Will it rain tomorrow?"),
        (2, "Will it rain?"),
    ]


def test_change_of_a_version_that_the_person_did_not_see_is_refused(db: None) -> None:
    market = created()
    change(market, approved=False, question="Will it rain?")
    with pytest.raises(terms.TermsMoved):
        terms.change(
            market_id=market.pk,
            draft=draft(),
            seen_version=1,
            reason="",
            by=actor(operator()),
            approved_by=None,
            at=timezone.now(),
            notice=NOTICE,
        )


# --- after the first bet ---------------------------------------------------------------------------------------------


def test_one_person_cannot_change_terms_that_members_have_bet_on(db: None) -> None:
    market = created()
    bet(market, member(100))
    with pytest.raises(terms.SecondPersonNeeded):
        change(market, approved=False, platform_fee_pct=Decimal(4))
    market.refresh_from_db()
    assert (market.terms_version, market.platform_fee_pct) == (1, Decimal("5.00"))


def test_second_person_must_be_another_one(db: None) -> None:
    market, person = created(), actor(operator())
    bet(market, member(100))
    with pytest.raises(terms.SecondPersonNeeded):
        terms.change(
            market_id=market.pk,
            draft=draft(source="kmd.go.ke"),
            seen_version=1,
            reason="",
            by=person,
            approved_by=person,
            at=timezone.now(),
            notice=NOTICE,
        )


def test_change_after_a_bet_suspends_betting_for_the_notice(db: None) -> None:
    # given
    market, at = created(), timezone.now()
    before = bet(market, member(100), at=at)

    # when
    changed = change(market, at=at, platform_fee_pct=Decimal(4))

    # then
    market.refresh_from_db()
    assert changed.notice_until == market.take_back_until == at + NOTICE
    assert (market.terms_version, market.status, before.terms_version) == (2, "OPEN", 1)
    with pytest.raises(locks.MarketNotOpen, match="suspended"):
        bet(market, member(100), at=at + timedelta(hours=23))
    with pytest.raises(IntegrityError, match="suspended"), transaction.atomic():
        orm_bet(market, member())
    entry = AuditEntry.objects.order_by("-number")[0]
    assert entry.action == "market.change"
    assert '"platform_fee_pct":"4.00 %"' in entry.after


def test_bet_after_the_notice_has_the_new_version(db: None) -> None:
    # given: the terms changed two days ago
    market, at = created(), timezone.now()
    Market.objects.filter(pk=market.pk).update(created_at=at - timedelta(days=3))
    first = bet(market, member(100), at=at - timedelta(days=3))
    change(market, at=at - timedelta(days=2), source="kmd.go.ke")

    # when: one bet by the service, one by the ORM, and two in bulk with a wrong version
    second, third = bet(market, member(100), at=at), orm_bet(market, member())
    Bet.objects.bulk_create(
        [Bet(market=market, user=member(), outcome="No", amount=1, terms_version=version) for version in (1, 9)]
    )

    # then
    first.refresh_from_db()
    third.refresh_from_db()
    assert (first.terms_version, second.terms_version, third.terms_version) == (1, 2, 2)
    assert set(Bet.objects.exclude(pk=first.pk).values_list("terms_version", flat=True)) == {2}


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"outcomes": ("Yes", "No", "Perhaps")}, "only be scratched"), ({"end_date": None}, "after the notice")],
)
def test_after_a_bet_outcomes_stay_and_the_close_follows_the_notice(
    db: None, changes: dict[str, Any], match: str
) -> None:
    market, at = created(), timezone.now()
    bet(market, member(100), at=at)
    if "end_date" in changes:
        changes = {"end_date": at + NOTICE}
    with pytest.raises(terms.BadTerms, match=match):
        change(market, at=at, **changes)


def test_terms_of_an_ended_or_closed_market_do_not_change(db: None) -> None:
    closed, ended = created(), market(end_date="2026-02-17")
    lifecycle.close(market_id=closed.pk, reason="Over.", by=actor(operator()), at=timezone.now())
    for fixed in (closed, ended):
        with pytest.raises(terms.TermsFixed):
            change(fixed, end_date=builders.FAR + timedelta(days=1))


def test_second_change_waits_for_the_end_of_the_notice(db: None) -> None:
    market, at = created(), timezone.now()
    bet(market, member(100), at=at)
    change(market, at=at, source="kmd.go.ke")
    with pytest.raises(terms.NoticeRunning):
        change(market, at=at + timedelta(hours=1), source="bbc.co.uk")


def test_staff_with_a_stake_do_not_change_the_terms(db: None) -> None:
    market, at, staff = created(), timezone.now(), operator(balance=100)
    bet(market, staff, at=at)
    with pytest.raises(stakeholders.StakeInMarket):
        terms.change(
            market_id=market.pk,
            draft=draft(source="kmd.go.ke"),
            seen_version=1,
            reason="",
            by=actor(operator()),
            approved_by=actor(staff),
            at=at,
            notice=NOTICE,
        )


@pytest.mark.parametrize("rule", ["WINNER", "VOID"])
def test_market_is_only_voided_during_a_notice(db: None, rule: Any) -> None:
    market, at = created(), timezone.now()
    bet(market, member(100), at=at)
    change(market, at=at, source="kmd.go.ke")
    if rule == "VOID":
        builders.resolve(market, rule="VOID", at=at)
        builders.settle(market, at=at)
        assert market.status == "VOID"
        return
    with pytest.raises(terms.NoticeRunning):
        builders.resolve(market, at=at)
    with pytest.raises(terms.NoticeRunning):
        lifecycle.close(market_id=market.pk, reason="Over.", by=actor(operator()), at=at)


# --- rows that PostgreSQL refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"question": "Will it snow?"},
        {"description": "At the coast."},
        {"source": "elsewhere"},
        {"platform_fee_pct": 50},
        {"end_date": builders.FAR + timedelta(days=1)},
        {"terms_version": 2},
        {"terms_version": 2, "platform_fee_pct": 50},
    ],
)
def test_database_refuses_changed_terms_after_a_bet(db: None, values: dict[str, Any]) -> None:
    rain = market()
    orm_bet(rain, member())
    refused_by_database("are not changed", Market, rain.pk, **values)


def test_database_refuses_an_earlier_close_in_production(db: None) -> None:
    rain = market()
    with database.in_production(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO markets_terms (market_id, version, question, description, source, outcomes,"
            " platform_fee_pct, end_date, reason, made_at, told_up_to)"
            " SELECT id, 1, question, '', '', '[]', 5, end_date, '', now(), 0 FROM markets_market"
        )
        refused_by_database("need a new version", Market, rain.pk, end_date=timezone.now())


def test_database_refuses_a_close_that_moves_later_once_passed(db: None) -> None:
    ended = market(end_date="2026-02-17")
    orm_bet(ended, member())
    refused_by_database("never moves later", Market, ended.pk, end_date=builders.FAR)


def test_database_opens_no_market_that_was_closed_for_good(db: None) -> None:
    market = created()
    lifecycle.close(market_id=market.pk, reason="Over.", by=actor(operator()), at=timezone.now())
    refused_by_database("not opened again", Market, market.pk, status="OPEN")
    refused_by_database("not opened again", Market, market.pk, closed_at=None)


def test_database_refuses_changes_of_versions_and_outcomes(db: None) -> None:
    market = created()
    bet(market, member(100))
    refused_by_database("not changed", Terms, market.terms.get().pk, question="Will it snow?")
    refused_by_database("only scratched", Outcome, market.outcomes.get(name="No").pk, name="Nope")
    for attempt in (
        lambda: Outcome.objects.create(market=market, name="Perhaps"),
        lambda: market.outcomes.filter(name="No").delete(),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            attempt()
    with pytest.raises(IntegrityError), transaction.atomic(), database.as_owner():
        market.terms.all().delete()


def test_database_refuses_a_decision_during_a_notice(db: None) -> None:
    market, at = created(), timezone.now()
    bet(market, member(100), at=at)
    change(market, at=at, source="kmd.go.ke")
    Market.objects.filter(pk=market.pk).update(status="CLOSED")
    refused_by_database("it is only voided", Market, market.pk, status="RESOLVED")


def test_database_keeps_the_terms_of_a_bet_and_the_notice(db: None) -> None:
    market, at = created(), timezone.now()
    placed = bet(market, member(100), at=at)
    refused_by_database("keeps the terms", Bet, placed.pk, terms_version=2)
    refused_by_database("notice of a change of terms is not moved", Market, market.pk, take_back_until=at + NOTICE)


def test_terms_of_a_market_without_bets_are_free_in_a_shell(db: None) -> None:
    rain = market(end_date="2026-02-17")
    rain.question, rain.end_date = "Will it snow?", builders.FAR
    rain.save()
    assert Market.objects.get().question == "Will it snow?"
