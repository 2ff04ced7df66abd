"""Tests of api/security.py and of odd filters: headers of every answer, and no 500 from a REST list."""

import pytest
from django.test import Client

from testing import builders


@pytest.mark.parametrize("path", ["/api/users/me/", "/api/users/me/notices/", "/api/payments/admin/recoveries/"])
def test_private_answers_are_not_cached(db: None, client: Client, path: str) -> None:
    answer = client.get(path, headers=builders.bearer(builders.operator()))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize("path", ["/healthz", "/api/markets/", "/admin/login/", "/nothing"])
def test_browser_features_are_switched_off(db: None, client: Client, path: str) -> None:
    headers = client.get(path).headers
    assert "camera=()" in headers["Permissions-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"


ODD = ("\x00", "99999", "99999-12-31", "0000-00-00", "-1", "9" * 30, "1e400", "NaN", "2026-13-45")


@pytest.mark.parametrize("typed", ODD)
def test_no_filter_of_a_rest_list_fails(db: None, client: Client, typed: str) -> None:
    headers = builders.bearer(builders.operator())
    for path in ("/api/markets/", "/api/payments/admin/recoveries/", "/api/payments/admin/disputes/"):
        for name in ("state", "status", "before", "market_id", "q", "category", "outcome", "limit"):
            assert client.get(path, {name: typed}, headers=headers).status_code < 500, (path, name)
