"""A second connection attempt for a server that does not answer the first one.

If a network loses the packets of a connection attempt, that attempt stays silent even when the network works again. A
new attempt is answered at once. A server that is only slow may need the whole `connect_timeout`, so the first attempt
continues.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from acgsperf.pool.slot import Connection

    Connect = Callable[[float], Coroutine[Any, Any, Connection]]

_log = logging.getLogger("acgsperf.pool")
# The time after which an attempt counts as silent, and a second attempt is replaced by another one.
_SILENT_S: Final = 1.0


class Spare:
    """The permission for a second attempt: a pool has one.

    The second attempt needs no room in the pool, because at most one of the two attempts becomes a connection.

    Attributes:
        in_flight: whether an attempt has the permission.
    """

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        self.in_flight: bool = False

    def take(self) -> bool:
        """Take the permission; return False if another attempt has it."""
        if self.in_flight:
            return False
        self.in_flight = True
        return True

    def give_back(self) -> None:
        """Give the permission back."""
        self.in_flight = False


async def first_to_connect(connect: "Connect", timeout: float, spare: Spare) -> "Connection":  # noqa: ASYNC109
    """Connect within `timeout` seconds, with a second attempt if the first one is silent for a second.

    The first connection that is open is returned, and the other attempt is aborted. The second attempt is replaced by a
    new one each second. If the first attempt fails, the call raises its error.

    Args:
        connect: makes one attempt, within the seconds that it is given.
        timeout: seconds for all attempts together.
        spare: the permission for the second attempt.
    """
    if timeout <= _SILENT_S:
        return await connect(timeout)
    deadline = asyncio.get_running_loop().time() + timeout
    first = asyncio.create_task(connect(timeout))
    attempts = [first]
    try:
        await asyncio.wait(attempts, timeout=_SILENT_S)
        if not first.done():
            attempts.append(asyncio.create_task(_try_again(connect, deadline, spare)))
            await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
        winner = next(filter(_has_succeeded, attempts), first)
        connection = await winner
    except BaseException:
        await _abort(attempts)
        raise
    attempts.remove(winner)
    try:
        await _abort(attempts)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _try_again(connect: "Connect", deadline: float, spare: Spare) -> "Connection":
    clock = asyncio.get_running_loop().time
    while not spare.take():  # noqa: ASYNC110 - the other attempt ends in many ways
        await asyncio.sleep(_SILENT_S)
    try:
        while (remaining := deadline - clock()) > 0:
            share = min(_SILENT_S, remaining)
            next_at = clock() + share
            try:
                return await connect(share)
            except Exception as error:  # The error of the first attempt is the one that counts.
                _log.debug("a second connection attempt failed: %s", type(error).__name__)
            await asyncio.sleep(next_at - clock())
        raise TimeoutError
    finally:
        spare.give_back()


async def _abort(attempts: "Collection[asyncio.Task[Connection]]") -> None:
    for attempt in attempts:
        # Also closes the connection if the wait below is cancelled.
        attempt.add_done_callback(_close)
        attempt.cancel()
    if attempts:
        await asyncio.wait(attempts)


def _has_succeeded(attempt: "asyncio.Task[Connection]") -> bool:
    return attempt.done() and not attempt.cancelled() and attempt.exception() is None


def _close(attempt: "asyncio.Task[Connection]") -> None:
    """Close the connection of an attempt that succeeded though it was not needed any more."""
    if _has_succeeded(attempt):
        attempt.result().terminate()
