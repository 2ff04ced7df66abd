"""Shared rate limit of all workers: sending slots, reserved in Redis by the generic cell rate algorithm (GCRA).

In one call to Redis a worker reserves all the slots that it can use. It then waits for each slot and sends. It does not
poll. The clock is Redis's own. If Redis loses the key, or if its clock is set forward, reserved slots are forgotten, so
the pace is exceeded once. If its clock is set back, the slots move back with it.
"""

from dataclasses import dataclass
from decimal import Decimal

import redis

# Returns (microseconds until the first slot, number of slots granted). No granted slot starts after the longest wait
# (ARGV[2]). The key holds the time from which slots are free, and the time of the last call. If the clock was set back,
# the last call lies in the future. Both times then move back together, so no slot is lost and no caller waits longer.
# A value that we cannot have written counts as missing: another type, a long text, or slots that are free only
# after ARGV[4].
FARTHEST_SECONDS = 60
_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, longest, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local farthest = tonumber(ARGV[4])
local stored = redis.pcall('GET', KEYS[1]) or ''
if type(stored) ~= 'string' or #stored > 40 then
    redis.call('DEL', KEYS[1])
    stored = ''
end
local free_at, called_at = string.match(stored, '^(%d+) (%d+)$')
free_at, called_at = tonumber(free_at or 0), tonumber(called_at or 0)
if free_at > called_at + farthest then free_at, called_at = 0, 0 end
if called_at > now then
    free_at = free_at - (called_at - now)
    redis.call('SET', KEYS[1], string.format('%.0f %.0f', free_at, now), 'EX', 3600)
end
if free_at < now then free_at = now end
local granted = math.min(count, math.floor((now + longest - free_at) / interval) + 1)
if granted < 1 then return {0, 0} end
redis.call('SET', KEYS[1], string.format('%.0f %.0f', free_at + granted * interval, now), 'EX', 3600)
return {free_at - now, granted}
"""


@dataclass(frozen=True)
class Limiter:
    """Limit of `per_second` requests for all workers that share `connection` and `name`."""

    connection: redis.Redis
    name: str
    per_second: Decimal

    def reserve(self, count: int = 1, *, longest_wait_seconds: float) -> list[float]:
        """Reserve up to `count` slots and return the seconds to wait for each slot.

        No slot lies beyond `longest_wait_seconds`, so the list may be shorter than `count` or empty.
        Raises: redis.RedisError if Redis cannot be reached.
        """
        # Two per cent slower than allowed. With network jitter, too many requests could otherwise arrive in one second.
        interval = int(Decimal("1020000") / self.per_second)
        longest = int(longest_wait_seconds * 1_000_000)
        farthest = max(longest, FARTHEST_SECONDS * 1_000_000) + interval
        key = f"kasoko:pace:{self.name}"
        first, granted = self.connection.eval(_RESERVE, 1, key, interval, longest, count, farthest)
        return [(first + number * interval) / 1_000_000 for number in range(granted)]
