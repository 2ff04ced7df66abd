"""Addresses in the forms in which peers and proxies write them."""

import pytest

from users import source_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("196.201.214.200", "196.201.214.200"),
        (" 196.201.214.200 ", "196.201.214.200"),
        ("196.201.214.200:5678", "196.201.214.200"),
        ("::ffff:196.201.214.200", "196.201.214.200"),
        ("[::ffff:196.201.214.200]:80", "196.201.214.200"),
        ("::ffff:c4c9:d6c8", "196.201.214.200"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_address_is_read_without_port_brackets_and_scope(text: str, address: str) -> None:
    assert str(source_address.parse(text)) == address


@pytest.mark.parametrize(
    "text",
    ["", " ", "unknown", "1.2.3", "1.2.3.4:", "1.2.3.4:port", "[::1", "::1]:80", "[]", "%eth0", "1.2.3.4, 5.6.7.8",
     "\x00", "٣.٣.٣.٣", "1.2.3.4:123456", "0x7f.0.0.1", "01.2.3.4"],
)  # fmt: skip
def test_text_that_is_no_address_is_none(text: str) -> None:
    assert source_address.parse(text) is None


def test_scope_never_makes_an_address_another_one() -> None:
    assert source_address.parse("fe80::1%eth0") == source_address.parse("fe80::1")


@pytest.mark.parametrize(
    ("address", "inside"), [("10.255.0.1", True), ("172.32.0.1", False), ("fd00::1", True), ("196.201.214.200", False)]
)
def test_private_networks_are_never_of_the_internet(address: str, inside: bool) -> None:
    parsed = source_address.parse(address)
    assert parsed is not None
    assert source_address.is_in(parsed, source_address.PRIVATE) is inside
