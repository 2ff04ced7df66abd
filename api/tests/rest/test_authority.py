"""Tests of rights over REST: every route, role and freshness of the proof. docs/authority.md has the table."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import Settings
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django.urls import get_resolver
from django_otp.plugins.otp_totp.models import TOTPDevice
from knox.models import AuthToken

from payments import wiring
from testing import builders, console_scenes, database, settlement_steps
from users import authority, roles, tokens
from users.management.commands import authority as document
from users.models import CustomUser, Proposal

ROOT = Path(__file__).resolve().parents[3]
# Routes that ask for no act: those of everybody, of a member's own affairs, and of M-Pesa. A new route needs an act, or
# a line here.
WITHOUT_ACT = {
    "/api/users/login/",
    "/api/users/logout/",
    "/api/users/logout-everywhere/",
    "/api/users/me/pin/",
    "/api/users/me/",
    "/api/users/me/notices/",
    "/api/users/me/disputes/",
    "/api/users/me/disputes/<dispute_id>/reply/",
    "/api/markets/",
    "/api/markets/<market_id>/",
    "/api/markets/<market_id>/bets/",
    "/api/markets/<market_id>/bets/<bet_id>/explanation/",
    "/api/markets/<market_id>/bets/<bet_id>/disputes/",
    "/api/markets/<market_id>/bets/<bet_id>/take-back/",
    "/api/markets/<market_id>/settlement/",
    "/api/markets/<market_id>/settlement/bets.jsonl",
    "/api/payments/b2c-callback/",
    "/api/payments/^b2c-callback/(?P<token>[0-9a-f]{64})/$",
    "/api/payments/^b2c-timeout/(?P<token>[0-9a-f]{64})/$",
    "/api/payments/^status-result/(?P<token>[0-9a-f]{64})/$",
    "/api/payments/^balance-result/(?P<token>[0-9a-f]{64})/$",
    "/api/payments/transactions/<transaction_id>/disputes/",
    "/healthz",
    "/readyz",
}
GUARDED = [(address, act_name) for address, act_name in document.guarded_routes() if address.startswith("/api/")]
NO_ROLE = "no role"


def person(role: str) -> CustomUser:
    """Create a member of staff with this role, a superuser, or a member of staff without a role."""
    return builders.operator() if role == NO_ROLE else console_scenes.staff(None if role == "superuser" else role)


def send(address: str, token: str = "", code: str = "") -> Any:
    """Send a request without a body to a route, as GET if the route has no POST."""
    filled = address.replace("<market_id>", "1").replace("<dispute_id>", "0b2f0f3e-5b0e-4c6e-9a57-8d4c9f6b7a11")
    filled = filled.replace("<transaction_id>", "1")
    headers = ({"Authorization": f"Bearer {token}"} if token else {}) | ({"X-Authenticator-Code": code} if code else {})
    answer = Client().post(filled, "{}", content_type="application/json", headers=headers)
    return Client().get(filled, headers=headers) if answer.status_code == 405 else answer


def refusal(answer: Any) -> str:
    """Return the code of a refusal for lack of rights, or an empty text."""
    return json.loads(answer.content)["code"] if answer.status_code in (401, 403) else ""


def test_every_route_asks_for_an_act_or_is_listed_as_open() -> None:
    served = {address for address, _ in document.routes(get_resolver()) if not address.startswith("/admin/")}
    assert served - {address for address, _ in GUARDED} == WITHOUT_ACT


@pytest.mark.parametrize("role", [*roles.ROLES, "superuser", NO_ROLE])
@pytest.mark.parametrize("proof", ["none", "stale", "fresh"])
@pytest.mark.parametrize("profile", ["development", "production"])
def test_route_is_open_to_exactly_the_roles_and_proofs_of_the_table(
    db: None, settings: Settings, role: str, proof: str, profile: str
) -> None:
    # given
    settings.STAFF_TOTP, settings.PROFILE = True, profile
    staff = person(role)
    held = roles.ROLES.get(role, set(roles.PERMISSIONS))
    if role == NO_ROLE and profile == "production":
        held = set()
    token, secret = AuthToken.objects.create(user=staff)
    if proof != "none":
        age = timedelta(minutes=settings.STEP_UP_MINUTES, seconds=1) if proof == "stale" else timedelta(seconds=30)
        tokens.remember(token, at=wiring.now() - age)

    # when, then
    with builders.nothing_moved():
        for address, act_name in GUARDED:
            act = authority.ACTS[act_name]
            expected = "" if act.permission in held else "forbidden"
            if not expected and act.money and proof != "fresh":
                expected = "fresh_code_required"
            assert refusal(send(address, secret)) == expected, (address, act_name)


def test_route_of_staff_refuses_members_and_anyone_without_a_token(db: None) -> None:
    with database.as_owner():
        roles.install(Group, Permission, ContentType)
    member = builders.member()
    member.groups.add(Group.objects.get(name="operator"))  # A role without the staff flag gives no right.
    secret = builders.token_of(member)
    suspended = builders.token_of(builders.operator(is_superuser=True, is_active=False))
    for address, _ in GUARDED:
        assert refusal(send(address)) == "not_authenticated", address
        assert refusal(send(address, secret)) == "forbidden", address
        assert refusal(send(address, suspended)) == "not_authenticated", address


def test_in_development_the_guides_calls_need_only_a_token(db: None) -> None:
    """The guide gives staff no role and no code."""
    secret = builders.token_of(builders.operator())
    assert [address for address, _ in GUARDED if refusal(send(address, secret))] == []


def test_code_in_the_header_proves_the_token_for_some_minutes(db: None, settings: Settings, at: datetime) -> None:
    # given
    settings.STAFF_TOTP = True
    staff = console_scenes.staff("operator")
    console_scenes.enrol(staff, at)
    secret = builders.token_of(staff)

    # when, then
    assert refusal(send("/api/markets/admin/resolve/", secret)) == "fresh_code_required"
    assert refusal(send("/api/markets/admin/resolve/", secret, "000000")) == "wrong_code"
    TOTPDevice.objects.update(throttling_failure_timestamp=None, throttling_failure_count=0)
    assert refusal(send("/api/markets/admin/resolve/", secret, console_scenes.code_of(staff))) == ""
    assert refusal(send("/api/markets/admin/resolve/", secret)) == ""
    another = builders.token_of(staff)
    assert refusal(send("/api/markets/admin/resolve/", another)) == "fresh_code_required"


def test_app_that_is_set_up_is_asked_for_even_without_the_setting(db: None, at: datetime) -> None:
    staff = console_scenes.staff("operator")
    console_scenes.enrol(staff, at)
    assert refusal(send("/api/markets/admin/resolve/", builders.token_of(staff))) == "fresh_code_required"


def test_person_without_approval_withdraws_only_their_own_proposal(db: None) -> None:
    """An operator may propose, but may not reject another operator's proposal."""
    proposed = builders.resolve(
        settlement_steps.staked(), by=builders.operator(), policy=settlement_steps.TWO_PERSON_POLICY
    )
    secret = builders.token_of(console_scenes.staff("operator"))
    body = json.dumps({"proposal_id": proposed.proposal_id, "reason": "Not so."})
    answer = Client().post(
        "/api/markets/admin/reject/",
        body,
        content_type="application/json",
        headers={"Authorization": f"Bearer {secret}"},
    )
    assert (answer.status_code, json.loads(answer.content)["code"]) == (403, "forbidden")
    assert Proposal.objects.get().state == "OPEN"


def test_document_of_rights_is_that_of_the_table() -> None:
    written = (ROOT / "docs" / "authority.md").read_text(encoding="utf-8")
    assert written == document.page(), "Write it again: python manage.py authority > docs/authority.md"


def test_every_act_has_a_permission_that_some_role_or_superuser_has() -> None:
    for name, act in authority.ACTS.items():
        assert act.permission in roles.PERMISSIONS, name
        assert act.approval in roles.PERMISSIONS or act.people == "one", name
