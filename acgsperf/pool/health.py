"""Whether the server of a pool can be reached, and when the pool tries again."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from acgsperf.errors import PoolUnhealthy
from acgsperf.pool.connector import Connector

_log = logging.getLogger("acgsperf.pool")
_FIRST_BACKOFF_S: Final = 0.05
# The longest time until the pool notices that a server is back.
_LAST_BACKOFF_S: Final = 0.8


class ServerHealth:
    """The connection attempts that failed, the backoff between them, and the health that follows from them.

    Attributes:
        error: why the pool is unhealthy; None if it is healthy.
        failures: attempts that failed since a connection was proven. A connection that the server closes right after
            it was opened counts as an attempt that failed.
        failed_connects: attempts that failed since the pool was created.
        last_failure: the error of the last attempt, if it failed.
        retry: the timer of the next attempt; None if the pool may connect now.
    """

    def __init__(self, name: str, connector: Connector) -> None:
        self._name = name
        self._connector = connector
        self.error: Exception | None = None
        self.failures: int = 0
        self.failed_connects: int = 0
        self.last_failure: Exception | None = None
        self.retry: asyncio.TimerHandle | None = None

    def restart(self) -> None:
        """Forget the failures, because the pool is opened again. Their number stays."""
        self.error = self.last_failure = None
        self.failures = 0
        self.cancel_retry()

    def unhealthy(self) -> PoolUnhealthy:
        """Return the exception for a caller of an unhealthy pool."""
        assert self.error is not None
        where, text = self._connector.where, self._connector.describe(self.error)
        error = PoolUnhealthy(f"pool {self._name!r} cannot reach {where}: {text}")
        error.__cause__ = self.error
        return error

    def describe(self, error: Exception) -> str:
        """Return an error as text for messages, without the password."""
        return self._connector.describe(error)

    def note_failure(self, error: Exception) -> None:
        """Count a connection attempt that failed."""
        self.failures += 1
        self.failed_connects += 1
        self.last_failure = error

    def note_answer(self) -> None:
        """Stop waiting for the next attempt: the server has answered on a new connection."""
        self.last_failure = None
        self.cancel_retry()

    def note_proof(self) -> None:
        """End the backoff: a new connection has served a borrower, or has been open for some time."""
        self.failures = 0
        self.note_answer()

    @property
    def doubtful(self) -> bool:
        """Whether a new connection has to answer a check before it counts as a success."""
        return self.failures > 0 or self.error is not None

    def back_off(self, silent_s: float, then: Callable[[], None]) -> None:
        """Call `then` after a time that doubles with each failure, with jitter.

        Args:
            silent_s: seconds for which the attempt waited for the server in vain. They are a part of the time.
            then: what to call.
        """
        assert self.last_failure is not None
        doubled = _FIRST_BACKOFF_S * 2 ** min(self.failures - 1, 10)
        backoff_s = max(min(_LAST_BACKOFF_S, doubled) * random.uniform(0.5, 1.0) - silent_s, 0.0)
        _log.debug(
            "pool %r: connecting failed (%s); trying again in %.2f s",
            self._name,
            self.describe(self.last_failure),
            backoff_s,
        )
        self.cancel_retry()
        self.retry = asyncio.get_running_loop().call_later(backoff_s, self._end_backoff, then)

    def _end_backoff(self, then: Callable[[], None]) -> None:
        self.retry = None
        then()

    def cancel_retry(self) -> None:
        """Stop the timer of the next attempt, if it runs."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def mark_unhealthy(self, error: Exception) -> None:
        """Refuse callers from now on, because of this error."""
        if self.error is None:
            where, text = self._connector.where, self.describe(error)
            _log.warning("pool %r: cannot reach %s (%s); refusing callers until it answers", self._name, where, text)
        self.error = error

    def mark_healthy(self) -> None:
        """Accept callers again."""
        if self.error is not None:
            _log.info("pool %r: %s answers again; accepting callers", self._name, self._connector.where)
            self.error = None
