"""Money in doubt: one definition for the list, the status, the search and the home page."""

from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection

from payments.models import Attempt
from payments.monitoring import overview
from payments.payouts.operations import in_doubt, search
from payments.settlement import status
from testing import builders, payout_steps
from testing.payout_steps import ACCEPTED, READ_TIMEOUT, after, ask_and_answer, not_found_body, put_through, resends

pytestmark = pytest.mark.django_db


@pytest.fixture
def resent() -> Attempt:
    """Return an attempt in doubt whose request was sent again and acknowledged."""
    attempt = payout_steps.sent(builders.payout(285), READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(20))
    (claim,) = resends(after(22))
    return put_through(claim, ACCEPTED, after(23))


def test_attempt_sent_again_while_in_doubt_is_in_doubt_everywhere(resent: Attempt) -> None:
    # given
    payout_steps.sent(builders.payout(100), ACCEPTED)
    payout_steps.sent(builders.payout(400), READ_TIMEOUT, after(30))
    payout = resent.transaction
    market_id = payout.settlement.market_id

    # then
    assert (resent.state, resent.is_in_doubt) == ("ACCEPTED", True)
    assert [row.transaction_id for row in in_doubt.in_doubt(market_id)] == [payout.pk]
    assert [row.amount for row in in_doubt.in_doubt()] == [285, 400]
    found = search.search(state="in_doubt", market_id=market_id)
    assert list(found.payouts) == [payout]
    assert overview.now(at=after(60)).in_doubt == overview.Total(2, payout.amount + 400)
    market_status = status.settlement_status(market_id)
    assert market_status is not None
    assert {name for name, (_, count) in market_status.by_state.items() if count} == {"in_doubt"}


def test_closed_attempt_is_no_longer_in_doubt(resent: Attempt) -> None:
    payout_steps.deliver_result(resent, payout_steps.result_body(resent), after(30))
    resent.refresh_from_db()
    assert resent.doubted_at is not None
    assert (resent.is_in_doubt, Attempt.objects.in_doubt().count()) == (False, 0)


def test_attempts_in_doubt_are_found_by_their_index(resent: Attempt) -> None:
    # given
    queries = {
        "sums": Attempt.objects.in_doubt().values("amount"),
        "list": Attempt.objects.in_doubt().order_by("first_sent_at", "pk")[:200],
    }

    # when
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        plans = {name: query.explain() for name, query in queries.items()}

    # then
    assert [name for name, plan in plans.items() if "attempt_in_doubt" not in plan] == []


@pytest.mark.parametrize("command", ["in_doubt", "limbo"])
def test_command_lists_money_in_doubt_under_both_names(resent: Attempt, command: str) -> None:
    # when
    stdout, stderr = StringIO(), StringIO()
    call_command(command, stdout=stdout, stderr=stderr)

    # then
    assert f"transaction {resent.transaction_id} of market" in stdout.getvalue()
    assert "1 payout in doubt, KES 285.00." in stdout.getvalue()
    assert ("was renamed" in stderr.getvalue()) is (command == "limbo")
