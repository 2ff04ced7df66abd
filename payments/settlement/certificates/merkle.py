"""Merkle tree of RFC 6962, section 2.1. Pure: bytes in, bytes out.

A leaf is hashed after 0x00 and a node after 0x01, so neither can pass for the other. A node without a partner goes up
unchanged, so no leaf is counted twice. Aligned blocks of 1,024 leaves are whole subtrees. So the root over the roots of
the blocks is the root of the tree, and a path is a path in one block followed by a path among the blocks.
"""

import hashlib
from collections.abc import Sequence

BLOCK = 1024


def leaf(entry: bytes) -> bytes:
    """Hash a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Hash two nodes as the node above them."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of leaves, or of aligned blocks. Without any, it is SHA-256 of nothing."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    level = hashes
    while len(level) > 1:
        level = _above(level)
    return level[0]


def path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Return the sibling hashes on the way from leaf `index` up to the root, lowest first.

    Raises: IndexError.
    """
    if not 0 <= index < len(hashes):
        raise IndexError(f"There is no leaf {index} among {len(hashes)}.")
    beside = []
    level = hashes
    while len(level) > 1:
        if index ^ 1 < len(level):
            beside.append(level[index ^ 1])
        level, index = _above(level), index >> 1
    return beside


def proves(*, leaf_hash: bytes, index: int, size: int, beside: Sequence[bytes], root_hash: bytes) -> bool:
    """Return whether the path leads from this leaf, number `index` of `size`, to this root.

    Source: RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    place, last, reached = index, size - 1, leaf_hash
    for other in beside:
        if last == 0:
            return False
        if place & 1 or place == last:
            reached = node(other, reached)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            reached = node(reached, other)
        place, last = place >> 1, last >> 1
    return last == 0 and reached == root_hash


def _above(level: Sequence[bytes]) -> list[bytes]:
    above = [node(level[place], level[place + 1]) for place in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        above.append(level[-1])
    return above
