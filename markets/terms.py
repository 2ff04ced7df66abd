"""Terms of a market: the rules that a bet is placed under, their versions, and changes.

Before the first bet one person may change the terms. After it a change is a decision of two people, and members get a
notice: until its end betting is suspended, and they may take back the stakes that they made under older versions. The
settlement follows the version that is in force at the close. After the close nothing changes.
Triggers hold the same rules (migration 0006_terms).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction

from markets import locks, lookalikes, stakeholders
from markets.models import NAIROBI, Bet, Market, Outcome, Terms
from users import audit
from users.refusal import Refusal

LABELS = {
    "question": "Question",
    "description": "Description",
    "source": "Source of the answer",
    "outcomes": "Outcomes",
    "platform_fee_pct": "Platform fee",
    "end_date": "Close",
}
LONGEST = {"question": 500, "description": 10_000, "source": 500}
LONGEST_OUTCOME = 120
MOST_OUTCOMES = 200


class BadTerms(Refusal):
    """The terms break a rule. `details` has a sentence for each wrong field."""

    def __init__(self, details: Mapping[str, str]) -> None:
        field, sentence = next(iter(details.items()))
        super().__init__(f"{LABELS.get(field, field)}: {sentence}")
        self.details = dict(details)


class TermsFixed(Refusal):
    """The market is closed or decided, so its terms do not change."""


class SecondPersonNeeded(Refusal):
    """Members have bet on the terms, so two members of staff must decide the change."""


class NoticeRunning(Refusal):
    """Members may still take back stakes after a change of terms, so nothing else about the market is decided."""


class TermsMoved(Refusal):
    """The terms have changed since the person saw them. Nothing was changed."""


@dataclass(frozen=True)
class Draft:
    """The terms of a market as a person writes them. The fee is in percent of the pool."""

    question: str
    outcomes: tuple[str, ...]
    platform_fee_pct: Decimal
    end_date: datetime
    description: str = ""
    source: str = ""


@dataclass(frozen=True)
class Difference:
    """One field of the terms that a version changed, with its values in words."""

    field: str
    before: str
    after: str

    @property
    def label(self) -> str:
        return LABELS[self.field]


@dataclass(frozen=True)
class Version:
    """One version of a market's terms, with the differences from the version before it."""

    terms: Terms
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Changed:
    """A change of terms. `notice_until` is None if nobody had bet. Without differences nothing was changed."""

    market_id: int
    version: int
    notice_until: datetime | None
    differences: tuple[Difference, ...]


# --- rules of one draft ----------------------------------------------------------------------------------------------


def tidy(draft: Draft) -> Draft:
    """Return the draft without blanks around its texts, and with single blanks in outcomes and question."""
    return replace(
        draft,
        question=" ".join(draft.question.split(" ")).strip(),
        description=draft.description.replace("\r\n", "\n").strip(),
        source=draft.source.strip(),
        outcomes=tuple(" ".join(name.split(" ")).strip() for name in draft.outcomes),
    )


def check(draft: Draft, *, at: datetime) -> None:
    """Refuse terms that a person could misread, and a close that has passed.

    Raises: BadTerms.
    """
    wrong: dict[str, str] = {}
    for name, most in LONGEST.items():
        text = getattr(draft, name)
        if name == "question" and not text:
            wrong[name] = "please write the question."
        elif len(text) > most:
            wrong[name] = f"at most {most:,} characters."
        elif hidden := lookalikes.hidden_character(text, lines=name == "description"):
            wrong[name] = f"has a character that nobody sees ({hidden.lower()}). Type the text again."
    if problem := _problem_of_outcomes(draft.outcomes):
        wrong["outcomes"] = problem
    fee = draft.platform_fee_pct
    if not 0 <= fee <= 100 or fee != round(fee, 2):
        wrong["platform_fee_pct"] = "a percentage from 0 to 100 with at most two decimals."
    if draft.end_date <= at:
        wrong["end_date"] = "the close must lie in the future."
    if wrong:
        raise BadTerms(wrong)


def _problem_of_outcomes(outcomes: tuple[str, ...]) -> str:
    if not 2 <= len(outcomes) <= MOST_OUTCOMES:
        return f"a market has 2 to {MOST_OUTCOMES} outcomes."
    for name in outcomes:
        if not name or len(name) > LONGEST_OUTCOME:
            return f"each outcome has 1 to {LONGEST_OUTCOME} characters."
        if hidden := lookalikes.hidden_character(name):
            return f"an outcome has a character that nobody sees ({hidden.lower()}). Type it again."
        if foreign := lookalikes.foreign_character(name):
            return f"“{name}” has the character “{foreign}”. Use Latin letters and ASCII digits only."
    if pair := lookalikes.alike(outcomes):
        return f"“{pair[0]}” and “{pair[1]}” look alike. Members could take one for the other."
    return ""


def of(market: Market) -> Draft:
    """Return the terms of a market that are in force."""
    return Draft(
        question=market.question,
        description=market.description,
        source=market.source,
        outcomes=tuple(market.outcomes.order_by("pk").values_list("name", flat=True)),
        platform_fee_pct=market.platform_fee_pct,
        end_date=market.end_date,
    )


def in_words(field: str, value: Any) -> str:
    """Return one value of the terms in words, with the close in Nairobi time."""
    if field == "end_date":
        return value.astimezone(NAIROBI).strftime("%d %b %Y, %H:%M")
    if field == "platform_fee_pct":
        return f"{value:.2f} %"
    return ", ".join(value) if field == "outcomes" else str(value)


def differences(before: Draft, after: Draft) -> tuple[Difference, ...]:
    """Return the fields that differ between two drafts, in the order of LABELS."""
    return tuple(
        Difference(name, in_words(name, getattr(before, name)), in_words(name, getattr(after, name)))
        for name in LABELS
        if getattr(before, name) != getattr(after, name)
    )


# --- versions --------------------------------------------------------------------------------------------------------


def record(market: Market, *, made_by: int | None, at: datetime, **more: Any) -> Terms:
    """Write the row of a market's version `market.terms_version`, from the market's columns and outcomes."""
    return _insert(market, of(market), version=market.terms_version, made_by_id=made_by, made_at=at, **more)


def versions(market: Market) -> list[Version]:
    """Return the versions of a market's terms, the newest first."""
    rows = list(market.terms.select_related("made_by", "approved_by").order_by("version"))
    drafts = [draft_of(row) for row in rows]
    before = [None, *drafts[:-1]]
    pairs = zip(rows, before, drafts, strict=True)
    return [Version(row, () if earlier is None else differences(earlier, draft)) for row, earlier, draft in pairs][::-1]


def differences_of(version: Terms) -> tuple[Difference, ...]:
    """Return the differences of a version from the one before it."""
    earlier = Terms.objects.filter(market=version.market_id, version=version.version - 1).first()
    return () if earlier is None else differences(draft_of(earlier), draft_of(version))


def running_notice(market: Market, *, at: datetime) -> Version | None:
    """Return the version whose notice runs at `at`, with its differences, or None."""
    if not notice_runs(market, at=at):
        return None
    version = market.terms.get(version=market.terms_version)
    return Version(version, differences_of(version))


def notice_runs(market: Market, *, at: datetime) -> bool:
    """Return True while members may take back stakes made under older terms."""
    return market.take_back_until is not None and market.take_back_until > at


def refuse_during_notice(market: Market, *, at: datetime) -> None:
    """Refuse a decision while members may take back stakes. Raises: NoticeRunning."""
    if market.take_back_until is not None and market.take_back_until > at:
        raise NoticeRunning(
            f"Until {in_words('end_date', market.take_back_until)} members may take back stakes, because the terms of"
            f" market {market.pk} changed. Until then the market may only be voided."
        )


# --- changes ---------------------------------------------------------------------------------------------------------


def change(
    *,
    market_id: int,
    draft: Draft,
    seen_version: int,
    reason: str,
    by: audit.Actor,
    approved_by: audit.Actor | None,
    at: datetime,
    notice: timedelta,
) -> Changed:
    """Change the terms of an open market.

    `by` proposes the change, and `approved_by` is the second person, whom a market with bets needs. `seen_version` is
    the version that the first person saw.
    Idempotent: terms that are in force already are not changed again.
    Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound; BadTerms; TermsFixed; TermsMoved; SecondPersonNeeded; NoticeRunning;
    stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        return apply(
            market,
            draft,
            seen_version=seen_version,
            reason=reason,
            by=by,
            approved_by=approved_by,
            at=at,
            notice=notice,
        )


def apply(
    market: Market,
    draft: Draft,
    *,
    seen_version: int,
    reason: str,
    by: audit.Actor,
    approved_by: audit.Actor | None,
    at: datetime,
    notice: timedelta,
) -> Changed:
    """Change the terms of a market that the caller has locked, in the caller's transaction. See `change`.

    Call it last: its audit entry locks the end of the audit trail.
    """
    draft, before = tidy(draft), of(market)
    changed = differences(before, draft)
    if not changed:
        return Changed(market.pk, market.terms_version, None, ())
    has_bets = bets_exist(market)
    for person in (by, approved_by or by):
        stakeholders.refuse_stakeholders(market, person)
    check_change(market, draft, seen_version=seen_version, has_bets=has_bets, at=at, notice=notice)
    if has_bets and (approved_by is None or approved_by.user_id == by.user_id):
        raise SecondPersonNeeded(
            f"Members have bet on market {market.pk}, so a second member of staff must approve the change."
            " Nothing was changed."
        )
    if not market.terms.filter(version=market.terms_version).exists():
        # The market was made without the service. Its columns are its first version.
        _insert(market, before, version=market.terms_version, made_at=market.created_at, made_by_id=None)
    if not has_bets:
        _replace_outcomes(market, draft.outcomes)
    made = _insert(
        market,
        draft,
        version=market.terms_version + 1,
        made_by_id=by.user_id,
        approved_by_id=approved_by.user_id if approved_by else None,
        made_at=at,
        reason=reason[:300],
        notice_until=at + notice if has_bets else None,
    )
    market.terms_version = made.version
    columns = ["terms_version", "question", "description", "source", "platform_fee_pct", "end_date"]
    for column in columns[1:]:
        setattr(market, column, getattr(draft, column))
    if has_bets:
        market.take_back_until = made.notice_until
        columns.append("take_back_until")
    market.save(update_fields=columns)
    audit.record(
        action="market.change",
        by=approved_by or by,
        subject=f"market:{market.pk}",
        before={"version": made.version - 1, **{each.field: each.before for each in changed}},
        after={
            "version": made.version,
            **{each.field: each.after for each in changed},
            "notice_until": made.notice_until,
            "proposed_by": by.user_id if approved_by else None,
        },
        at=at,
        reason=reason,
    )
    return Changed(market.pk, made.version, made.notice_until, changed)


def check_change(
    market: Market, draft: Draft, *, seen_version: int, has_bets: bool, at: datetime, notice: timedelta
) -> None:
    """Refuse a change that the market cannot take now.

    Raises: BadTerms; TermsFixed; TermsMoved; NoticeRunning.
    """
    if market.status != Market.Status.OPEN or market.end_date <= at:
        raise TermsFixed(
            f"Market {market.pk} takes no more bets, so its terms do not change. Void it if they were wrong."
        )
    refuse_during_notice(market, at=at)
    if seen_version != market.terms_version:
        raise TermsMoved(
            f"The terms of market {market.pk} have changed since you opened the page. Nothing was changed. Look again."
        )
    check(draft, at=at)
    if not has_bets:
        return
    if draft.outcomes != of(market).outcomes:
        raise BadTerms({"outcomes": "members have bet, so an outcome can only be scratched."})
    if draft.end_date <= at + notice:
        raise BadTerms(
            {"end_date": f"the close must come after the notice, which ends {in_words('end_date', at + notice)}."}
        )


def bets_exist(market: Market) -> bool:
    """Return True if somebody has bet on the market, also if the stake was taken back."""
    return Bet.objects.filter(market=market).exists()


def may_take_back(market: Market, bet: Bet, *, at: datetime) -> bool:
    """Return True if the member may take back the stake of this bet at `at`."""
    scratched = market.outcomes.filter(name=bet.outcome, scratched_at__isnull=False).exists()
    return (
        bet.result == Bet.Result.PENDING
        and bet.taken_back_at is None
        and bet.terms_version < market.terms_version
        and market.status in (Market.Status.OPEN, Market.Status.CLOSED)
        and notice_runs(market, at=at)
        and not scratched
    )


def _replace_outcomes(market: Market, names: tuple[str, ...]) -> None:
    """Make the outcomes of a market without bets those of `names`, in their order."""
    if of(market).outcomes == names:
        return
    market.outcomes.all().delete()
    Outcome.objects.bulk_create([Outcome(market=market, name=name) for name in names])


def _insert(market: Market, draft: Draft, *, version: int, **more: Any) -> Terms:
    values = {field.name: getattr(draft, field.name) for field in fields(Draft)}
    values["outcomes"] = list(draft.outcomes)
    return Terms.objects.create(market=market, version=version, **values, **more)


def draft_of(row: Terms) -> Draft:
    """Return the terms that a version holds."""
    values = {field.name: getattr(row, field.name) for field in fields(Draft)}
    return Draft(**{**values, "outcomes": tuple(row.outcomes)})
