"""Merkle tree: reference vectors of RFC 6962, and paths that prove only their own leaf."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.settlement.certificates import merkle

# Leaves and roots from the reference tests of Certificate Transparency.
ENTRIES = [
    bytes.fromhex(entry)
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf(b"%d" % number) for number in range(count)]


def recursive_root(hashes: list[bytes]) -> bytes:
    """Compute the tree hash as RFC 6962 defines it."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return merkle.node(recursive_root(hashes[:half]), recursive_root(hashes[half:]))


def proves(hashes: list[bytes], index: int, /, **changed: object) -> bool:
    given = {
        "leaf_hash": hashes[index],
        "index": index,
        "size": len(hashes),
        "siblings": merkle.path(hashes, index),
        "root_hash": merkle.root(hashes),
    }
    return merkle.proves(**given | changed)


@pytest.mark.parametrize("count", range(9))
def test_roots_match_the_reference_vectors(count: int) -> None:
    assert merkle.root([merkle.leaf(entry) for entry in ENTRIES[:count]]).hex() == ROOTS[count]


def test_every_leaf_is_proven_at_its_own_place_only() -> None:
    for size in range(1, 35):
        hashes = leaves(size)
        assert merkle.root(hashes) == recursive_root(hashes)
        for index in range(size):
            assert proves(hashes, index)
            for other in {*range(size + 1), -1} - {index}:
                assert not proves(hashes, index, index=other)


@given(size=st.integers(1, 5_000), index=st.integers(0, 10**6))
def test_blocks_of_1024_give_the_same_root_and_path(size: int, index: int) -> None:
    # given
    hashes, index = leaves(size), index % size
    blocks = [hashes[first : first + merkle.BLOCK] for first in range(0, size, merkle.BLOCK)]
    roots = [merkle.root(block) for block in blocks]

    # then
    number, inside = divmod(index, merkle.BLOCK)
    assert merkle.root(roots) == merkle.root(hashes)
    assert merkle.path(blocks[number], inside) + merkle.path(roots, number) == merkle.path(hashes, index)
    assert proves(hashes, index)


@given(size=st.integers(2, 200), index=st.integers(0, 10**6), level=st.integers(0, 10**6))
def test_changed_leaf_path_size_or_root_proves_nothing(size: int, index: int, level: int) -> None:
    hashes, index = leaves(size), index % size
    path = merkle.path(hashes, index)
    level %= len(path)
    other = merkle.leaf(b"another")
    assert not proves(hashes, index, leaf_hash=other)
    assert not proves(hashes, index, root_hash=other)
    assert not proves(hashes, index, siblings=[*path[:level], other, *path[level + 1 :]])
    assert not proves(hashes, index, siblings=path[:level] + path[level + 1 :])
    assert not proves(hashes, index, siblings=[*path, other])


def test_last_leaf_without_a_partner_is_counted_once() -> None:
    three = leaves(3)
    assert merkle.root(three) != merkle.root([*three, three[-1]])


def test_node_cannot_pass_for_a_leaf() -> None:
    one, two = leaves(2)
    assert merkle.root([merkle.leaf(one + two)]) != merkle.root([one, two])


def test_path_of_an_unknown_leaf_is_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError):
            merkle.path(leaves(3), index)
