"""One pace for all workers: a shared reservation of sending slots in Redis (GCRA), by Redis's own clock.

A worker reserves its slot, sleeps until it comes and sends: no polling, one call a request. Losing the key loses
nothing but one pause.
"""

from dataclasses import dataclass
from decimal import Decimal

import redis

# Returns the microseconds to wait for the slot reserved, or -1 where the wait would pass the bound: then none is taken.
_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local free_at = tonumber(redis.call('GET', KEYS[1]) or '0')
if free_at < now then free_at = now end
if free_at - now > tonumber(ARGV[2]) then return -1 end
redis.call('SET', KEYS[1], string.format('%.0f', free_at + tonumber(ARGV[1])), 'EX', 3600)
return free_at - now
"""


@dataclass(frozen=True)
class Limiter:
    """At most `per_second` requests a second over all workers that share `connection` and `name`."""

    connection: redis.Redis
    name: str
    per_second: Decimal

    def reserve(self, *, longest_wait_seconds: float) -> float | None:
        """Reserve the next slot: the seconds to wait for it, or None (and no slot) where that would be too long.

        Raises: redis.RedisError, where Redis cannot be reached.
        """
        # Two per cent slower than allowed, so that jitter on the way does not push a second's window over.
        interval = int(Decimal("1020000") / self.per_second)
        keys_and_arguments = (f"kasoko:pace:{self.name}", interval, int(longest_wait_seconds * 1_000_000))
        wait = int(self.connection.eval(_RESERVE, 1, *keys_and_arguments))
        return None if wait < 0 else wait / 1_000_000
