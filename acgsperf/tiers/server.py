"""What tiers with a server have in common: calls that travel together, a deadline, a circuit breaker and counters."""

import asyncio
import logging
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from threading import get_ident
from typing import Any, Final, TypeVar

from acgsperf._native import envelope_format as envelope
from acgsperf._native.arguments import checked_int, checked_namespace
from acgsperf.dispatch import LatencyHistogram, unseal_many
from acgsperf.errors import TierError
from acgsperf.tiers.base import BreakerState, Entry, Tier, TierHealth, TierStats
from acgsperf.tiers.breaker import CircuitBreaker
from acgsperf.tiers.deadline import Deadline, Wait

DEADLINE_S: Final = 0.25
MAX_VALUE_BYTES: Final = 1 << 20
# What Redis can hold, and more than a row should.
_MOST_VALUE_BYTES: Final = 512 << 20
MAX_READS_IN_FLIGHT: Final = 4
MAX_WRITES_TOGETHER: Final = 1_000

_CLOSED: Final = BreakerState.CLOSED
_log: Final = logging.getLogger("acgsperf.tiers")
_T = TypeVar("_T")
_Get = tuple[asyncio.Future[Entry | None], str]
_GetMany = tuple[asyncio.Future[dict[str, Entry]], Sequence[str]]


class WriteBatch:
    """Writes that travel together, one a key: an entry with its packed value, or None to delete."""

    __slots__ = ("done", "operations", "removed", "started_at", "stored")

    def __init__(self, done: asyncio.Future[None], started_at: float) -> None:
        self.operations: dict[str, tuple[Entry, bytes] | None] = {}
        self.stored: set[str] = set()
        self.removed: set[str] | None = None
        self.done = done
        self.started_at = started_at


class ServerTier(Tier):
    """A tier whose server is asked by the hooks of a subclass; everything that a server can do to callers ends here.

    Args:
        deadline: seconds after which a caller is answered, whatever the server does.
        max_value_bytes: larger envelopes are neither stored nor read; at most 512 MiB.
    """

    def __init__(self, *, deadline: float = DEADLINE_S, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        if not deadline > 0:
            raise ValueError(f"deadline must be more than 0 s, not {deadline!r}")
        self._max_value_bytes = checked_int("max_value_bytes", max_value_bytes)
        if not 1 <= self._max_value_bytes <= _MOST_VALUE_BYTES:
            raise ValueError(f"max_value_bytes must be from 1 to {_MOST_VALUE_BYTES}, not {max_value_bytes!r}")
        self.deadline = deadline
        # One for calls that begin in order: a batch begins with its first caller, who may have waited for the last one.
        self._read_deadline, self._write_deadline, self._call_deadline = (Deadline(deadline) for _ in range(3))
        self._namespace = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._breaker = CircuitBreaker()
        self._latency = LatencyHistogram()
        self._errors: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._hits = self._misses = 0
        self._reads: list[_GetMany] = []
        self._gets: list[_Get] = []
        self._reads_started_at = 0.0
        self._reads_in_flight = 0
        self._read_scheduled = False
        self._write_queue: deque[WriteBatch] = deque()
        self._writing: dict[str, WriteBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _start(self) -> None:
        """Prepares for the namespace and tries to reach the server; what it raises is counted, and no more."""

    @abstractmethod
    async def _stop(self) -> None:
        """Gives back what `_start` and the calls have taken."""

    @abstractmethod
    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entries of keys, in order."""

    @abstractmethod
    async def _write(self, batch: WriteBatch) -> None:
        """Carries out a batch and notes in it what was stored and what was removed."""

    @abstractmethod
    async def _describe(self) -> str:
        """The server and its version, as it says itself."""

    async def open(self, namespace: str) -> None:
        if self._loop is not None:
            raise TierError(f"the {self.name} tier is open already")
        self._namespace = checked_namespace("namespace", namespace)
        self._loop, self._thread = asyncio.get_running_loop(), get_ident()
        problems: list[str] = []
        try:
            await self._guarded(self._start, problems=problems)
        except BaseException:
            await self.close()
            raise
        if problems:
            _log.warning("%r cannot be reached as yet: %s", self, problems[0])

    async def close(self) -> None:
        if self._loop is None:
            return
        self._check_use()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self.deadline)
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            # Whoever is cancelled here leaves a tier that is closed nevertheless.
            for task in self._tasks:
                task.cancel()
            # A task that was cancelled before its first step has answered nobody.
            self._answer(self._gets, self._reads, [])
            self._gets, self._reads, self._read_scheduled = [], [], False
            while self._write_queue:
                self._finish(self._write_queue.popleft())
            self._loop = None
            for deadline in (self._read_deadline, self._write_deadline, self._call_deadline):
                deadline.close()
            await self._stop()

    async def get(self, key: str) -> Entry | None:
        try:
            # Asking for the running loop is a system call on 3.11, so only the first caller of a batch does. In this
            # thread no other loop can run while this one has something to do.
            if not self._gets or get_ident() != self._thread:
                self._check_use()
            if not isinstance(key, str):
                _check_key(key)
            if self._breaker.state is not _CLOSED and not self._may_read(1):
                return None
            if key in self._writing:
                return (await self._read_after_write((key,))).get(key)
            # As `create_future` makes one, which is a call more for each key.
            future: asyncio.Future[Entry | None] = asyncio.Future(loop=self._loop)
            self._gets.append((future, key))
            if not self._read_scheduled:
                self._schedule_read()
            return await future
        except RuntimeError:
            # What asyncio says to a task that waits for a future of another loop.
            self._check_use()
            raise

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self._check_use()
        for key in keys:
            _check_key(key)
        if not keys or not self._may_read(len(keys)):
            return {}
        if not self._writing.keys().isdisjoint(keys):
            return await self._read_after_write(keys)
        return await self._queue_read(keys)

    async def set(self, key: str, entry: Entry) -> bool:
        return bool(await self.set_many({key: entry}))

    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        self._check_use()
        operations: dict[str, tuple[Entry, bytes] | None] = {}
        now, expired = time.time(), 0
        for key, entry in entries.items():
            _check_key(key)
            try:
                payload = envelope.pack_value(entry.value)
                size = envelope.size(envelope.identity(key), payload, entry.tags)
            except (TypeError, ValueError, OverflowError, RecursionError):
                size = self._max_value_bytes + 1
            if entry.kept_until is not None and entry.kept_until <= now:
                expired += 1
            else:
                # What is refused goes with what was there before, which is not to be found any longer.
                operations[key] = None if size > self._max_value_bytes else (entry, payload)
        if not self._may_write(len(operations)):
            return frozenset()
        self._counts["refused"] += expired + list(operations.values()).count(None)
        batches = self._enqueue(operations)
        await self._done(batches)
        # A batch may hold what another caller has stored under the key.
        own = ((batch, key) for batch in batches for key in batch.stored if key in operations)
        return frozenset(key for batch, key in own if batch.operations[key] is operations[key])

    async def delete_many(self, keys: Sequence[str]) -> int | None:
        self._check_use()
        for key in keys:
            _check_key(key)
        if not self._may_write(len(keys)):
            return None
        wanted = set(keys)
        batches = self._enqueue(dict.fromkeys(keys))
        await self._done(batches)
        if any(batch.removed is None for batch in batches):
            return None
        return sum(len(wanted & batch.removed) for batch in batches if batch.removed)

    async def health(self) -> TierHealth:
        self._check_use()
        started = time.perf_counter_ns()
        # What goes wrong here is told to the caller rather than swallowed.
        problems: list[str] = []
        detail = await self._guarded(self._describe, problems=problems)
        latency = time.perf_counter_ns() - started
        return TierHealth(detail is not None, latency, self._breaker.state, detail or problems[0])

    def stats(self) -> TierStats:
        counts = self._counts
        return TierStats(
            hits=self._hits,
            misses=self._misses,
            stores=counts["stores"],
            refused=counts["refused"],
            deletes=counts["deletes"],
            skipped=counts["skipped"],
            timeouts=self._errors["TimeoutError"],
            errors=dict(self._errors),
            corrupt=counts["corrupt"],
            breaker=self._breaker.state,
            latency=self._latency.snapshot(),
        )

    def _check_use(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # A fork is told apart by this too: a child cannot go on with its parent's loop.
            why = "is not open" if self._loop is None else "belongs to another event loop or process"
            raise TierError(f"the {self.name} tier {why}")
        return loop

    def _may_read(self, keys: int) -> bool:
        if self._breaker.allow():
            return True
        self._counts["skipped"] += keys
        self._misses += keys
        return False

    def _may_write(self, keys: int) -> bool:
        if self._breaker.allow():
            return True
        self._counts["skipped"] += keys
        return False

    def _unseal(
        self, blobs: Iterable[bytes | None], identities: Sequence[bytes]
    ) -> tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]]]:
        """The entries in what the server has returned, and the generations of those that have tags, by position."""
        found, tagged, corrupt = unseal_many(blobs, identities, self._max_value_bytes, time.time())
        self._counts["corrupt"] += corrupt
        return found, tagged

    async def _guarded(
        self, call: Callable[[], Awaitable[_T]], wait: Wait | None = None, problems: list[str] | None = None
    ) -> _T | None:
        """What a call to the server returns; None when it fails or the deadline passes."""
        self._check_use()
        if wait is None:
            wait = self._call_deadline.wait()
        try:
            with wait:
                result = await call()
            if wait.passed:
                raise TimeoutError
        except Exception as error:
            self._errors[type(error).__name__] += 1
            problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if problems is not None:
                problems.append(problem)
            if self._breaker.failed():
                _log.warning("the %s tier is left alone, for it fails: %s", self.name, problem)
            return None
        if self._breaker.succeeded():
            _log.info("the %s tier is back", self.name)
        return result

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        # A task made by the class itself starts in the next turn, whatever the loop's task factory does.
        task = asyncio.Task(work, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _schedule_read(self) -> None:
        if len(self._gets) + len(self._reads) == 1:
            self._reads_started_at = self._check_use().time()
        if self._reads_in_flight < MAX_READS_IN_FLIGHT:
            self._read_scheduled = True
            self._own(self._read())

    def _queue_read(self, keys: Sequence[str]) -> asyncio.Future[dict[str, Entry]]:
        future: asyncio.Future[dict[str, Entry]] = self._check_use().create_future()
        self._reads.append((future, keys))
        if not self._read_scheduled:
            self._schedule_read()
        return future

    async def _read_after_write(self, keys: Sequence[str]) -> dict[str, Entry]:
        """A read that finds what is just being written: both have to be done by one deadline."""
        queued = False
        try:
            async with asyncio.timeout(self.deadline):
                await self._written(keys)
                queued = True
                return await self._queue_read(keys)
        except TimeoutError:
            # What is queued is counted when the server has answered.
            self._misses += 0 if queued else len(keys)
            return {}

    async def _read(self) -> None:
        self._read_scheduled = False
        gets, self._gets = self._gets, []
        reads, self._reads = self._reads, []
        started = self._reads_started_at
        started_ns = time.perf_counter_ns()
        keys = [key for _, key in gets]
        for _, more in reads:
            keys += more
        entries: list[Entry | None] | None = None
        self._reads_in_flight += 1
        try:
            entries = await self._guarded(lambda: self._fetch(keys), self._read_deadline.wait(started))
        finally:
            self._reads_in_flight -= 1
            self._latency.record_many([time.perf_counter_ns() - started_ns] * len(keys))
            self._answer(gets, reads, entries or [])
            if (self._gets or self._reads) and not self._read_scheduled:
                self._read_scheduled = True
                self._own(self._read())

    def _answer(self, gets: Sequence[_Get], reads: Sequence[_GetMany], found: list[Entry | None]) -> None:
        """Gives each caller what was found for its keys, in order; a miss for what nothing was found for."""
        asked = len(gets) + sum(len(keys) for _, keys in reads)
        found += [None] * (asked - len(found))
        hits = asked - found.count(None)
        self._hits += hits
        self._misses += asked - hits
        for (future, _), entry in zip(gets, found, strict=False):
            if not future.done():
                future.set_result(entry)
        at = len(gets)
        for answer, keys in reads:
            pairs = zip(keys, found[at : at + len(keys)], strict=True)
            at += len(keys)
            if not answer.done():
                answer.set_result({key: entry for key, entry in pairs if entry is not None})

    def _enqueue(self, operations: Mapping[str, tuple[Entry, bytes] | None]) -> list[WriteBatch]:
        loop = self._check_use()
        batches: list[WriteBatch] = []
        for key, operation in operations.items():
            # The batch at the head may be on its way. A second write of a key waits for the next batch: both are done,
            # in order, and each caller learns what became of its own.
            queue = self._write_queue
            batch = queue[-1] if queue else None
            closed = batch is None or batch.stored or key in batch.operations
            if batch is None or closed or batch.started_at < 0 or len(batch.operations) >= MAX_WRITES_TOGETHER:
                batch = WriteBatch(loop.create_future(), loop.time())
                queue.append(batch)
                if len(queue) == 1:
                    self._own(self._write_queued())
            batch.operations[key] = operation
            self._writing[key] = batch
            if not batches or batches[-1] is not batch:
                batches.append(batch)
        return batches

    async def _write_queued(self) -> None:
        try:
            while self._write_queue:
                batch = self._write_queue[0]
                started, batch.started_at = batch.started_at, -1.0
                wait = self._write_deadline.wait(started)
                await self._guarded(lambda batch=batch: self._write(batch), wait)  # type: ignore[misc]
                self._finish(self._write_queue.popleft())
        finally:
            while self._write_queue:
                self._finish(self._write_queue.popleft())

    def _finish(self, batch: WriteBatch) -> None:
        self._counts["stores"] += len(batch.stored)
        self._counts["deletes"] += len(batch.removed or ())
        for key in batch.operations:
            if self._writing.get(key) is batch:
                del self._writing[key]
        if not batch.done.done():
            batch.done.set_result(None)

    async def _done(self, batches: Iterable[WriteBatch]) -> None:
        for batch in batches:
            # One of many that wait for it: a caller that is cancelled takes nobody along.
            await asyncio.shield(batch.done)

    async def _written(self, keys: Sequence[str]) -> None:
        # By now, and no more: those who go on writing a key would keep its readers for ever.
        await self._done({batch: None for key in keys if (batch := self._writing.get(key))})

    async def _all_written(self) -> None:
        await self._done(list(self._write_queue))


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"a key must be text, not {key!r:.100}")
