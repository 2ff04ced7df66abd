"""Tests of soak/spraying.py: an attack on PINs takes no staff, few members, and keeps no owner out."""

from dataclasses import replace

import pytest

from soak import spraying


def test_published_shares_have_the_published_sums() -> None:
    shares = spraying.published_shares()
    sums = [round(sum(shares[:count]), 3) for count in (20, 61, 426, spraying.CODES)]
    assert sums == [0.268, 0.333, 0.5, 1.0]
    assert shares == sorted(shares, reverse=True)


def test_small_attack_is_held_back_and_the_missing_guards_show() -> None:
    small = spraying.Attack(guesses=20_000, addresses=20, members=500, staff=5)
    # A week of two tries an hour from 20 addresses: no more than 20 × (20 + 336) PINs are checked.
    guarded = spraying.run(small)
    assert guarded.checked <= 20 * (20 + 336)
    assert (guarded.staff_taken, guarded.owners_refused) == (0, 0)
    before = spraying.run(
        replace(small, limits=spraying.table()[-1][1].limits, block_list=False, known_devices=False, staff_codes=False)
    )
    assert before.members_taken > 10 * guarded.members_taken
    assert before.owners_refused > 100


@pytest.mark.long
def test_million_guesses_take_no_staff_and_leave_owners_in() -> None:
    harm = spraying.run(spraying.Attack())
    assert harm.checked <= 200 + 60 * 168
    assert harm.staff_taken == 0
    assert harm.members_taken <= 15
    assert harm.owners_refused == 0
