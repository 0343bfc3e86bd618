"""Single flight: concurrent callers of a key share one load, and cancelling one caller does not affect the others."""

import asyncio
import copy
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from acgsperf.errors import CacheError, LoadCancelledError, LoadError, LoadTimeoutError
from acgsperf.tiers.base import Entry

__all__ = ["BypassingLoad", "Flight", "Flights"]

_log: Final = logging.getLogger("acgsperf.cache")


class Flight:
    """A load of one or several keys that is in flight, and what its callers need to know of it.

    Attributes:
        keys: the keys whose value will be stored. A write of a key during the load removes it.
        tags: the tags of the entries that the load makes.
        loader_keys: the keys that the loader was called with.
        stale: the entries that may be served meanwhile.
        began_at: the number of the latest write when the load began.
        started: when the load began, by the clock of its `Flights`.
        done: resolved when the load has ended, with or without success.
        detached: whether the load continues when no caller waits for it.
        span: its span, if an exporter makes spans.
        failure: the type of the error with which it has failed; None if it was cancelled because no caller waits for
            it, or because the cache is closed. Unlike the error, it is kept.
    """

    __slots__ = (
        "_dependencies",
        "_error",
        "_task",
        "_timer",
        "_values",
        "_wanted",
        "began_at",
        "detached",
        "done",
        "failure",
        "keys",
        "loader_keys",
        "span",
        "stale",
        "started",
        "tags",
        "waiters",
    )

    def __init__(
        self, keys: Iterable[str], tags: tuple[str, ...], stale: Mapping[str, Entry], began_at: int, started: float
    ) -> None:
        self._wanted: Final = tuple(keys)
        self.keys: Final = set(self._wanted)
        self.loader_keys: set[str] = set()
        self.tags: Final = tags
        self.stale: Final = stale
        self.began_at: Final = began_at
        self.started: Final = started
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.detached: bool = False
        self.span: Any = None
        self.failure: type[BaseException] | None = None
        self.waiters: int = 0
        # The loads, of this cache or of others, that the loader waits for; one entry for each of its waits.
        self._dependencies: list[Flight] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._values: Mapping[str, Any] = {}
        self._error: BaseException | None = None

    def __str__(self) -> str:
        """The load, for messages."""
        return f"load of {', '.join(map(repr, self._wanted)):.100}"

    @property
    def failed(self) -> bool:
        """Whether the load has ended without a value. Ask while waiting for it; see `Flights.waiting`."""
        return self._error is not None

    def failure_of(self, error: type[BaseException] | None) -> type[BaseException] | None:
        """Return the error with which the load fails if a part of it ends with an error, or with None.

        A load that has taken too long has failed before its loader is cancelled.
        """
        if self.failure is not None:
            return self.failure
        return LoadCancelledError if error is asyncio.CancelledError and not self.done.done() else error

    def forget_error(self) -> None:
        """Drop the error, because no caller waits for it any more.

        Its traceback has frames that refer to the load. Only the garbage collector could free such a cycle.
        """
        self._error = None

    def add_dependencies(self, flights: Iterable["Flight"]) -> "tuple[Flight, ...]":
        """Record that the loader waits for other loads, and return these.

        Raises:
            LoadError: if one of them cannot end before this load does.
        """
        flights = tuple(flights)
        if any(flight._depends_on(self) for flight in flights):
            raise LoadError(
                f"the {self} would wait for itself: a loader must not call the cache for a key whose load waits for"
                " this loader"
            )
        self._dependencies += flights
        return flights

    def remove_dependencies(self, flights: Iterable["Flight"]) -> None:
        """Record that the loader does not wait for these loads any more."""
        for flight in flights:
            self._dependencies.remove(flight)

    def _depends_on(self, other: "Flight") -> bool:
        seen, queue = {self}, [self]
        while queue:
            flight = queue.pop()
            if flight is other:
                return True
            new = [dependency for dependency in flight._dependencies if dependency not in seen]
            seen.update(new)
            queue += new
        return False

    def result(self, key: str) -> Any:
        """Return the loaded value of a key, None if the loader had none.

        Raises:
            The loader's error. Each caller gets a copy, if the error can be copied. Otherwise one object would collect
            the tracebacks of all callers.
        """
        if self._error is not None:
            raise _copy_of(self._error)
        return self._values.get(key)


class BypassingLoad:
    """A load that stores nothing and that no other caller joins; for its span."""

    __slots__ = ("span",)

    def failure_of(self, error: type[BaseException] | None) -> type[BaseException] | None:
        """Return the error with which the load fails, as for a `Flight`."""
        return error


# The load that the current code belongs to, of any cache. Tasks that a loader starts belong to its load as well: the
# loader usually waits for them.
_current_load: ContextVar[Flight | None] = ContextVar("acgsperf_load", default=None)


class Flights:
    """The loads of a cache: at most one for each key. Owns the tasks that run them.

    Args:
        namespace: names the cache in messages.
        on_failure: called with the flight and the error when a load fails.
        clock: returns the time in seconds.
        is_outdated: called with the time at which a load began. Returns whether a write may have superseded it
            unnoticed.

    Attributes:
        closed: whether no load may start. True until the cache is opened.
    """

    def __init__(
        self,
        namespace: str,
        on_failure: Callable[[Flight, BaseException], object],
        clock: Callable[[], float],
        is_outdated: Callable[[float], bool],
    ) -> None:
        self.closed: bool = True
        self._namespace = namespace
        self._on_failure = on_failure
        self._clock = clock
        self._is_outdated = is_outdated
        self._flights: dict[str, Flight] = {}
        # Superseded loads are here, too.
        self._running: dict[asyncio.Task[None], Flight] = {}

    def open(self) -> None:
        """Allow loads from now on."""
        self.closed = False

    def get(self, key: str) -> Flight | None:
        """Return the load of a key that is in flight and that a caller may join, if there is one.

        Supersede an outdated one: what it returns may be older than this call.
        """
        flight = self._flights.get(key)
        if flight is not None and self._is_outdated(flight.started):
            self.supersede(key)
            return None
        return flight

    def __len__(self) -> int:
        return len(self._flights)

    def start(
        self,
        keys: Iterable[str],
        load: Callable[[Flight], Coroutine[Any, Any, Mapping[str, Any]]],
        tags: tuple[str, ...],
        stale: Mapping[str, Entry],
        began_at: int,
        hard_timeout: float | None,
    ) -> Flight:
        """Start a load of keys that are not in flight, in the context of the caller.

        Args:
            keys: the keys.
            load: loads them.
            tags: the tags of the entries that it makes.
            stale: the entries that may be served meanwhile.
            began_at: the number of the latest write.
            hard_timeout: the maximum duration, in seconds; None for no limit.

        Raises:
            CacheError: if the cache was closed since the call of the cache began.
        """
        if self.closed:
            raise CacheError(f"cache {self._namespace!r} was closed before the load started")
        flight = Flight(keys, tags, stale, began_at, self._clock())
        for key in flight.keys:
            self._flights[key] = flight
        if hard_timeout is not None:
            loop = asyncio.get_running_loop()
            flight._timer = loop.call_later(hard_timeout, self._time_out, flight, hard_timeout)
        # With an eager task factory the load may have ended when this call returns.
        task = flight._task = asyncio.create_task(self._run(flight, load))
        self._running[task] = flight
        task.add_done_callback(self._ended)
        return flight

    def _ended(self, task: asyncio.Task[None]) -> None:
        flight = self._running.pop(task)
        # The context of the task refers to the load. Without this cycle, reference counting frees both at once.
        flight._task = None
        if not task.cancelled():
            # Otherwise asyncio logs that nobody has taken the error of the task. The callers have it from the load.
            task.exception()
        if not flight.waiters:
            flight.forget_error()

    def waiting(self, flights: Iterable[Flight], until_done: Iterable[Flight]) -> "Waiting":
        """Return a context for the time in which a caller waits for loads, and takes their results.

        When the last caller of a load leaves, the load is cancelled unless it is detached.

        Args:
            flights: the loads that the caller waits for.
            until_done: those of them that the caller waits for without a time limit.

        Raises:
            LoadError: on entering, if the caller is a loader that would wait for its own load.
        """
        return Waiting(self, flights, until_done)

    def supersede(self, key: str) -> None:
        """Supersede the load of a key by a write.

        The callers that wait for the load get its value, but no tier stores it, and no further caller joins the load.
        """
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.keys.discard(key)

    def supersede_tag(self, tag: str) -> None:
        """Supersede every load whose entries would have a tag."""
        for key in [key for key, flight in self._flights.items() if tag in flight.tags]:
            self.supersede(key)

    def supersede_all(self) -> None:
        """Supersede every load."""
        for key in list(self._flights):
            self.supersede(key)

    async def close(self, grace_s: float) -> None:
        """Cancel the loads, and wait for their tasks at most `grace_s` seconds. Their callers get a `CacheError`."""
        self.closed = True
        for flight in self._running.values():
            self.cancel(flight, CacheError(f"cache {self._namespace!r} was closed during the {flight}"))
        tasks = self._running.keys() - {asyncio.current_task()}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=grace_s)
            if pending:
                _log.error(
                    "cache %r: %d loads ignored their cancellation for %g s; closing without waiting for them",
                    self._namespace,
                    len(pending),
                    grace_s,
                )

    async def _run(self, flight: Flight, load: Callable[[Flight], Coroutine[Any, Any, Mapping[str, Any]]]) -> None:
        _current_load.set(flight)
        try:
            values = await load(flight)
        except asyncio.CancelledError:
            # If this class has cancelled the task, the flight is done already. Otherwise the loader was the cause.
            self._fail(flight, LoadCancelledError(f"the loader cancelled the {flight}"))
        except Exception as error:
            self._fail(flight, error)
        except BaseException as error:
            self._fail(flight, error)
            raise
        else:
            if not flight.done.done():
                flight._values = values
                self._finish(flight)

    def _time_out(self, flight: Flight, seconds: float) -> None:
        self._fail(flight, LoadTimeoutError(f"the {flight} took longer than hard_timeout ({seconds:g} s)"))
        self.cancel(flight, None)

    def _fail(self, flight: Flight, error: BaseException) -> None:
        if not flight.done.done():
            self._on_failure(flight, error)
            flight._error, flight.failure = error, type(error)
            self._finish(flight)

    def cancel(self, flight: Flight, error: BaseException | None) -> None:
        """End a load with an error; with None, the load is done already."""
        if not flight.done.done():
            flight._error = error
            self._finish(flight)
        if flight._task is not None:
            flight._task.cancel()

    def _finish(self, flight: Flight) -> None:
        for key in flight.keys:
            del self._flights[key]
        # If a cancelled load still returns values, they are not stored.
        flight.keys.clear()
        if flight._timer is not None:
            flight._timer.cancel()
        flight.done.set_result(None)


class Waiting:
    """A caller that waits for loads; see `Flights.waiting`.

    It is not a generator, because `contextlib` sets the traceback of the error that leaves it, and an error may be
    frozen.
    """

    __slots__ = ("_callers_load", "_dependencies", "_flights", "_owner", "_until_done")

    def __init__(self, owner: Flights, flights: Iterable[Flight], until_done: Iterable[Flight]) -> None:
        self._owner = owner
        self._flights = tuple(flights)
        self._until_done = until_done
        self._callers_load: Flight | None = None
        self._dependencies: tuple[Flight, ...] = ()

    def __enter__(self) -> None:
        for flight in self._flights:
            flight.waiters += 1
        callers_load = _current_load.get()
        # If it is done, the task that calls this has outlived its load.
        if callers_load is not None and not callers_load.done.done():
            try:
                self._dependencies = callers_load.add_dependencies(self._until_done)
            except LoadError:
                self.__exit__()
                raise
            self._callers_load = callers_load

    def __exit__(self, *error: object) -> None:
        if self._callers_load is not None:
            self._callers_load.remove_dependencies(self._dependencies)
        for flight in self._flights:
            flight.waiters -= 1
            if flight.waiters:
                continue
            if flight.done.done():
                flight.forget_error()
            elif not flight.detached:
                self._owner.cancel(flight, LoadCancelledError(f"the {flight} was cancelled: no caller waits for it"))


def _copy_of(error: BaseException) -> BaseException:
    """Return a copy with the same message, or the error itself if it cannot be copied."""
    for make in (copy.copy, _rebuilt):
        try:
            twin = make(error)
            if type(twin) is type(error) and twin.args == error.args and str(twin) == str(error):
                twin.__cause__, twin.__suppress_context__ = error.__cause__, error.__suppress_context__
                twin.__context__ = error.__context__
                return twin.with_traceback(error.__traceback__)
        except Exception:
            # The methods of an error's class may raise anything. The caller must get the error of the load instead.
            continue
    return error


def _rebuilt(error: BaseException) -> BaseException:
    # `copy.copy` calls `__init__` with `args`, but an `__init__` may take other arguments. This does not call it.
    kind = type(error)
    for base in kind.__mro__:
        if vars(base).get("__slots__") or (_is_builtin(base) and base.__basicsize__ > BaseException.__basicsize__):
            raise TypeError(f"{kind.__name__} has state outside its __dict__")
    twin = kind.__new__(kind, *error.args)
    twin.__dict__.update(error.__dict__)
    return twin


def _is_builtin(kind: type) -> bool:
    return kind.__module__ == "builtins"
