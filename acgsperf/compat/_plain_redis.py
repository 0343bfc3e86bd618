"""Redis commands in the format of the replaced module: bare keys, JSON texts, SETEX and SET, with any client."""

import asyncio
import json
import logging
import math
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import DataError, ResponseError

from acgsperf.addresses import checked_redis_url, masked
from acgsperf.compat._cluster_client import ClusterClient, is_cluster
from acgsperf.compat._maybe_await import maybe_await
from acgsperf.compat._sentinel_client import explained, has_schemes_of_its_own, sentinel_client
from acgsperf.dispatch import LRUCache
from acgsperf.tiers.breaker import FAILURES, RECOVERY_S, CircuitBreaker
from acgsperf.tiers.server import DEADLINE_S
from acgsperf.timeouts import time_limit

__all__ = ["PlainRedis", "close_client", "connected_client"]

MAX_WRITTEN: Final = 250_000
_KEYS_PER_COMMAND: Final = 1_000
_MAX_CONCURRENT: Final = 50
_NO_REPLY: Final = object()
_CONNECT_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)


class PlainRedis:
    """Sends commands to a Redis client. No method raises an error of Redis.

    Each command has a deadline of 250 ms. After 3 failures in a row the circuit opens, and commands are skipped.

    Args:
        client: has `get`, `set`, `setex`, `delete`, `ttl`, `ping` and `close`, like redis-py's asyncio client. None
            means there is no Redis.
        written: records the keys that were stored, so that `clear` can remove them.
    """

    def __init__(self, client: Any, written: LRUCache[str, None]) -> None:
        self.client = client
        self._written = written
        # A redis-py client fails if more callers than its 100 connections use it at the same time.
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._breaker = CircuitBreaker()

    async def read(self, key: str) -> Any:
        """Return the value of a key; None if the key is missing, cannot be read, or holds null."""
        text = await self._command("get", key)
        try:
            return None if text is None or text is _NO_REPLY else json.loads(text)
        except (TypeError, ValueError, RecursionError):
            _log.debug("redis: a value is not JSON; it is read as a miss")
            return None

    async def write(self, key: str, value: Any, ttl: float | None) -> bool:
        """Store a value for `ttl` seconds, rounded up, or with None forever; return whether Redis stored it."""
        if self.client is None:
            return False
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            _log.warning("redis: a value of type %s is not JSON; its key is removed: %s", type(value).__name__, error)
            # Otherwise other processes would read the previous value.
            await self.delete(key)
            return False
        # Recorded before the command, because a command without a reply may have stored the value.
        self._written.set(key, None, ttl)
        if ttl is None:
            reply = await self._command("set", key, text)
        elif _is_redis_py(self.client):
            reply = await self._command("execute_command", "SETEX", key, max(1, math.ceil(ttl)), text)
        else:
            reply = await self._command("setex", key, max(1, math.ceil(ttl)), text)
        return reply is not _NO_REPLY

    async def expires_in(self, key: str) -> float:
        """Return the seconds until a key expires in Redis.

        Infinity if the key never expires or there is no Redis; 0 if the key is missing or Redis does not answer.
        """
        if self.client is None:
            return math.inf
        remaining = await self._command("ttl", key)
        if remaining is _NO_REPLY:
            return 0
        if not isinstance(remaining, int) or remaining == -1:
            return math.inf
        return max(0, remaining)

    async def delete(self, key: str) -> bool | None:
        """Remove a key; return whether Redis had it, or None if Redis did not answer."""
        reply = await self._command("delete", key)
        if reply is _NO_REPLY:
            return None if self.client is not None else False
        self._written.pop(key, None)
        return bool(reply)

    async def clear(self) -> bool:
        """Remove every recorded key; return False if Redis did not answer."""
        if self.client is None:
            return True
        if forgotten := self._written.stats().evictions:
            _log.warning(
                "redis: only the last %d keys are removed; up to %d older ones stay until they expire",
                MAX_WRITTEN,
                forgotten,
            )
        keys = self._written.keys()
        for at in range(0, len(keys), _KEYS_PER_COMMAND):
            chunk = keys[at : at + _KEYS_PER_COMMAND]
            if await self._command("delete", *chunk) is _NO_REPLY:
                return False
            for key in chunk:
                self._written.pop(key, None)
        return True

    async def answers(self) -> bool:
        """Ping Redis now, even if the circuit is open; return whether it answered."""
        if self.client is None:
            return False
        try:
            async with time_limit(DEADLINE_S):
                await maybe_await(self.client.ping())
        except Exception as error:
            _log.warning(
                "redis: health check failed: %s; l2_healthy is False, and L1 still serves", type(error).__name__
            )
            return False
        self._succeeded()
        return True

    async def _command(self, command: str, *arguments: Any) -> Any:
        if self.client is None:
            return _NO_REPLY
        async with self._slots:
            return await self._send(command, *arguments) if self._breaker.allow() else _NO_REPLY

    async def _send(self, command: str, *arguments: Any) -> Any:
        try:
            async with time_limit(DEADLINE_S):
                reply = await maybe_await(getattr(self.client, command)(*arguments))
        except ResponseError as error:
            # A server that refuses a command is healthy.
            _log.warning("redis: command %s refused: %s; the cache continues without its result", command, error)
            reply = _NO_REPLY
        except (DataError, UnicodeError) as error:
            # The caller's key is not valid; this says nothing about the server.
            _log.warning("redis: command %s cannot be sent: %s; the cache continues without its result", command, error)
            return _NO_REPLY
        except Exception as error:
            _log.debug("redis: command %s failed", command, exc_info=True)
            if self._breaker.failed():
                why = type(error).__name__
                _log.warning(
                    "redis: circuit opened after %d failures (%s); commands are skipped for %g s",
                    FAILURES,
                    why,
                    RECOVERY_S,
                )
            return _NO_REPLY
        self._succeeded()
        return reply

    def _succeeded(self) -> None:
        if self._breaker.succeeded():
            _log.info("redis: circuit closed; commands are sent again")


async def connected_client(redis_url: str, module: Any) -> Any:
    """Return a client that has answered a `PING`; None, with a warning in the log, if Redis is not reachable.

    Args:
        redis_url: a server, the sentinels that watch it, or nodes of a cluster.
        module: has `from_url`, as `redis.asyncio` has.
    """
    client: Any = None
    has_own_scheme = has_schemes_of_its_own(redis_url)
    try:
        if is_cluster(str(redis_url)):
            client = ClusterClient(checked_redis_url("redis_url", redis_url))
        elif has_own_scheme:
            client = sentinel_client(redis_url)
        else:
            # RESP2 has no push messages, so a reply always belongs to its command. Retries would delay a miss.
            client = await maybe_await(module.from_url(redis_url, protocol=2, retry=Retry(NoBackoff(), 0)))
        async with time_limit(_CONNECT_TIMEOUT_S):
            # A cluster is used even if one of its nodes is down.
            await (client.find() if isinstance(client, ClusterClient) else maybe_await(client.ping()))
    except Exception as error:
        why = explained(error) if has_own_scheme else type(error).__name__
        where = masked(str(redis_url))
        _log.warning("cache: Redis at %s is not reachable; the cache uses L1 only: %s", where, why)
        if client is not None:
            await close_client(client)
        return None
    return client


async def close_client(client: Any) -> None:
    """Close a client, by the method that its class or its substitute has."""
    close = client.aclose if _is_redis_py(client) else client.close
    try:
        await maybe_await(close())
    except Exception as error:
        _log.warning("redis: client did not close: %s; its connections may stay open", type(error).__name__)


def _is_redis_py(client: Any) -> bool:
    # redis-py deprecates `setex` and `close`. Checked by `type`, because a mock may claim to be of the class.
    return issubclass(type(client), Redis)
