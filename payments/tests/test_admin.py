"""Records of payments in the console are read-only."""

from django.test import Client

from payments import settlement_tasks
from testing.builders import member, operator
from testing.dispute_steps import dispute, lost_bet


def test_console_shows_disputes_and_certificates_read_only(db: None, client: Client) -> None:
    # given
    opened = dispute(lost_bet(member()))
    settlement_tasks.issue_certificates()
    client.force_login(operator(is_superuser=True))

    # then
    pages = ("payments/dispute", "payments/certificate", "users/notice", f"payments/dispute/{opened.pk}/change")
    for page in pages:
        assert client.get(f"/admin/{page}/").status_code == 200, page
    assert client.post(f"/admin/{pages[-1]}/", {"state": "UPHELD"}).status_code == 403
    opened.refresh_from_db()
    assert opened.state == "OPEN"
