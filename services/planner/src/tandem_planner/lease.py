"""The lease that lets one planner act at a time.

The holder's key lives in Redis for a limited time under a random value that only the holder knows; each taking of it
counts a fencing token up, so that whatever an earlier holder still does can be told from what the present one does.
The holder trusts the lease for less time than Redis keeps it, measured on its own monotonic clock from before the
request was sent; clocks of two machines are never compared.

Sources: Redis documentation, "Distributed Locks with Redis" (value and compare-and-delete); M. Kleppmann, "How to do
distributed locking" (2016) (fencing tokens).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time

import redis.asyncio
from redis.exceptions import RedisError
from tandem_common.keys import Keys
from tandem_common.logs import get_logger

# Part of the lease's life for which its holder trusts it.
_TRUSTED = 0.8
_RENEWALS_PER_LIFE = 3

# Both keys share a hash tag, so the scripts run in a Redis Cluster too.
# A lease of one's own is taken anew: the answer that told of it was lost.
# A Redis that lost its counter must not hand out a token that this planner has held before.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local token = redis.call('INCR', KEYS[2])
if token <= tonumber(ARGV[3]) then
  token = tonumber(ARGV[3]) + 1
  redis.call('SET', KEYS[2], token)
end
return token
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

_log = get_logger("lease")


class PlannerLease:
    """One planner's hold, or its wait for one. Owned by one task that awaits `run`."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, life_s: float) -> None:
        self._redis = client
        self._lease_key = keys.planner_lease()
        self._token_key = keys.planner_token()
        self._life_s = life_s
        self._value = secrets.token_hex(16)
        self._token = 0
        self._highest_token = 0
        self._trusted_until = 0.0
        self._keeping = asyncio.Lock()

    @property
    def token(self) -> int:
        """Fencing token while the lease is held for certain, else 0."""
        return self._token if time.monotonic() < self._trusted_until else 0

    async def run(self) -> None:
        """Take the lease when it is free and renew it, until cancelled; then give it back."""
        try:
            while True:
                await self._try_keep()
                await asyncio.sleep(self._life_s / _RENEWALS_PER_LIFE)
        finally:
            # Cancelled while Redis is away: the lease runs out by itself.
            with contextlib.suppress(RedisError, OSError):
                await self.release()

    async def keep(self) -> int:
        """Renew the lease, or take it if nobody holds it; returns the token, 0 when another planner holds it.

        Raises RedisError; what was held stays held until its time is up.
        """
        async with self._keeping:
            asked_at = time.monotonic()
            life_ms = max(1, round(1000 * self._life_s))
            if self._token and await self._call(_RENEW, [self._lease_key], self._value, life_ms):
                token = self._token
            else:
                keys = [self._lease_key, self._token_key]
                token = await self._call(_TAKE, keys, self._value, life_ms, self._highest_token)
            self._token = token
            self._highest_token = max(self._highest_token, token)
            self._trusted_until = asked_at + _TRUSTED * self._life_s if token else 0.0
            return token

    async def release(self) -> None:
        """Let the next planner have it now. Raises RedisError."""
        self._token, self._trusted_until = 0, 0.0
        await self._call(_RELEASE, [self._lease_key], self._value)

    async def _try_keep(self) -> None:
        before = self.token
        try:
            await self.keep()
        except (RedisError, OSError) as error:
            if before and not self.token:
                _log.warning("planner lease lost: redis does not answer", error=type(error).__name__)
            return
        if self.token != before:
            _log.info("planner lease held" if self.token else "planner lease lost", token=self.token)

    async def _call(self, script: str, keys: list[str], *arguments: str | int) -> int:
        return int(
            await self._redis.eval(script, len(keys), *keys, *(str(argument) for argument in arguments))
        )
