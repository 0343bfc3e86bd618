"""What brings connections to callers: opening, checking, resetting and replacing them.

Callers never talk to the server on behalf of the pool. Tasks that the supply owns do, and hand each connection that
works to the first waiting caller. So a cancelled caller loses only its place in the queue.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from acgsperf import hooks
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import PoolError
from acgsperf.pool.connector import Connector
from acgsperf.pool.health import ServerHealth
from acgsperf.pool.inventory import Inventory
from acgsperf.pool.lifecycle import Lifecycle
from acgsperf.pool.options import CloseReason, PoolOptions
from acgsperf.pool.roles import READ_ONLY_GENERATION, Roles
from acgsperf.pool.second_attempt import Spare
from acgsperf.pool.slot import Slot
from acgsperf.pool.tasks import BackgroundTasks, set_ended
from acgsperf.pool.unanswered import Unanswered
from acgsperf.pool.waiters import SizeWaiters, WaitQueue
from acgsperf.timeouts import time_limit

_log = logging.getLogger("acgsperf.pool")
_CONNECTS_AT_ONCE: Final = 8
_FAILURES_TOLERATED: Final = 3
# The highest value that a histogram records.
_LONGEST_NS: Final = LatencyHistogram().highest_ns
# A connection that the server closes within this time, before it has served a borrower, counts as a failed attempt.
_PROBATION_S: Final = 1.0


class Supply:
    """Keeps the right number of working connections in one pool, and talks to the server for it.

    Whatever changes the number of connections or of waiting callers calls `replenish` afterwards.

    The pool has more than `max_size` connections only while its server is silent, and at most two more. One more is
    opened for waiting callers while a check, a reset or a close is not answered. `Spare` allows the other one.

    Attributes:
        inventory: the connections.
        roles: leaves servers that are read-only.
        connecting: connection attempts in flight, without a second attempt.
        spare: the permission for a second attempt.
        checks: the connections that are being checked.
        opened: connections opened since the pool was created.
        target_size: the number of connections that the pool keeps, between `min_size` and `max_size`.
        create_time: how long it took to open a connection, in ns, without failed attempts.
        patient: whether callers wait for a server that may become ready, however often it refuses a connection.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        connector: Connector,
        health: ServerHealth,
        waiters: WaitQueue,
        size_waiters: SizeWaiters,
        tasks: BackgroundTasks,
        options: PoolOptions,
    ) -> None:
        self._lifecycle = lifecycle
        self._connector = connector
        self._health = health
        self._waiters = waiters
        self._size_waiters = size_waiters
        self._tasks = tasks
        self._options = options
        self._clock = options.clock
        self.inventory: Final = Inventory(tasks, options.close_timeout, on_room=self.replenish)
        self.roles: Final = Roles(lifecycle.name, connector, self.inventory, options.clock)
        self.min_size: int = options.min_size
        self.max_size: int = options.max_size
        self.target_size: int = options.min_size
        self.connecting: int = 0
        self.opened: int = 0
        self.create_time: Final = LatencyHistogram()
        self.checks: Final = Unanswered(on_stall=self.replenish)
        self._resets = Unanswered(on_stall=self.replenish)
        self.spare: Final = Spare()
        self.patient = False
        # `drain` begins a new generation of connections.
        self._generation = 0

    def restart(self) -> None:
        """Forget the state from before, because the pool is opened again. The counters go on."""
        self.inventory.restart()
        self.stop_timers()
        self._health.restart()
        self.roles.leaving = False
        self.spare.give_back()
        # An attempt that was cancelled before its task ran is still counted.
        self.connecting = 0
        self.target_size = self.min_size

    @property
    def room(self) -> int:
        """How many more connections may be opened."""
        return self.max_size - self.inventory.size - self.connecting

    @property
    def arriving(self) -> int:
        """Connections that become available although no borrower returns one: idle, being checked or opened."""
        arriving = len(self.inventory.idle) + len(self.checks) - len(self.checks.stalled) + self.connecting
        return arriving + max(self.room, 0) if self._health.retry is None else arriving

    def take_idle(self, now: float) -> Slot | None:
        """Remove and return an idle connection that may be lent without a check; None if there is none."""
        idle = self.inventory.idle
        while idle:
            slot = idle[-1]
            if now - slot.idle_since >= self._options.check_after and not slot.connection.is_closed():
                # The last one has been idle for the shortest time, so the others need a check as well.
                return None
            idle.pop()
            if slot.connection.is_closed():
                self._lose(slot)
            elif now >= slot.expires_at:
                self.inventory.retire(slot, CloseReason.LIFETIME)
            elif not slot.is_quiet():
                self._start_check(slot)
            else:
                return slot
        return None

    def recheck(self, slot: Slot) -> None:
        """Check or remove a connection that received something after it was handed to a caller."""
        if slot.connection.is_closed():
            self._lose(slot)
        else:
            self._start_check(slot)

    def put_back(self, slot: Slot, now: float) -> "asyncio.Future[None] | None":
        """Make a connection whose lease has ended available again; return the end of its reset, if one is needed."""
        if slot.connection.is_closed():
            self._lose(slot)
            self.replenish()
        elif reason := self._reason_to_retire(slot, now):
            self._retire(slot, reason)
        elif self._options.reset or self._may_be_in_transaction(slot):
            ended = asyncio.get_running_loop().create_future()
            self._tasks.start(self._reset(slot, ended), ended=ended)
            return ended
        elif self._health.error is not None:
            # Only a reply of the server says that it is back.
            self._start_check(slot)
        else:
            self.offer(slot)
            if not slot.proven:
                self._prove(slot)
        return None

    @staticmethod
    def _may_be_in_transaction(slot: Slot) -> bool:
        # A notice or a notification after the last reply looks like an unfinished statement. To roll back is harmless.
        return slot.connection.is_in_transaction() or slot.is_cancelling() or slot.is_unfinished()

    def offer(self, slot: Slot) -> None:
        """Hand a connection that works to the first waiting caller, or keep it idle."""
        if slot not in self.inventory.slots:
            return
        if slot.connection.is_in_transaction():
            # A cancelled query began the transaction, and the reply to it came only now.
            self.terminate(slot, CloseReason.RESET_FAILED)
            return
        self._health.mark_healthy()
        now = self._clock()
        if reason := self._reason_to_retire(slot, now):
            self._retire(slot, reason)
        elif not self._waiters.serve(slot):
            slot.idle_since = now
            self.inventory.idle.append(slot)

    def terminate(self, slot: Slot, reason: CloseReason) -> None:
        """Close a connection at once, and replace it if it is needed."""
        self.inventory.terminate(slot, reason)
        self.replenish()

    def _retire(self, slot: Slot, reason: CloseReason) -> None:
        self.inventory.retire(slot, reason)
        self.replenish()

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the bounds, and close idle connections that are too many."""
        # The target moves with the old minimum, unless `optimize` has raised it.
        target = min_size if self.target_size == self.min_size else self.target_size
        self.min_size, self.max_size = min_size, max_size
        self.target_size = min(max(target, min_size), max_size)
        self.inventory.retire_idle(CloseReason.SHRUNK, keep=max_size)
        self.replenish()

    def aim_at(self, size: int) -> int:
        """Keep `size` connections from now on, within the bounds; return how many idle ones were closed."""
        self.target_size = min(max(size, self.min_size), self.max_size)
        closed = self.inventory.retire_idle(CloseReason.SHRUNK, keep=self.target_size)
        self.replenish()
        return closed

    def drain(self) -> None:
        """Replace all connections: idle ones now, lent ones when they come back."""
        self._generation += 1
        self.inventory.retire_idle(CloseReason.DRAINED)
        self.replenish()

    def retire_old(self, now: float) -> None:
        """Close idle connections that are lost, expired, replaced by a successor, or not needed for `max_idle`."""
        inventory = self.inventory
        idle = inventory.idle
        for slot in inventory.slots:
            slot.ageing = now >= slot.retires_at
        inventory.ageing = sum(slot.ageing for slot in inventory.slots)
        for slot in list(idle):
            if slot.connection.is_closed():
                idle.remove(slot)
                self._lose(slot)
            elif now >= slot.expires_at or (slot.ageing and self._has_successors()):
                idle.remove(slot)
                inventory.retire(slot, CloseReason.LIFETIME)
        for slot in list(inventory.slots):
            if not slot.proven and now - slot.opened_at >= _PROBATION_S and not slot.connection.is_closed():
                self._prove(slot)
        unused_since = now - self._options.max_idle
        kept = self.target_size + inventory.ageing
        while len(inventory.slots) > kept and idle and idle[0].idle_since <= unused_since:
            inventory.retire(idle.popleft(), CloseReason.IDLE)

    def _reason_to_retire(self, slot: Slot, now: float) -> CloseReason | None:
        if not self._lifecycle.is_open:
            return CloseReason.CLOSED
        if slot.generation != self._generation:
            return CloseReason.READ_ONLY if slot.generation == READ_ONLY_GENERATION else CloseReason.DRAINED
        if len(self.inventory.slots) - len(self.checks.stalled) - len(self._resets.stalled) > self.max_size:
            return CloseReason.SHRUNK
        # A waiting caller is better served by an ageing connection than by none.
        if now >= slot.expires_at or (slot.ageing and not self._waiters.waiting and self._has_successors()):
            return CloseReason.LIFETIME
        return None

    def _has_successors(self) -> bool:
        """Return whether the pool keeps its size without the ageing connections, or has no room for successors."""
        no_room = self.room <= 0 and not self.connecting
        return no_room or len(self.inventory.slots) - self.inventory.ageing >= self.target_size

    def replenish(self) -> None:
        """Start the checks and connection attempts that waiting callers and the size of the pool require."""
        if not self._lifecycle.is_open:
            return
        inventory, health = self.inventory, self._health
        waiting = len(self._waiters.waiting)
        slow_checks = len(self.checks.stalled)
        checking = len(self.checks) - slow_checks
        while inventory.idle and waiting > checking:
            slot = inventory.idle.pop()
            if slot.connection.is_closed():
                self._lose(slot)
            else:
                self._start_check(slot)
                checking += 1
        if health.retry is not None:
            return
        # While a check is slow, a new connection is opened for the same caller.
        wanted = waiting - self.connecting - (0 if slow_checks else checking)
        size = len(inventory.slots) + self.connecting
        kept = max(self.target_size + inventory.ageing, self._size_waiters.most)
        if health.error is not None:
            # The connections that are open may never answer.
            wanted = max(wanted, 1 - self.connecting - checking)
        room = self.room
        stalled = bool(slow_checks or self._resets.stalled or inventory.closes.stalled)
        at_once = 1 if health.doubtful else _CONNECTS_AT_ONCE
        for _ in range(min(max(min(wanted, room + stalled), min(kept - size, room)), at_once - self.connecting)):
            self.start_connecting()

    def start_connecting(self) -> "asyncio.Task[None]":
        """Open one more connection in the background."""
        self.connecting += 1
        return self._tasks.start(self._connect())

    async def _connect(self) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            slot = await self._new_slot()
        except Exception as error:
            self._note_failure(error, clock() - start if isinstance(error, TimeoutError) else 0.0)
        except asyncio.CancelledError:
            # Only closing the pool cancels this task from outside.
            if not self._lifecycle.is_open:
                raise
            self._note_failure(PoolError("init cancelled its own task"))
        else:
            self._note_creation(clock() - start)
            self._add(slot)

    def _note_creation(self, seconds: float) -> None:
        self.create_time.record(nanoseconds(seconds))
        if hooks.connection_times is not None:
            hooks.connection_times("create", self._lifecycle.name, seconds)

    async def _new_slot(self) -> Slot:
        generation = self._generation
        try:
            connection = await self._connector.connect(self.spare)
        finally:
            self.connecting -= 1
        return Slot(self, connection, generation, self._clock())

    def _add(self, slot: Slot) -> None:
        slot.expires_at = slot.lent_at + self._options.max_lifetime
        slot.retires_at = slot.expires_at - random.uniform(0.0, 0.1) * self._options.max_lifetime
        self.inventory.slots.add(slot)
        self.opened += 1
        slot.connection.add_termination_listener(lambda _: self._on_termination(slot))
        if self.roles.leaving:
            self.roles.note_opened(slot)
        if self._health.doubtful:
            self._start_check(slot)
        else:
            self._health.note_answer()
            self.offer(slot)
        self._size_waiters.serve(len(self.inventory.slots))
        self.replenish()

    def _on_termination(self, slot: Slot) -> None:
        """Remove a connection that the server, the network or the borrower closed."""
        if slot in self.inventory.idle:
            self.inventory.idle.remove(slot)
        if slot in self.inventory.slots:
            self._lose(slot)
            self.replenish()

    def _lose(self, slot: Slot) -> None:
        self.inventory.terminate(slot, CloseReason.LOST)
        self._note_hang_up(slot)

    def _note_hang_up(self, slot: Slot) -> None:
        age_s = self._clock() - slot.opened_at
        # The connections that are lost at once count as one failure.
        if slot.hung_up() and not slot.proven and age_s < _PROBATION_S and self._health.retry is None:
            self._note_failure(ConnectionError(f"the server closed a connection {age_s:.3f} s after it was opened"))

    def _prove(self, slot: Slot) -> None:
        """End the probation of a connection, and the backoff with it."""
        slot.proven = True
        if self._health.doubtful:
            self._health.note_proof()
            self.replenish()

    def _note_failure(self, error: Exception, silent_s: float = 0.0) -> None:
        self._health.note_failure(error)
        if not self._lifecycle.is_open:
            return
        self._health.back_off(silent_s, then=self.replenish)
        if self.patient and self._connector.may_pass(error):
            return
        if self._health.failures >= _FAILURES_TOLERATED and not self.inventory.has_live():
            self.mark_unhealthy(error)

    def mark_unhealthy(self, error: Exception) -> None:
        """Refuse callers, the waiting ones included, until a connection attempt or a check succeeds."""
        self._health.mark_unhealthy(error)
        self.refuse_all(self._health.unhealthy)
        while self.inventory.idle:
            self.inventory.terminate(self.inventory.idle.pop(), CloseReason.CHECK_FAILED)
        self.replenish()

    def refuse_all(self, error: Callable[[], PoolError]) -> None:
        """End the wait of all callers of `acquire` and `warm` with an error."""
        self._waiters.refuse_all(error)
        self._size_waiters.refuse_all(error)

    def _start_check(self, slot: Slot) -> None:
        self.checks.begin(slot)
        self._tasks.start(self._check(slot))

    async def _check(self, slot: Slot) -> None:
        answered = False
        try:
            await slot.connection.execute("SELECT 1", timeout=self._options.check_timeout)
            answered = True
        except Exception as error:
            _log.debug("pool %r: a check failed (%r); the connection is replaced", self._lifecycle.name, error)
        finally:
            self.checks.end(slot)
        if answered:
            if not slot.proven:
                self._health.note_answer()
            self.offer(slot)
        else:
            self.inventory.terminate(slot, CloseReason.CHECK_FAILED)
            self._note_hang_up(slot)
        self.replenish()

    async def _reset(self, slot: Slot, ended: "asyncio.Future[None]") -> None:
        try:
            await self._reset_session(slot)
        except Exception as error:
            _log.debug("pool %r: a reset failed (%r); the connection is replaced", self._lifecycle.name, error)
            self.terminate(slot, CloseReason.RESET_FAILED)
        else:
            self.offer(slot)
            if not slot.proven:
                self._prove(slot)
        finally:
            set_ended(ended)

    async def _reset_session(self, slot: Slot) -> None:
        reset, timeout = self._options.reset, self._options.reset_timeout
        self._resets.begin(slot)
        try:
            if reset and not slot.is_cancelling():
                await slot.connection.reset(timeout=timeout)
            else:
                async with time_limit(timeout):
                    # A query that is being cancelled may have begun a transaction. Only its reply says whether.
                    await slot.connection.execute("ROLLBACK")
                    if reset:
                        await slot.connection.reset()
        finally:
            self._resets.end(slot)

    def stop_timers(self) -> None:
        """Forget what the server has not answered."""
        for unanswered in (self.checks, self._resets, self.inventory.closes):
            unanswered.clear()

    # asyncpg calls these two if it finds that a table or a type has changed.

    def _drop_statement_cache(self) -> None:
        for slot in self.inventory.slots:
            slot.connection._drop_local_statement_cache()  # type: ignore[attr-defined]

    def _drop_type_cache(self) -> None:
        for slot in self.inventory.slots:
            slot.connection._drop_local_type_cache()  # type: ignore[attr-defined]


def nanoseconds(seconds: float) -> int:
    """Return a time as a number of nanoseconds that a histogram can record."""
    value = int(seconds * 1e9)
    return value if 0 <= value <= _LONGEST_NS else 0 if value < 0 else _LONGEST_NS
