"""Merkle tree of RFC 6962, section 2.1, as pure functions of bytes.

The hashed text of a leaf begins with the byte 0x00, that of a node with 0x01. So neither can pass for the other. A node
without a partner moves up one level unchanged, so no leaf is counted twice. Aligned blocks of 1,024 leaves are whole
subtrees. The root computed from the blocks' roots is therefore the root of the tree. A leaf's path is its path inside
its block, then the block's path to the root.
"""

import hashlib
from collections.abc import Sequence

BLOCK = 1024


def leaf(entry: bytes) -> bytes:
    """Hash a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Hash two nodes into the node above them."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """Return the root computed from leaf hashes, or from the roots of aligned blocks.

    For an empty sequence it is the SHA-256 of the empty string.
    """
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
    siblings = []
    level = hashes
    while len(level) > 1:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        level, index = _above(level), index >> 1
    return siblings


def proves(*, leaf_hash: bytes, index: int, size: int, siblings: Sequence[bytes], root_hash: bytes) -> bool:
    """Return True if the path of `siblings` leads from this leaf to this root. `index` counts `size` leaves from 0.

    Source: RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    position, last, reached = index, size - 1, leaf_hash
    for sibling in siblings:
        if last == 0:
            return False
        if position & 1 or position == last:
            reached = node(sibling, reached)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            reached = node(reached, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and reached == root_hash


def _above(level: Sequence[bytes]) -> list[bytes]:
    above = [node(level[left], level[left + 1]) for left in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        above.append(level[-1])
    return above
