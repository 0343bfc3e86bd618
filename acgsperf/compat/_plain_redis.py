"""The wire that the cache shares with the module it replaces: bare keys, JSON texts, SETEX and SET, by any client."""

import asyncio
import json
import logging
import math
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import DataError, ResponseError

from acgsperf.compat._awaiting import settled
from acgsperf.dispatch import LRUCache
from acgsperf.tiers.breaker import CircuitBreaker
from acgsperf.tiers.server import DEADLINE_S

__all__ = ["PlainRedis", "close_client"]

WRITTEN: Final = 250_000
_KEYS_A_COMMAND: Final = 1_000
_AT_ONCE: Final = 50
_NO_ANSWER: Final = object()

_log = logging.getLogger(__name__)


class PlainRedis:
    """Commands to a client, none of which raises: within 250 ms, and none for a while after three in a row failed.

    Args:
        client: has `get`, `set`, `setex`, `delete`, `ttl`, `ping` and `close`, as redis-py's asyncio client does; None
            for no Redis.
        written: notes the keys that were stored, of which the last 250,000 can be found again.
    """

    def __init__(self, client: Any, written: LRUCache[str, None]) -> None:
        self.client = client
        self._written = written
        # A client of redis-py's fails when it has more callers than connections, a hundred.
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._breaker = CircuitBreaker()

    async def read(self, key: str) -> Any:
        """The value of a key; None when it is missing, cannot be read, or is null."""
        text = await self._ask("get", key)
        try:
            return None if text is None or text is _NO_ANSWER else json.loads(text)
        except (TypeError, ValueError, RecursionError):
            _log.debug("what Redis holds under a key is no JSON")
            return None

    async def write(self, key: str, value: Any, ttl: float | None) -> bool:
        """Store a value for so many seconds, rounded up, or for ever; whether Redis took it."""
        if self.client is None:
            return False
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            _log.warning("a value of type %s cannot be stored in Redis: %s", type(value).__name__, error)
            # Nor is the one before it to be found there.
            await self.delete(key)
            return False
        # Before it is asked: one that is not heard of may have been stored.
        self._written.set(key, None, ttl)
        if ttl is None:
            reply = await self._ask("set", key, text)
        elif _is_redis_py(self.client):
            reply = await self._ask("execute_command", "SETEX", key, max(1, math.ceil(ttl)), text)
        else:
            reply = await self._ask("setex", key, max(1, math.ceil(ttl)), text)
        return reply is not _NO_ANSWER

    async def expires_in(self, key: str) -> float:
        """Seconds for which Redis keeps a key: infinite without an end or a Redis, 0 when it is gone or not told."""
        if self.client is None:
            return math.inf
        left = await self._ask("ttl", key)
        if left is _NO_ANSWER:
            return 0
        if not isinstance(left, int) or left == -1:
            return math.inf
        return max(0, left)

    async def delete(self, key: str) -> bool | None:
        """Remove a key; whether Redis had it, None when there is one that does not answer."""
        reply = await self._ask("delete", key)
        if reply is _NO_ANSWER:
            return None if self.client is not None else False
        self._written.pop(key, None)
        return bool(reply)

    async def clear(self) -> bool:
        """Remove every key that was noted as written; whether Redis answered, or there is none."""
        if self.client is None:
            return True
        if forgotten := self._written.stats().evictions:
            _log.warning("up to %d keys stay in Redis until they expire: too many were stored", forgotten)
        keys = self._written.keys()
        for at in range(0, len(keys), _KEYS_A_COMMAND):
            chunk = keys[at : at + _KEYS_A_COMMAND]
            if await self._ask("delete", *chunk) is _NO_ANSWER:
                return False
            for key in chunk:
                self._written.pop(key, None)
        return True

    async def answers(self) -> bool:
        """Whether Redis answers now, asked in any case."""
        if self.client is None:
            return False
        try:
            async with asyncio.timeout(DEADLINE_S):
                await settled(self.client.ping())
        except Exception as error:
            _log.warning("Redis does not answer: %s", type(error).__name__)
            return False
        self._succeeded()
        return True

    async def _ask(self, command: str, *arguments: Any) -> Any:
        if self.client is None:
            return _NO_ANSWER
        async with self._turn:
            return await self._ask_in_turn(command, *arguments) if self._breaker.allow() else _NO_ANSWER

    async def _ask_in_turn(self, command: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_S):
                reply = await settled(getattr(self.client, command)(*arguments))
        except ResponseError as error:
            # The server is well, and would not do this.
            _log.warning("Redis refused a command: %s", error)
            reply = _NO_ANSWER
        except (DataError, UnicodeError) as error:
            # A key that cannot be sent is the caller's affair.
            _log.warning("a command cannot be sent to Redis: %s", error)
            return _NO_ANSWER
        except Exception as error:
            _log.debug("Redis failed", exc_info=True)
            if self._breaker.failed():
                _log.warning("Redis fails, and is left alone for a while: %s", type(error).__name__)
            return _NO_ANSWER
        self._succeeded()
        return reply

    def _succeeded(self) -> None:
        if self._breaker.succeeded():
            _log.info("Redis answers again")


async def close_client(client: Any) -> None:
    """Close a client by the name that every version and every stand-in of it has."""
    close = client.aclose if _is_redis_py(client) else client.close
    try:
        await settled(close())
    except Exception as error:
        _log.warning("the Redis client did not close: %s", type(error).__name__)


def _is_redis_py(client: Any) -> bool:
    # Which warns when `setex` and `close` are called by these names. Its type tells, for a mock may have its class.
    return issubclass(type(client), Redis)
