"""Arithmetic of an attack on PINs: a million guesses from a thousand addresses in a week, with the product's own rules.

`python -m soak.spraying` prints the table of docs/security.md. Time is simulated, and PINs are compared without a hash.
The counters are the pure ones of users/pin_counters.py, under the keys that users/known_callers.py gives to a caller.

The shares of PINs are published ones (Nick Berry, datagenetics.com, 2012, from 3.4 million PINs): the twenty most
common have 26.83 % of all people, 61 a third, 426 half. Between these ranks shares fall smoothly.
"""

import bisect
import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from users import pins
from users.pin_counters import Budget, Counter, Limits

START = datetime(2026, 3, 2, tzinfo=UTC)
WEEK = timedelta(days=7)
TOP_20 = (10.713, 6.016, 1.881, 1.197, 0.745, 0.616, 0.613, 0.526, 0.516, 0.512, 0.451, 0.419, 0.395, 0.391, 0.366,
          0.304, 0.303, 0.293, 0.290, 0.285)  # fmt: skip
CODES = 10_000
UNLIMITED = Budget(burst=10**9, an_hour=10**9)


def published_shares() -> list[float]:
    """Return the share of people who choose the PIN of each rank, most common first. The shares sum to 1."""
    shares = [share / 100 for share in TOP_20]
    for first, last, until, exponent in ((20, 61, 1 / 3, 1.0), (61, 426, 0.5, 0.6), (426, CODES, 1.0, 0.8)):
        weights = [rank**-exponent for rank in range(first + 1, last + 1)]
        factor = (until - sum(shares)) / sum(weights)
        shares += [factor * weight for weight in weights]
    return shares


def shares_after_block_list() -> list[float]:
    """Return the shares of the PINs that the rules allow, most common first.

    The rules refuse the 400 most common PINs and others. For the worst case the others count as the rarest ones.
    """
    refused = sum(pins.is_common(f"{number:04d}") for number in range(CODES))
    allowed = published_shares()[400 : 400 + CODES - refused]
    return [share / sum(allowed) for share in allowed]


@dataclass(frozen=True)
class Attack:
    """An attack on members and staff, and the guards that stand against it."""

    guesses: int = 1_000_000
    addresses: int = 1_000
    members: int = 10_000
    staff: int = 20
    limits: Limits = field(default_factory=Limits)
    block_list: bool = True
    staff_codes: bool = True
    known_devices: bool = True


@dataclass(frozen=True)
class Harm:
    """Accounts that the attacker took, and owners whose right PIN was refused at a random moment of the week."""

    members_taken: int
    staff_taken: int
    checked: int
    owners_refused: int


class _Counters:
    """The counters of the product in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._counters = limits, {"overall": Counter(0, START)}

    def refused_until(self, keys: tuple[str, ...], at: datetime) -> datetime | None:
        refusals = [
            until
            for key in keys
            if (until := self._limits.of(key).refused_until(self._counter(key, at), at)) is not None
        ]
        return max(refusals, default=None)

    def count(self, keys: tuple[str, ...], at: datetime) -> None:
        for key in keys:
            self._counters[key] = self._limits.of(key).after_try(self._counter(key, at), at)

    def _counter(self, key: str, at: datetime) -> Counter:
        return self._counters.get(key) or Counter(0, at)


def run(attack: Attack, seed: int = 1) -> Harm:
    """Play an attack. The attacker knows the shares and the rules, and tries the commonest PINs first."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    shares = shares_after_block_list() if attack.block_list else published_shares()
    sums = list(itertools.accumulate(shares))
    pin_of = [min(bisect.bisect(sums, chance.random()), len(shares) - 1) for _ in range(attack.members + attack.staff)]
    counters = _Counters(attack.limits)
    owners = _moments(attack, chance)
    ready = [(0, account) for account in range(len(pin_of))]  # (the next rank to try, account)
    locked: list[tuple[datetime, int, int]] = []
    taken: set[int] = set()
    checked = refused = 0
    next_owner = next(owners, None)
    for guess in range(attack.guesses):
        at = START + WEEK * guess / attack.guesses
        while next_owner is not None and next_owner[0] <= at:
            refused += _is_refused(attack, counters, *next_owner)
            next_owner = next(owners, None)
        while locked and locked[0][0] <= at:
            _, rank, account = heapq.heappop(locked)
            heapq.heappush(ready, (rank, account))
        if not ready:
            continue
        rank, account = ready[0]
        keys = (f"number:{account}", f"address:{guess % attack.addresses}", "overall")
        if counters.refused_until(keys, at) is not None:
            continue
        heapq.heappop(ready)
        counters.count(keys, at)
        checked += 1
        if pin_of[account] == rank and _opens(attack, account, chance):
            taken.add(account)
            continue
        until = counters.refused_until(keys[:1], at)
        if until is not None:
            heapq.heappush(locked, (until, rank + 1, account))
        else:
            heapq.heappush(ready, (rank + 1, account))
    staff_taken = sum(account >= attack.members for account in taken)
    return Harm(len(taken) - staff_taken, staff_taken, checked, refused)


def _moments(attack: Attack, chance: random.Random) -> Iterator[tuple[datetime, int]]:
    """Yield a random moment of the week for each owner, in the order of time."""
    return iter(sorted((START + WEEK * chance.random(), account) for account in range(attack.members + attack.staff)))


def _is_refused(attack: Attack, counters: _Counters, at: datetime, account: int) -> bool:
    device, number = (f"device:{account}",), (f"number:{account}", f"address:home {account}", "overall")
    return counters.refused_until(device if attack.known_devices else number, at) is not None


def _opens(attack: Attack, account: int, chance: random.Random) -> bool:
    """Return True if a right PIN opens the account. Staff also need a code, of which three in a million are valid."""
    return account < attack.members or not attack.staff_codes or chance.random() < 3e-6


def table() -> list[tuple[str, Attack]]:
    """Return the attacks of docs/security.md: all guards, each guard missing, and the guards of before."""
    whole = Attack()
    no_address, no_overall = replace(whole.limits, address=UNLIMITED), replace(whole.limits, overall=UNLIMITED)
    neither = replace(no_address, overall=UNLIMITED)
    return [
        ("all guards", whole),
        ("without the block-list", replace(whole, block_list=False)),
        ("without the limit of an address", replace(whole, limits=no_address)),
        ("without the overall limit", replace(whole, limits=no_overall)),
        ("without both limits", replace(whole, limits=neither)),
        ("without codes of staff", replace(whole, staff_codes=False)),
        ("without known devices", replace(whole, known_devices=False)),
        ("only the lock of a number", replace(whole, limits=neither, block_list=False, known_devices=False,
                                              staff_codes=False)),
    ]  # fmt: skip


if __name__ == "__main__":
    print("| guards | PINs checked | members taken | staff taken | owners refused |\n|---|---|---|---|---|")
    for name, attack in table():
        harm = run(attack)
        figures = (harm.checked, harm.members_taken, harm.staff_taken, harm.owners_refused)
        print(f"| {name} | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
