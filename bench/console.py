"""Server time and queries of each console page, on a large database.

The database has up to a million bets and 300,000 transactions. `python -m bench.console [--full]` runs on the database
that `python -m bench` made. The console's URL patterns give the list of pages. If a page has no example address, this
module stops and reports no figures. Caches are emptied before each visit, so every visit is like a first visit.
A streamed file is timed until its first piece.
"""

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import django

from bench.figures import Measured, Row, hand_over
from testing.figures import say

SECONDS_LIMIT, SECONDS_GOAL = 0.300, 0.150
VISITS = 5
QUERIES_GOAL = 30
LONGEST_INVARIANT = 5.0
# Not visited: these URLs accept only POST, or only redirect, or serve form widgets.
NOT_PAGES = {
    "logout",
    "password_change",
    "password_change_done",
    "autocomplete",
    "jsi18n",
    "view_on_site",
    "app_list",
    "search",
    "auth_user_password_change",
    "toggle_sidebar",
    "api_key_revoke",  # The bench makes no API key.
    "limbo",  # A former address, which redirects to in_doubt.
}


@dataclass(frozen=True)
class Cost:
    """Cost of one address: the medians of its visits, and its longest query.

    Units: seconds. `in_database` is the part of `seconds` that was spent in queries.
    """

    seconds: float
    in_database: float
    queries: int
    longest: str


def examples(month: Any) -> dict[str, list[str]]:
    """Return example addresses by page name. They include the most expensive addresses.

    A page that `_expensive` does not name has one address, with the row of each kind that its path asks for.
    Raises: KeyError if a path asks for a row of a kind that is new here.
    """
    from django.urls import reverse

    from api.console import site

    rows = _rows(month)
    addresses = {}
    for module in site.PAGES:
        for pattern in module.urls:
            if pattern.name in NOT_PAGES:
                continue
            arguments = [rows[name] for name in pattern.pattern.converters]
            addresses[pattern.name] = [reverse(f"admin:{pattern.name}", args=arguments)]
    addresses |= {name: [reverse(f"admin:{name}")] for name in ("index", "records", "login", "second_factor")}
    return addresses | _expensive(month, rows) | of_records()


def _rows(month: Any) -> dict[str, Any]:
    """Return the row that an address shows, by the name of its place in the path."""
    from payments.models import LedgerAccount, Transaction

    return {
        "market_id": month.market_with_most_bets.pk,
        "member_id": month.member.pk,
        "transaction_id": _payout(status="FAILED"),
        "proposal_id": month.proposal.pk,
        "dispute_id": month.dispute.public_id,
        "account_id": LedgerAccount.objects.get(code="payable").pk,
        "recovery_id": month.recovery.pk,
        "settlement_id": Transaction.objects.filter(settlement__isnull=False)[0].settlement_id,
        "cause": "orphan",
        "name": "minimum_stake",
    }


def _payout(**having: Any) -> int:
    from payments.models import Transaction

    return Transaction.objects.filter(destination="mpesa", **having).order_by("-pk")[0].pk


def _expensive(month: Any, rows: dict[str, Any]) -> dict[str, list[str]]:
    """Return the addresses of the pages that cost more with some rows or filters than with others."""
    from django.urls import reverse

    from payments.models import Attempt, LedgerAccount, Transaction

    def at(name: str, *arguments: Any) -> str:
        return reverse(f"admin:{name}", args=arguments)

    hot, settled, undone, member = month.market_with_most_bets.pk, month.settled.pk, month.undone.pk, month.member.pk
    failed, held, pending = rows["transaction_id"], month.decided.pk, _payout(status="PENDING")
    doubtful, paid = _payout(status="PROCESSING"), _payout(status="COMPLETED")
    attempt = Attempt.objects.get(transaction=paid, state="PAID")
    accounts = {
        code: LedgerAccount.objects.get(code=code).pk
        for code in ("payable", "in_flight", "opening", "mpesa_utility", f"pool:{hot}", f"pool:{settled}")
    }
    middle = Transaction.objects.order_by("-pk")[month.transactions // 2].pk
    return {
        "markets": [f"{at('markets')}{more}" for more in ("", "?show=due", "?show=settled", "?q=market")],
        "market": [at("market", market) for market in (hot, settled, undone)],
        "market_resolve": [f"{at('market_resolve', hot)}?decision={decision}" for decision in ("win:Draw", "void:")],
        "recoveries": [f"{at('recoveries')}{more}" for more in ("", f"?market={undone}", "?show=all")],
        "market_set_off": [at("market_set_off", undone)],
        "market_write_off": [at("market_write_off", undone)],
        "market_undo": [at("market_undo", settled)],
        "payouts": [
            f"{at('payouts')}{more}"
            for more in (
                "",
                f"?before={middle}",
                "?state=failed",
                "?state=failed&code=2040",
                "?state=held",
                "?state=pending",
                "?state=in_doubt",
                "?state=completed",
                f"?state=completed&before={middle}",
                "?state=cancelled",
                f"?market={settled}",
                f"?market={settled}&state=failed",
                f"?market={settled}&state=pending",
                f"?q={month.member.phone_number}",
                f"?q={attempt.receipt}",
                f"?q={attempt.originator_conversation_id}",
                f"?q=market {settled}",
                f"?q={paid}",
            )
        ],
        "payout": [at("payout", pk) for pk in (paid, failed, doubtful, held, pending)],
        "payout_ask": [at("payout_ask", doubtful)],
        "payout_hold": [at("payout_hold", pending)],
        "payout_release": [at("payout_release", pending)],
        "payout_decide": [at("payout_decide", held)],
        "payout_confirm": [at("payout_confirm", held)],
        "payout_refuse": [at("payout_refuse", held)],
        "payouts_retry": [f"{at('payouts_retry')}{more}" for more in ("", "?code=2040", f"?market={settled}")],
        "accounts": [
            f"{at('accounts')}{more}"
            for more in ("", "?kind=wallet", f"?q={month.member.phone_number}", f"?q={member}")
        ],
        "account": [at("account", pk) for pk in accounts.values()]
        + [f"{at('account', accounts[code])}?before=900000" for code in ("payable", "opening")],
        "account_export": [at("account_export", accounts[code]) for code in ("payable", "opening")],
        "trial_balance": [f"{at('trial_balance')}{more}" for more in ("", "?day=2026-01-31", f"?day={_days_ago(9)}")],
        "members": [f"{at('members')}{more}" for more in ("", f"?q={month.member.phone_number}", "?q=Member 77")],
        "member": [at("member", member), at("member", month.recovery.user_id)],
        "audit": [
            f"{at('audit')}{more}"
            for more in ("", f"?subject=market:{settled}", "?action=market.resolve", f"?since={_days_ago(9)}")
        ],
    }


def _days_ago(days: int) -> str:
    from datetime import timedelta

    from django.utils import timezone

    return str((timezone.now() - timedelta(days=days)).date())


def of_records() -> dict[str, list[str]]:
    """Return the addresses of the raw tables: every list page, and the pages of the newest row of each table."""
    from django.contrib import admin
    from django.urls import reverse

    addresses = {}
    for model, options in admin.site._registry.items():
        name = f"{options.opts.app_label}_{options.opts.model_name}"
        addresses[f"{name}_changelist"] = [reverse(f"admin:{name}_changelist")]
        row = model._default_manager.order_by("-pk").first()
        for page in ("change", "history", "delete"):
            addresses[f"{name}_{page}"] = [] if row is None else [reverse(f"admin:{name}_{page}", args=[row.pk])]
        addresses[f"{name}_add"] = [reverse(f"admin:{name}_add")]
    return addresses


def pages() -> set[str]:
    """Return the names of all console pages, from the URL patterns."""
    from django.contrib import admin
    from django.urls import URLPattern

    def named(patterns: Any) -> Iterator[str]:
        for pattern in patterns:
            if not isinstance(pattern, URLPattern):
                yield from named(pattern.url_patterns)
            elif pattern.name is not None:
                yield pattern.name

    return set(named(admin.site.get_urls())) - NOT_PAGES


def without_example(addresses: dict[str, list[str]]) -> set[str]:
    """Return the pages that have no example address."""
    return pages() - set(addresses)


def visit_all(month: Any, say_each: Callable[[str], None] = say) -> dict[str, dict[str, Cost]]:
    """Visit every address several times as a superuser with a second factor. Return the costs by page and address."""
    by_page = examples(month)
    if missing := without_example(by_page):
        raise SystemExit(f"bench/console.py needs an example address for each of these pages: {sorted(missing)}.")
    client = _logged_in(month.superuser)
    seen: dict[str, dict[str, Cost]] = {}
    for name, addresses in by_page.items():
        for address in addresses:
            cost = _visit(client, address)
            if cost is None:
                continue
            seen.setdefault(name, {})[address] = cost
            if cost.seconds > SECONDS_GOAL or cost.queries > QUERIES_GOAL:
                say_each(
                    f"console: {address} took {cost.seconds * 1000:.0f} ms, {cost.in_database * 1000:.0f} of them in "
                    f"the database, {cost.queries} queries; the longest query took {cost.longest}"
                )
    return seen | _with_figures(month, client, by_page)


# These pages preview a decision. On a market with many bets, a worker computes the figures and the page waits.
SHOW_FIGURES = ("market_choose", "market_resolve", "proposal")


def _with_figures(month: Any, client: Any, addresses: dict[str, list[str]]) -> dict[str, dict[str, Cost]]:
    """Visit the pages that wait for a worker's figures, after these figures are computed."""
    from payments import monitoring_tasks
    from payments.settlement import preview

    slowest = 0.0
    for decision in preview.choices(month.market_with_most_bets):
        began = time.perf_counter()
        monitoring_tasks.compute_preview(month.market_with_most_bets.pk, decision.rule, decision.weights_as_text(), "")
        slowest = max(slowest, time.perf_counter() - began)
    say(f"console: the slowest preview took a worker {slowest:.1f} s")
    seen: dict[str, dict[str, Cost]] = {}
    for name in SHOW_FIGURES:
        for address in addresses[name]:
            cost = _visit(client, address, with_cache=True)
            if cost is not None:
                seen.setdefault(f"{name} with its figures", {})[address] = cost
    return seen


def _logged_in(superuser: Any) -> Any:
    from django.test import Client
    from django.utils import timezone
    from django_otp.plugins.otp_totp.models import TOTPDevice

    from api.console import step_up

    TOTPDevice.objects.get_or_create(user=superuser, confirmed=True)
    client = Client(SERVER_NAME="localhost")
    client.force_login(superuser, "users.backends.PinBackend")
    session = client.session
    session[step_up.PROVEN_BY_CODE] = True
    session[step_up.STEPPED_UP_AT] = timezone.now().isoformat()
    session.save()
    return client


def _visit(client: Any, address: str, *, with_cache: bool = False) -> Cost | None:
    """Visit an address, and return its cost.

    Returns None if even a superuser may not open it. An example is the add page of a table that only our code writes.
    """
    from django.core.cache import cache
    from django.db import connection

    queries: list[tuple[float, str]] = []

    def watch(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(sql, params, many, context)
        finally:
            queries.append((time.perf_counter() - began, sql))

    visits = []
    with connection.execute_wrapper(watch):
        for _ in range(VISITS):
            if not with_cache:
                cache.clear()
            queries.clear()
            began = time.perf_counter()
            answer = client.get(address)
            if answer.streaming:
                next(iter(answer.streaming_content))
            visits.append((time.perf_counter() - began, sum(took for took, _ in queries), len(queries)))
            if answer.status_code == 403:
                return None
            if answer.status_code not in (200, 302):
                raise SystemExit(f"{address} answered {answer.status_code}.")
            if visits[-1][0] > 10 * SECONDS_LIMIT:
                break
    seconds, in_database, count = (statistics.median(column) for column in zip(*visits, strict=True))
    took, sql = max(queries, default=(0.0, ""))
    return Cost(seconds, in_database, int(count), f"{took * 1000:.0f} ms: {' '.join(sql.split())[:300]}")


def figures(month: Any, seen: dict[str, dict[str, Cost]]) -> list[Row]:
    """Return one row for each page, with its slowest address; one for the raw tables; two for the invariants."""
    from payments.models import InvariantCheck

    rows, records, raw_tables = [], {}, of_records()
    for name, costs in seen.items():
        if name in raw_tables:
            records[name] = max(costs.values(), key=lambda cost: cost.seconds)
            continue
        address, worst = max(costs.items(), key=lambda item: item[1].seconds)
        rows.append(_row(f"{name}: `{address}`" + (f", slowest of {len(costs)}" if len(costs) > 1 else ""), worst))
    name, worst = max(records.items(), key=lambda item: item[1].seconds)
    rows.append(_row(f"records: {name}, slowest of {len(records)}", worst))
    check = InvariantCheck.objects.order_by("-seconds")[0]
    rows.append(
        Row("", f"slowest of {InvariantCheck.objects.count()} invariants: {check.invariant}", f"{check.seconds:.1f} s",
            must=f"≤ {LONGEST_INVARIANT:.0f} s", met=check.seconds <= LONGEST_INVARIANT,
            how_far=f"all invariants together {sum(InvariantCheck.objects.values_list('seconds', flat=True)):.1f} s")
    )  # fmt: skip
    broken = [check.invariant for check in InvariantCheck.objects.filter(broken_count__gt=0)]
    rows.append(
        Row("", f"broken invariants, with {month.bets:,} bets and {month.transactions:,} transactions",
            str(len(broken)), must="0", met=not broken, how_far="; ".join(broken))
    )  # fmt: skip
    return rows


def _row(quantity: str, cost: Cost) -> Row:
    met = cost.seconds <= SECONDS_LIMIT
    return Row(
        "", quantity, f"{cost.seconds * 1000:.0f} ms, {cost.queries} queries", must=f"≤ {SECONDS_LIMIT * 1000:.0f} ms",
        stretch=f"≤ {SECONDS_GOAL * 1000:.0f} ms", met=met, stretched=cost.seconds <= SECONDS_GOAL,
        how_far=f"{cost.in_database * 1000:.0f} ms in the database",
    )  # fmt: skip


def main(*, full: bool) -> None:
    """Fill the database with a month of test data, visit every page, and report the rows."""
    from bench import month_of_data

    bets = 1_000_000 if full else 100_000
    month = month_of_data.fill(bets=bets)
    say(f"console: the database has {month.bets:,} bets and {month.transactions:,} transactions")
    hand_over(
        Measured(
            figures(month, visit_all(month)),
            words=[
                f"The database has {month.bets:,} bets and {month.transactions:,} transactions, with all requests, "
                f"callbacks, questions and transfers. {month.market_with_most_bets.bets.count():,} of the bets are on "
                "one open market."
                + ("" if full else " This is a tenth of the full size; BENCH=full measures that.")
                + f" Each figure is the median of {VISITS} visits through Django's test client, with templates and "
                "with empty caches, as the first visitor would wait. A page that waits for a worker's figures is "
                "visited again when it can show them. For each page the slowest address is shown."
            ],
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    asked = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
    django.setup()
    logging.disable(logging.WARNING)
    main(full=asked.full)
