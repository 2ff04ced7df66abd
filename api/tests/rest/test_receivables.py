"""Tests of api/rest/receivables.py: the list of debts. An undo that makes debts is in test_decisions.py."""

import pytest
from django.test import Client

from testing.builders import bearer, operator
from testing.rest import assert_refused

DEBTS = "/api/payments/admin/recoveries/"


@pytest.fixture
def api() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def staff(db: None) -> dict[str, str]:
    return bearer(operator())


def test_list_without_debts_is_empty(staff: dict[str, str], api: Client) -> None:
    assert api.get(DEBTS, headers=staff).json() == {"recoveries": []}


@pytest.mark.parametrize("query", ["before=x", "before=-1", "market_id=%00", "market_id=" + "9" * 30])
def test_list_of_recoveries_with_a_wrong_query_answers_400(staff: dict[str, str], api: Client, query: str) -> None:
    assert_refused(api.get(f"{DEBTS}?{query}", headers=staff), 400, "invalid")
