"""Migrations that fill new columns from a sentinel value and from a sentence in old columns."""

from importlib import import_module

import pytest
from django.db import connection

from payments.models import Attempt, Transaction
from payments.payouts.operations import actions
from testing import builders, payout_steps
from testing.payout_steps import after, ask_and_answer, deliver_result, result_body, status_body
from users.audit import MACHINE

pytestmark = pytest.mark.django_db


def fill(migration: str) -> None:
    """Run the statement by which a migration fills its new column."""
    with connection.cursor() as cursor:
        cursor.execute(import_module(f"payments.migrations.{migration}").FILL)


def test_sentinels_in_result_code_become_paid_reports() -> None:
    # given: result codes as they were before the migration
    codes = ["0", "0?", "2040", ""]
    attempts = [payout_steps.sent(builders.payout(285)) for _ in codes]
    for attempt, code in zip(attempts, codes, strict=True):
        Attempt.objects.filter(pk=attempt.pk).update(result_code=code, paid_report="")

    # when
    fill("0010_paid_report")

    # then
    columns = Attempt.objects.order_by("pk").values_list("result_code", "paid_report")
    assert list(columns) == [("0", "trusted"), ("0", "untrusted"), ("2040", ""), ("", "")]


def test_redirected_payouts_get_the_time_of_their_transfer() -> None:
    # given, as before the migration: a redirected payout, a payout that a late payment settled, and a failed payout
    redirected, settled_late, failed = (builders.payout(285) for _ in range(3))
    payout_steps.failed(redirected)
    actions.redirect_to_wallet(transaction_id=redirected.pk, by=MACHINE, at=after(60))
    first, second = payout_steps.retried(settled_late)
    deliver_result(first, result_body(first), after(60))
    deliver_result(second, result_body(second, 2040), after(61))
    ask_and_answer(second, status_body(second, "Failed"), after(61))
    payout_steps.failed(failed, at=after(100))
    Transaction.objects.update(redirected_at=None)

    # when
    fill("0011_redirected_at")

    # then
    assert builders.transfers(code="redirect")[1][0] == f"redirect:{settled_late.pk}"
    columns = Transaction.objects.order_by("pk").values_list("pk", "redirected_at")
    assert list(columns) == [(redirected.pk, after(60)), (settled_late.pk, None), (failed.pk, None)]
