"""Tests of users/outgoing.py: only public https addresses are accepted."""

import pytest

from users import outgoing


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/result",
        "https://meteo.go.ke/rain?day=1",
        "https://8.8.8.8/",
        "https://a.co.ke:8443/x",
        "https://xn--bcher-kva.example/",
        "https://[2001:4860:4860::8888]/",
        "https://[64:ff9b::808:808]/",
    ],
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
        "https://[::7f00:1]/",
        "https://[::ffff:0:10.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[ff02::1]/",
        "https://224.0.0.1/",
        "https://1.1.1.1.1/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127%2e0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://example\u3002local/",
        "https://example\u00ad.local/",
        "https://localhost.localdomain/",
        "https://example..com/",
        "https://example.com:99999/",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com/" + "a" * 500,
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(outgoing.NotAnOutgoingAddress):
        outgoing.check(url)
