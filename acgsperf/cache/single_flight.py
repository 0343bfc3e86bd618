"""One load for all who want the same key at the same time, whoever of them leaves."""

import asyncio
import copy
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from acgsperf.errors import CacheError, LoadCancelledError, LoadError, LoadTimeoutError
from acgsperf.tiers.base import Entry

__all__ = ["Flight", "Flights"]

_log: Final = logging.getLogger("acgsperf.cache")


class Flight:
    """A load under way, of one key or of several, and those who wait for it.

    Attributes:
        keys: those whose value is still wanted: no write has overtaken the load.
        tags: of the entries that it will make.
        asked: those that the loader was called for.
        stale: what may be given meanwhile.
        done: resolved when the load has ended, however it did.
        detached: whether the load goes on when nobody waits.
    """

    __slots__ = (
        "_error",
        "_task",
        "_timer",
        "_values",
        "_waits_for",
        "asked",
        "detached",
        "done",
        "keys",
        "stale",
        "tags",
        "waiters",
    )

    def __init__(self, keys: Iterable[str], tags: tuple[str, ...], stale: Mapping[str, Entry]) -> None:
        self.keys = set(keys)
        self.asked: set[str] = set()
        self.tags = tags
        self.stale = stale
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.detached = False
        self.waiters = 0
        # Loads of other keys, and of other caches too; one as often as it is waited for.
        self._waits_for: list[Flight] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._values: Mapping[str, Any] = {}
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the load has ended without a value."""
        return self._error is not None

    def begin_to_wait(self, flights: Iterable["Flight"]) -> "tuple[Flight, ...]":
        """Its loader waits for other loads from now on, which are returned.

        Raises:
            LoadError: when one of them does not end before this one has.
        """
        flights = tuple(flights)
        if any(flight._needs(self) for flight in flights):
            keys = ", ".join(sorted(map(repr, self.keys or self.asked)))
            raise LoadError(f"the load of {keys:.100} would wait for itself")
        self._waits_for += flights
        return flights

    def end_to_wait(self, flights: Iterable["Flight"]) -> None:
        """Its loader does not wait for them any more."""
        for flight in flights:
            self._waits_for.remove(flight)

    def _needs(self, other: "Flight") -> bool:
        seen, ahead = {self}, [self]
        while ahead:
            flight = ahead.pop()
            if flight is other:
                return True
            new = [following for following in flight._waits_for if following not in seen]
            seen.update(new)
            ahead += new
        return False

    def result(self, key: str) -> Any:
        """What was loaded for a key; None when the loader has none.

        Raises:
            The loader's error, each caller's a copy where it can be copied: raised once for each who waits, one object
            would collect all their tracebacks.
        """
        if self._error is not None:
            raise _copied(self._error)
        return self._values.get(key)


# The loads that tasks run, of all caches. What a loader starts in tasks of its own is not known to be waited for.
_loads: dict[asyncio.Task[Any], Flight] = {}


class Flights:
    """The loads of a cache: at most one for each key, in tasks that are owned here.

    Args:
        hard_timeout: seconds that a load may take, None for no limit.
        failed: called with a flight whose load has failed, and the error.

    Attributes:
        closed: whether no load may begin; true until the cache is opened.
    """

    def __init__(self, hard_timeout: float | None, failed: Callable[[Flight, BaseException], object]) -> None:
        self.closed = True
        self._hard_timeout = hard_timeout
        self._failed = failed
        self._flights: dict[str, Flight] = {}
        # Those that were overtaken as well.
        self._running: dict[asyncio.Task[None], Flight] = {}

    def get(self, key: str) -> Flight | None:
        """The load of a key that is under way, if there is one."""
        return self._flights.get(key)

    def __len__(self) -> int:
        return len(self._flights)

    def start(
        self,
        keys: Iterable[str],
        load: Callable[[Flight], Coroutine[Any, Any, Mapping[str, Any]]],
        tags: tuple[str, ...],
        stale: Mapping[str, Entry],
    ) -> Flight:
        """Begin a load of keys that are not being loaded, in the context of the caller.

        Raises:
            CacheError: when the cache was closed since the caller came.
        """
        if self.closed:
            raise CacheError("the cache was closed before the load")
        flight = Flight(keys, tags, stale)
        for key in flight.keys:
            self._flights[key] = flight
        if self._hard_timeout is not None:
            loop = asyncio.get_running_loop()
            flight._timer = loop.call_later(self._hard_timeout, self._time_out, flight, self._hard_timeout)
        # With an eager task factory the load may have ended when this returns.
        task = flight._task = asyncio.create_task(self._run(flight, load))
        self._running[task] = flight
        task.add_done_callback(self._running.pop)
        return flight

    @contextmanager
    def waiting(self, flights: Iterable[Flight], endless: Iterable[Flight]) -> Iterator[None]:
        """The time in which a caller waits; a load that its last waiter leaves, and not detached, is cancelled.

        Args:
            flights: what is waited for.
            endless: those of them that are waited for until they have ended.

        Raises:
            LoadError: in a loader that would wait for its own load.
        """
        waited, task = tuple(flights), asyncio.current_task()
        within = None if task is None else _loads.get(task)
        linked: tuple[Flight, ...] = ()
        for flight in waited:
            flight.waiters += 1
        try:
            if within is not None:
                linked = within.begin_to_wait(endless)
            yield
        finally:
            if within is not None:
                within.end_to_wait(linked)
            for flight in waited:
                flight.waiters -= 1
                if not flight.waiters and not flight.detached and not flight.done.done():
                    self._abandon(flight, LoadCancelledError("nobody waits for the load"))

    def overtake(self, key: str) -> None:
        """A write of a key: those who wait get what they waited for, but it is not kept, and nobody joins them."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.keys.discard(key)

    def overtake_tag(self, tag: str) -> None:
        """The same for every load whose entries would have a tag."""
        for key in [key for key, flight in self._flights.items() if tag in flight.tags]:
            self.overtake(key)

    def overtake_all(self) -> None:
        """The same for every load."""
        for key in list(self._flights):
            self.overtake(key)

    async def close(self, grace: float) -> None:
        """Cancel the loads and wait for their tasks; who waits for one gets a `CacheError`."""
        self.closed = True
        for flight in self._running.values():
            self._abandon(flight, CacheError("the cache was closed during the load"))
        tasks = self._running.keys() - {asyncio.current_task()}
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=grace)
            if left:
                _log.error("%d loads ignore their cancellation", len(left))

    async def _run(self, flight: Flight, load: Callable[[Flight], Coroutine[Any, Any, Mapping[str, Any]]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        _loads[task] = flight
        try:
            values = await load(flight)
        except asyncio.CancelledError:
            # Unless the load was abandoned, and has its outcome, this comes from inside.
            self._fail(flight, LoadCancelledError("the load was cancelled from inside"))
        except Exception as error:
            self._fail(flight, error)
        except BaseException as error:
            self._fail(flight, error)
            raise
        else:
            if not flight.done.done():
                flight._values = values
                self._land(flight)
        finally:
            del _loads[task]

    def _time_out(self, flight: Flight, seconds: float) -> None:
        self._fail(flight, LoadTimeoutError(f"the load took longer than {seconds:g} s"))
        self._abandon(flight, None)

    def _fail(self, flight: Flight, error: BaseException) -> None:
        if not flight.done.done():
            self._failed(flight, error)
            flight._error = error
            self._land(flight)

    def _abandon(self, flight: Flight, error: BaseException | None) -> None:
        if not flight.done.done():
            flight._error = error
            self._land(flight)
        if flight._task is not None:
            flight._task.cancel()

    def _land(self, flight: Flight) -> None:
        for key in flight.keys:
            del self._flights[key]
        # What an abandoned load still comes up with is not kept.
        flight.keys.clear()
        if flight._timer is not None:
            flight._timer.cancel()
        flight.done.set_result(None)


def _copied(error: BaseException) -> BaseException:
    """A copy that says the same; the error itself where none can be made."""
    for copied in (copy.copy, _rebuilt):
        try:
            twin = copied(error)
            if type(twin) is type(error) and twin.args == error.args and str(twin) == str(error):
                twin.__cause__, twin.__suppress_context__ = error.__cause__, error.__suppress_context__
                twin.__context__ = error.__context__
                return twin.with_traceback(error.__traceback__)
        except Exception:
            continue
    return error


def _rebuilt(error: BaseException) -> BaseException:
    # Without `__init__`, which `copy` calls with `args`, and which may take something else.
    kind = type(error)
    for base in kind.__mro__:
        if vars(base).get("__slots__") or (_is_builtin(base) and base.__basicsize__ > BaseException.__basicsize__):
            raise TypeError(f"{kind.__name__} holds more than its __dict__ does")
    twin = kind.__new__(kind, *error.args)
    twin.__dict__.update(error.__dict__)
    return twin


def _is_builtin(kind: type) -> bool:
    return kind.__module__ == "builtins"
