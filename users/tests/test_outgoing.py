"""Tests of users/outgoing.py: only public https addresses are accepted."""

import pytest

from users import outgoing


@pytest.mark.parametrize(
    "url",
    ["https://example.com/result", "https://meteo.go.ke/rain?day=1", "https://8.8.8.8/", "https://a.co.ke:8443/x"],
)
def test_public_https_address_is_accepted(url: str) -> None:
    assert outgoing.check(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "javascript:alert(1)",
        "ftp://example.com/",
        "https://",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://localhost/",
        "https://localhost./",
        "https://postgres:5432/",
        "https://db.internal/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data/",
        "https://192.168.0.1./",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1]/",
        "https://example.com:99999/",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com/" + "a" * 500,
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(outgoing.NotAnOutgoingAddress):
        outgoing.check(url)
