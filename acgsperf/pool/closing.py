"""How the connections of a pool are closed when the pool is."""

import logging
from typing import Final

from acgsperf.pool.options import CloseReason
from acgsperf.pool.supply import Supply
from acgsperf.pool.tasks import BackgroundTasks
from acgsperf.timeouts import time_limit

__all__ = ["close_connections"]

_log: Final = logging.getLogger("acgsperf.pool")


async def close_connections(name: str, supply: Supply, tasks: BackgroundTasks, timeout: float) -> None:  # noqa: ASYNC109
    """Return when all connections are closed and all tasks have ended. Idle connections are retired already.

    Args:
        name: the name of the pool, for the log line.
        supply: has the connections.
        tasks: the background tasks of the pool.
        timeout: seconds that borrowers have to return their connections.
    """
    inventory = supply.inventory
    try:
        async with time_limit(timeout):
            await inventory.wait_until_empty()
    except TimeoutError:
        if lent := len(inventory.slots):
            _log.warning(
                "pool %r: %d connections are still in use after %g s; cancelling their queries", name, lent, timeout
            )
        inventory.retire_all(CloseReason.CLOSED)
        await inventory.wait_until_empty()
    finally:
        inventory.terminate_all()
        supply.stop_timers()
        await tasks.cancel_all()
