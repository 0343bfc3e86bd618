"""What brings connections to those who wait: connecting, checking, resetting, closing, and trying again.

Callers never talk to the server on the pool's behalf. One that finds no idle connection becomes a waiter, first come,
first served; tasks that the pool owns do the talking, and give what they have to the oldest waiter. So a cancelled
caller has nothing to lose but a place in the queue.
"""

import asyncio
import inspect
import itertools
import logging
import math
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import asyncpg

from acgsperf._native.arguments import checked_str
from acgsperf.addresses import checked_dsn, secrets_of, server_of
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import PoolClosed, PoolError, PoolSaturated, PoolTimeout, PoolUnhealthy
from acgsperf.pool.options import CloseReason, PoolOptions
from acgsperf.pool.slot import Slot, pooled_class

_log = logging.getLogger("acgsperf.pool")
_CONNECTS_AT_ONCE: Final = 8
_SLOW_CHECK_S: Final = 0.1
_FAILURES_TOLERATED: Final = 3
_FIRST_BACKOFF_S: Final = 0.05
# A server that is back must not wait much longer than this to be noticed.
_LAST_BACKOFF_S: Final = 0.8
_LATENCY_WEIGHT: Final = 0.2
# Before everybody else.
HEALTH_TICKET: Final = 0
# As much as a histogram takes.
_LONGEST_NS: Final = LatencyHistogram().highest_ns


class Supply:
    """The connections of a pool and its waiters; `ConnectionPool` is the face of it."""

    def __init__(self, name: str, dsn: str, options: PoolOptions, connect_options: dict[str, Any]) -> None:
        if unknown := connect_options.keys() - inspect.signature(asyncpg.connect).parameters.keys():
            names = ", ".join(sorted(unknown))
            raise TypeError(f"options must be those of ConnectionPool and asyncpg.connect, not {names}")
        self.name = checked_str("name", name)
        self.options = options
        self.wait_time = LatencyHistogram()
        self.use_time = LatencyHistogram()
        self._dsn = checked_dsn("dsn", dsn)
        own = [str(connect_options[name]) for name in ("host", "port") if connect_options.get(name)]
        self._where = ":".join(own) or server_of(dsn)
        connection_class = pooled_class(connect_options.get("connection_class", asyncpg.Connection))
        self._connect_options: dict[str, Any] = {**connect_options, "connection_class": connection_class}
        self._min_size, self._max_size = options.min_size, options.max_size
        self._target_size = options.min_size
        self._clock = options.clock

        # A slot is open in `_slots`, in `_idle` as well while nobody uses it, and then closing in `_leaving`.
        self._slots: set[Slot] = set()
        self._leaving: set[Slot] = set()
        self._idle: deque[Slot] = deque()
        self._waiters: OrderedDict[asyncio.Future[Slot], int] = OrderedDict()
        self._tickets = itertools.count(HEALTH_TICKET + 1)
        self._warmers: dict[asyncio.Future[None], int] = {}
        # Checks under way; the server has been silent for a while in some of them.
        self._connecting = self._checks = self._slow_checks = 0
        # Connections that are to be replaced for their age, as of the last round of housekeeping.
        self._ageing = 0
        self._generation = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = self._closed = False
        self._emptied = asyncio.Event()

        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._last_failure: Exception | None = None
        self._error: Exception | None = None

        self._opened = self._failed_connects = self._timeouts = self._saturations = 0
        self._closed_by: Counter[CloseReason] = Counter()
        self._peak = 0
        self._recent_use_s = 0.0
        # When a lease ended last, or the first of those began that have not.
        self._progress_at = 0.0

    @property
    def _in_use(self) -> int:
        return len(self._slots) - len(self._idle)

    @property
    def _demand(self) -> int:
        """Callers that have a connection, or wait for one."""
        return self._in_use - self._checks + len(self._waiters)

    @property
    def _room(self) -> int:
        """How many more connections may be opened."""
        return self._max_size - len(self._slots) - self._connecting - len(self._leaving)

    def _refuse_elsewhere(self) -> None:
        """Refuse other event loops, and processes that were forked: what they hold are copies of our sockets."""
        if self._loop is None:
            return
        try:
            elsewhere = asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            elsewhere = True
        if elsewhere:
            raise PoolError(f"pool {self.name!r} belongs to another event loop or process")

    def _refuse_unless_open(self) -> None:
        self._refuse_elsewhere()
        if not self._open:
            raise PoolClosed(f"pool {self.name!r} is {'closed' if self._closed else 'not open'}")
        if self._error is not None:
            raise self._unhealthy() from self._error

    def _unhealthy(self) -> PoolUnhealthy:
        assert self._error is not None
        error = PoolUnhealthy(f"pool {self.name!r} cannot reach {self._where}: {self._describe(self._error)}")
        error.__cause__ = self._error
        return error

    def _describe(self, error: Exception) -> str:
        kind, text = type(error).__name__, str(error)
        # What a server or the system says names no password, though its words may contain what is one.
        if not isinstance(error, asyncpg.PostgresError | OSError) and any(
            secret in text for secret in secrets_of(self._dsn, self._connect_options.get("password"))
        ):
            text = "(not shown, for it holds the password)"
        return f"{kind}: {text}" if text else kind

    def _pop_fresh(self, now: float) -> Slot | None:
        idle = self._idle
        while idle:
            slot = idle[-1]
            if now - slot.idle_since >= self.options.check_after and not slot.connection.is_closed():
                # The last one in is the freshest, so the others want a check as well.
                return None
            idle.pop()
            if slot.connection.is_closed():
                self._drop(slot, CloseReason.LOST)
            elif now >= slot.expires_at:
                self._retire(slot, CloseReason.LIFETIME)
            elif not slot.is_quiet():
                self._start_check(slot)
            else:
                return slot
        return None

    def _coming(self) -> int:
        """Connections that callers need not wait for another to give back: they are being checked, or opened."""
        coming = len(self._idle) + self._checks - self._slow_checks + self._connecting
        return coming + max(self._room, 0) if self._retry is None else coming

    def _take_ticket(self) -> int:
        """The place of one more caller in the queue, which it keeps when it has to wait again."""
        most = self.options.max_waiting
        if most is not None and len(self._waiters) - self._coming() >= most:
            self._saturations += 1
            raise PoolSaturated(f"pool {self.name!r}: {len(self._waiters)} callers are waiting already")
        self._peak = max(self._peak, self._demand + 1)
        return next(self._tickets)

    async def _wait(self, ticket: int, left: float, timeout: float) -> Slot:  # noqa: ASYNC109
        """What a task of the pool hands over, to the lowest ticket first, when `left` of the `timeout` is left."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Slot] = loop.create_future()
        timer = loop.call_later(left, self._time_out, waiter, timeout) if left < math.inf else None
        try:
            self._queue(waiter, ticket)
            self._supply()
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # A connection arrived in the turn in which the caller was cancelled.
                self._give(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._waiters.pop(waiter, None)

    def _queue(self, waiter: asyncio.Future[Slot], ticket: int) -> None:
        waiters = self._waiters
        in_order = not waiters or next(reversed(waiters.values())) < ticket
        later = [] if in_order else [other for other, other_ticket in waiters.items() if other_ticket > ticket]
        waiters[waiter] = ticket
        for other in later:
            waiters.move_to_end(other)

    def _time_out(self, waiter: asyncio.Future[Slot], timeout: float) -> None:
        if not waiter.done():
            self._timeouts += 1
            self._waiters.pop(waiter, None)
            waiter.set_exception(self._timed_out(timeout))

    def _timed_out(self, timeout: float) -> PoolTimeout:
        text = f"pool {self.name!r}: no connection within {timeout} s; {self._in_use} of {len(self._slots)} in use"
        if self._last_failure is not None:
            text += f", no more can be opened: {self._describe(self._last_failure)}"
        error = PoolTimeout(text)
        error.__cause__ = self._last_failure
        return error

    def _give(self, slot: Slot) -> None:
        """Hand a connection that works to the oldest waiter, or keep it for the next caller."""
        if slot not in self._slots:
            return
        if slot.connection.is_in_transaction():
            # Begun by what was cancelled, and heard of only now.
            self._drop(slot, CloseReason.RESET_FAILED)
            self._supply()
            return
        self._recover()
        now = self._clock()
        if reason := self._reason_to_retire(slot, now):
            self._retire(slot, reason)
            self._supply()
            return
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(slot)
                return
        slot.idle_since = now
        self._idle.append(slot)

    def _reason_to_retire(self, slot: Slot, now: float) -> CloseReason | None:
        if not self._open:
            return CloseReason.CLOSED
        if slot.generation != self._generation:
            return CloseReason.DRAINED
        if len(self._slots) > self._max_size:
            return CloseReason.SHRUNK
        # Callers are better served by an ageing connection than by none.
        if now >= slot.expires_at or (slot.ageing and not self._waiters and self._has_successors()):
            return CloseReason.LIFETIME
        return None

    def _has_successors(self) -> bool:
        """Whether the pool keeps its size without the connections that are to be replaced, or cannot replace them."""
        hopeless = self._room <= 0 and not self._connecting
        return hopeless or len(self._slots) - self._ageing >= self._target_size

    def _end_lease(self, slot: Slot) -> "asyncio.Task[None] | None":
        slot.end_lease()
        self._progress_at = now = self._clock()
        used_ns = nanoseconds(now - slot.taken_at)
        self.use_time.record(used_ns)
        self._recent_use_s += _LATENCY_WEIGHT * (used_ns / 1e9 - self._recent_use_s)
        if slot.connection.is_closed():
            self._drop(slot, CloseReason.LOST)
            self._supply()
        elif reason := self._reason_to_retire(slot, now):
            self._retire(slot, reason)
            self._supply()
        elif self.options.reset or slot.connection.is_in_transaction() or slot.is_cancelling():
            return self._spawn(self._restore(slot))
        elif self._error is not None:
            # Only an answer of the server says that it is back.
            self._start_check(slot)
        else:
            self._give(slot)
        return None

    async def _restore(self, slot: Slot) -> None:
        try:
            async with asyncio.timeout(self.options.reset_timeout):
                # What is being cancelled may have begun a transaction: that is known when the server has answered.
                if not self.options.reset or slot.is_cancelling():
                    await slot.connection.execute("ROLLBACK")
                if self.options.reset:
                    await slot.connection.reset()
        except Exception as error:
            _log.debug("pool %s: a connection could not be reset: %r", self.name, error)
            self._drop(slot, CloseReason.RESET_FAILED)
            self._supply()
        else:
            self._give(slot)

    def _start_check(self, slot: Slot) -> None:
        self._checks += 1
        self._spawn(self._check(slot))

    async def _check(self, slot: Slot) -> None:
        slow = answered = False

        def suspect() -> None:
            # A server that says nothing to one check may say nothing to the next.
            nonlocal slow
            slow = True
            self._slow_checks += 1
            self._supply()

        timer = asyncio.get_running_loop().call_later(_SLOW_CHECK_S, suspect)
        try:
            await slot.connection.execute("SELECT 1", timeout=self.options.check_timeout)
            answered = True
        except Exception as error:
            _log.debug("pool %s: a connection does not answer: %r", self.name, error)
        finally:
            timer.cancel()
            self._checks -= 1
            self._slow_checks -= slow
        if answered:
            self._give(slot)
        else:
            self._drop(slot, CloseReason.CHECK_FAILED)
        self._supply()

    async def _connect(self) -> None:
        try:
            slot = await self._new_slot()
        except Exception as error:
            self._note_failure(error)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            self._note_failure(PoolError("init was cancelled from inside"))
        else:
            self._add(slot)

    async def _new_slot(self) -> Slot:
        generation = self._generation
        try:
            connection = await asyncpg.connect(self._dsn, timeout=self.options.connect_timeout, **self._connect_options)
            slot = Slot(self, connection, generation, self._clock())
            try:
                if self.options.init is not None:
                    async with asyncio.timeout(self.options.connect_timeout):
                        await self.options.init(connection)
            except BaseException:
                connection.terminate()
                raise
            return slot
        finally:
            self._connecting -= 1

    def _start_connecting(self) -> "asyncio.Task[None]":
        self._connecting += 1
        return self._spawn(self._connect())

    def _add(self, slot: Slot) -> None:
        slot.expires_at = slot.taken_at + self.options.max_lifetime
        slot.retires_at = slot.expires_at - random.uniform(0.0, 0.1) * self.options.max_lifetime
        self._slots.add(slot)
        self._opened += 1
        slot.connection.add_termination_listener(lambda _: self._lose(slot))
        self._failures = 0
        self._last_failure = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._give(slot)
        for warmer, n in self._warmers.items():
            if len(self._slots) >= n and not warmer.done():
                warmer.set_result(None)
        self._supply()

    def _recover(self) -> None:
        if self._error is not None:
            _log.info("pool %s: the server answers again", self.name)
            self._error = None

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._failed_connects += 1
        self._last_failure = error
        if not self._open:
            return
        _log.debug("pool %s: connecting failed: %s", self.name, self._describe(error))
        backoff = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10)) * random.uniform(0.5, 1.0)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(backoff, self._try_again)
        if self._failures >= _FAILURES_TOLERATED and not self._has_live():
            self._fail(error)

    def _try_again(self) -> None:
        self._retry = None
        self._supply()

    def _has_live(self) -> bool:
        return any(not slot.connection.is_closed() for slot in self._slots)

    def _fail(self, error: Exception) -> None:
        """Refuse callers, the waiting ones included, until a connection succeeds."""
        if self._error is None:
            _log.warning("pool %s: cannot reach %s: %s", self.name, self._where, self._describe(error))
        self._error = error
        self._refuse_waiters(self._unhealthy)
        while self._idle:
            self._drop(self._idle.pop(), CloseReason.CHECK_FAILED)
        self._supply()

    def _refuse_waiters(self, refusal: Callable[[], PoolError]) -> None:
        waiting: list[asyncio.Future[Any]] = [*self._waiters, *self._warmers]
        self._waiters.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(refusal())

    def _supply(self) -> None:
        """Start what brings connections to those who wait, and the pool to the size that it keeps."""
        if not self._open:
            return
        checking = self._checks - self._slow_checks
        while self._idle and len(self._waiters) > checking:
            slot = self._idle.pop()
            if slot.connection.is_closed():
                self._drop(slot, CloseReason.LOST)
            else:
                self._start_check(slot)
                checking += 1
        if self._retry is not None:
            return
        # Beside a check that is slow a new connection is tried for the same caller.
        wanted = len(self._waiters) - self._connecting - (0 if self._slow_checks else checking)
        size = len(self._slots) + self._connecting
        kept = max([self._target_size + self._ageing, *self._warmers.values()])
        if self._error is not None:
            # The connections that there are may be silent for ever.
            wanted = max(wanted, 1 - self._connecting)
        at_once = 1 if self._failures or self._error is not None else _CONNECTS_AT_ONCE
        for _ in range(min(max(wanted, kept - size), self._room, at_once - self._connecting)):
            self._start_connecting()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _forget(self, slot: Slot, reason: CloseReason) -> bool:
        if slot not in self._slots:
            return False
        self._slots.discard(slot)
        self._ageing -= slot.ageing
        self._closed_by[reason] += 1
        slot.end_lease()
        self._note_if_empty()
        return True

    def _note_if_empty(self) -> None:
        if not self._slots and not self._leaving:
            self._emptied.set()

    def _drop(self, slot: Slot, reason: CloseReason) -> None:
        """Let go of a connection at once, without a word to the server."""
        if self._forget(slot, reason):
            slot.connection.terminate()

    def _retire(self, slot: Slot, reason: CloseReason) -> None:
        """Let go of a connection that works, and take leave of the server in the background."""
        if slot in self._slots:
            self._leaving.add(slot)
            self._forget(slot, reason)
            self._spawn(self._say_goodbye(slot))

    async def _say_goodbye(self, slot: Slot) -> None:
        try:
            await slot.connection.close(timeout=self.options.close_timeout)
        except Exception:
            slot.connection.terminate()
        self._leaving.discard(slot)
        self._note_if_empty()
        self._supply()

    def _lose(self, slot: Slot) -> None:
        """A borrower closed a connection under its lease."""
        if slot in self._idle:
            self._idle.remove(slot)
        if self._forget(slot, CloseReason.LOST):
            self._supply()

    def _drop_statement_cache(self) -> None:
        """asyncpg has found a table changed: no connection's prepared statements are right any more."""
        for slot in self._slots:
            slot.connection._drop_local_statement_cache()  # type: ignore[attr-defined]

    def _drop_type_cache(self) -> None:
        """The same of a type."""
        for slot in self._slots:
            slot.connection._drop_local_type_cache()  # type: ignore[attr-defined]

    def _close_surplus(self, size: int) -> int:
        closed = 0
        while len(self._slots) > size and self._idle:
            self._retire(self._idle.popleft(), CloseReason.SHRUNK)
            closed += 1
        return closed


def nanoseconds(seconds: float) -> int:
    """What a histogram takes of a time by the clock of a pool."""
    return min(max(int(seconds * 1e9), 0), _LONGEST_NS)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
