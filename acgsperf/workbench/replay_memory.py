"""Limits the memory of a private Redis, so that L2 cannot hold every value and L3 is read too."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from acgsperf.errors import AcgsperfError

__all__ = ["bounded_memory"]

# With 80 %, L3 answered 7 to 10 % of the requests, so that P95 was the latency of L3.
_SHARE: Final = 0.95
# The memory of connections varies by some 10 KB. If the values need less than this, there is no limit.
_LEAST_BYTES: Final = 1024 * 1024
_SETTINGS: Final = ("maxmemory", "maxmemory-policy")


@asynccontextmanager
async def bounded_memory(url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Provide a function that limits a Redis to the memory for 95 % of the values stored since the block began.

    The server then evicts what was not used for the longest time. It gets its own settings back at the end.

    Args:
        url: the URL of a server that nobody else uses.

    Raises:
        AcgsperfError: if the server does not answer.
    """
    async with redis.asyncio.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2) as client:

        async def used() -> int:
            return int((await client.info("memory"))["used_memory"])

        async def bound() -> None:
            try:
                stored = await used() - empty
                if stored >= _LEAST_BYTES:
                    await client.config_set("maxmemory-policy", "volatile-lru")
                    await client.config_set("maxmemory", empty + int(_SHARE * stored))
            except (RedisError, OSError) as error:
                raise _failure(error) from error

        try:
            former = {name: str((await client.config_get(name))[name]) for name in _SETTINGS}
            empty = await used()
        except (RedisError, OSError) as error:
            raise _failure(error) from error
        try:
            yield bound
        finally:
            with suppress(RedisError, OSError):
                for name, value in former.items():
                    await client.config_set(name, value)


def _failure(error: Exception) -> AcgsperfError:
    return AcgsperfError(f"Redis failed: {str(error) or type(error).__name__}")
