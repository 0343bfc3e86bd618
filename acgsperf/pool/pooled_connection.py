"""The class of a pool's connections."""

import asyncio
import logging
from contextlib import suppress
from types import new_class
from typing import TYPE_CHECKING, ClassVar, Final, cast

import asyncpg

from acgsperf.pool.wire import WiredLoop, wire_of

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

__all__ = ["pooled_class"]

_log = logging.getLogger("acgsperf.pool")
_ADDITIONAL_RESET: Final = "\nRESET SESSION AUTHORIZATION;\nDISCARD TEMP;\nDISCARD SEQUENCES;"


class _PooledConnection:
    """A connection whose reset also undoes what RESET ALL does not: the role, temporary tables, sequence values.

    It also tells its pool who closed it. If a silent server does not confirm in time that it has cancelled a query, the
    connection closes itself.
    """

    __slots__ = ()

    _cancel_timeout: ClassVar[float]

    def __init__(self, protocol: object, transport: asyncio.Transport, loop: object, *args: object) -> None:
        # The constructor of asyncpg fails if the version of the server is not a number. Its destructor then reads this.
        self._source_traceback = None  # type: ignore[misc]
        try:
            # asyncpg compares the loop of a connection with the running one.
            super().__init__(protocol, transport, loop.loop if isinstance(loop, WiredLoop) else loop, *args)  # type: ignore[call-arg]
        except BaseException:
            self._aborted = True  # type: ignore[misc]
            transport.abort()
            raise
        wire = wire_of(self)
        if wire is not None:
            wire.signed_in = True

    def get_reset_query(self) -> str:
        """Return the query that resets a session, prepared statements excepted."""
        query: str = super().get_reset_query()  # type: ignore[misc]
        # A server that is not PostgreSQL may not know these. A server that knows CLOSE ALL and RESET ALL also knows
        # these.
        return query + _ADDITIONAL_RESET if "CLOSE ALL" in query and "RESET ALL" in query else query

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Close the connection gracefully."""
        wire = wire_of(self)
        if wire is not None:
            wire.closing = True
        await super().close(timeout=timeout)  # type: ignore[misc]

    async def _cancel(self, *waiters: object) -> None:
        """Ask the server to cancel the query, and close the connection if it does not confirm that.

        What asyncpg sends next on this connection waits for the confirmation, for example the ROLLBACK of a transaction
        that a timeout has ended. Without a `command_timeout`, asyncpg waits without a limit.
        """
        limit = asyncio.timeout(self._cancel_timeout)
        # asyncpg 0.32 swallows the cancellation by this timeout.
        with suppress(TimeoutError):
            async with limit:
                await super()._cancel(*waiters)  # type: ignore[misc]
        if limit.expired():
            _log.debug("the server has not confirmed a cancellation within %g s; closing", self._cancel_timeout)
            self.terminate()  # type: ignore[attr-defined]


def pooled_class(base: "type[Connection]", cancel_timeout: float) -> "type[Connection]":
    """Return the class for a pool's connections: a subclass of asyncpg's class or of a user's subclass.

    Args:
        base: the class.
        cancel_timeout: seconds within which the server must confirm that it has cancelled a query. Otherwise the
            connection is closed.

    Raises:
        TypeError: if `base` is not such a class.
    """
    if not (isinstance(base, type) and issubclass(base, asyncpg.Connection)):
        raise TypeError(f"connection_class must be a subclass of asyncpg.Connection, got {base!r}")
    body = {
        "__slots__": (),
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "_cancel_timeout": cancel_timeout,
    }
    return cast(
        "type[Connection]", new_class(base.__name__, (_PooledConnection, base), exec_body=lambda ns: ns.update(body))
    )
