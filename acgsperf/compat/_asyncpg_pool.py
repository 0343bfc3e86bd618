"""Calls of an asyncpg pool with deadlines, which also work with the substitutes that callers use in its place."""

import inspect
from typing import Any, Final

from asyncpg import Pool

from acgsperf.compat._maybe_await import maybe_await
from acgsperf.timeouts import time_limit

__all__ = ["is_exhausted", "open_connections", "ping", "pool_size", "release"]

HEALTH_TIMEOUT_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 5.0


def pool_size(pool: Any, default: int) -> int:
    """Return the number of open connections; `default` if the pool cannot tell."""
    size = pool.get_size() if pool is not None else 0
    if inspect.iscoroutine(size):
        # Every method of an AsyncMock is a coroutine function; the method of a real pool is not.
        size.close()
    return size if isinstance(size, int) else default


def is_exhausted(pool: Any, in_use: int, max_size: int) -> bool:
    """Return whether every connection is in use and no more can be opened.

    Args:
        pool: the pool. Only a real one knows how many connections are idle.
        in_use: the connections in use, for a substitute.
        max_size: the maximum number of connections, for a substitute.
    """
    if isinstance(pool, Pool):
        return pool.get_idle_size() == 0 and pool.get_size() >= pool.get_max_size()
    return in_use >= max_size


async def ping(pool: Any) -> bool:
    """Run `SELECT 1`, and return False if no connection became free within 5 s.

    Raises:
        Exception: if the server does not answer.
    """
    try:
        async with time_limit(HEALTH_TIMEOUT_S):
            connection = await maybe_await(pool.acquire())
    except TimeoutError:
        return False
    try:
        async with time_limit(HEALTH_TIMEOUT_S):
            await maybe_await(connection.fetchval("SELECT 1"))
    finally:
        await release(pool, connection)
    return True


async def release(pool: Any, connection: Any) -> None:
    """Return a connection to the pool. Terminate it if its session is not reset within 5 s.

    Raises:
        TimeoutError: after the connection was terminated.
        Exception: whatever the pool raises.
    """
    try:
        async with time_limit(RELEASE_TIMEOUT_S):
            await maybe_await(pool.release(connection))
    except TimeoutError:
        await maybe_await(connection.terminate())
        raise


async def open_connections(pool: Any, count: int, timeout_s: float) -> None:
    """Open connections until there are `count`.

    This holds `count` connections at the same time, because asyncpg opens a connection only when it needs one.

    Raises:
        Exception: if a connection cannot be opened in time; those that were opened stay open.
    """
    acquired = []
    try:
        async with time_limit(timeout_s):
            for _ in range(count):
                acquired.append(await pool.acquire())  # noqa: PERF401 - after a timeout, those acquired are released
    finally:
        for connection in acquired:
            await pool.release(connection)
