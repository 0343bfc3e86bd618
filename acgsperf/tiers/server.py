"""The common part of the tiers with a server: batches, a deadline, a circuit breaker and counters."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from acgsperf._native.arguments import checked_int, checked_namespace
from acgsperf.dispatch import unseal_many
from acgsperf.errors import TierError
from acgsperf.tiers.base import (
    BreakerState,
    Entry,
    Observation,
    Outcome,
    Store,
    StoreKind,
    Tier,
    TierHealth,
    TierStats,
    Write,
    WriteResult,
)
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.packing import Packing
from acgsperf.tiers.read_batches import MAX_READS_TOGETHER, ReadBatches
from acgsperf.tiers.server_calls import Attempt, ServerCalls
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.tiers.stats import CountedConnections, collect_stats
from acgsperf.tiers.tier_arguments import (
    check_id_and_stamp,
    check_key,
    check_keys,
    check_tag,
    checked_compress_above,
    seconds,
)
from acgsperf.tiers.write_batches import REFUSED, UNKNOWN, Action, Operation, WriteBatch, WriteBatches

__all__ = ["DEADLINE_S", "MAX_VALUE_BYTES", "ServerTier", "Unsealed", "Wanted", "check_tag", "seconds"]

DEADLINE_S: Final = 0.25
MAX_VALUE_BYTES: Final = 1 << 20
# The limit of a Redis string, and more than a table row should hold.
_MOST_VALUE_BYTES: Final = 512 << 20

_CLOSED: Final = BreakerState.CLOSED

# A key to observe, and the tags of the entry that will be stored.
Wanted = tuple[str, tuple[str, ...]]
# Entries; by position, the tokens of those with tags; how many envelopes could not be opened.
Unsealed = tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]], int]


class ServerTier(Tier):
    """A tier that keeps entries in a server.

    A subclass says how to talk to its server, by these methods: `_start`, `_stop`, `_fetch`, `_observe`, `_write`,
    `_invalidate`, `_expire_tag`, `_describe` and `_is_refusal`.
    `ServerCalls` gives each call a deadline and a circuit breaker; `ReadBatches` and `WriteBatches` collect calls.

    Args:
        where: address of the server, for messages; without a password.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read; at most 512 MiB.
        compress_above: the bytes above which a value is compressed; None for never.

    Attributes:
        server_clock: converts between this process's monotonic clock and the server's clock. The subclass measures it.
        begin_get: starts a `get` of a str and returns its future; None if a write of it is in flight, or the breaker is
            not closed.
    """

    coherent = True

    def __init__(
        self,
        where: str,
        *,
        deadline: float = DEADLINE_S,
        max_value_bytes: int = MAX_VALUE_BYTES,
        compress_above: int | None = None,
    ) -> None:
        deadline = seconds("deadline", deadline)
        self._max_value_bytes = checked_int("max_value_bytes", max_value_bytes)
        if not 1 <= self._max_value_bytes <= _MOST_VALUE_BYTES:
            raise ValueError(f"max_value_bytes must be between 1 and {_MOST_VALUE_BYTES}, got {max_value_bytes!r}")
        self._pack = Packing(self._max_value_bytes, checked_compress_above(compress_above)).packed
        self.deadline = deadline
        self._where, self._namespace = where, ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refused = self._corrupt = 0
        self.server_clock: Final = ServerClock()
        self._last_stamp = 0
        self._calls = ServerCalls(self.name, deadline, self._timed_out, self._is_refusal)
        self._breaker = self._calls.breaker
        self._reads = ReadBatches(self._calls, self._fetch, deadline)
        self._observations = ReadBatches(self._calls, self._observe, deadline)
        self._writes = WriteBatches(self._calls, self._write, deadline)
        self._pending_writes = self._writes.pending
        self._reads.queue.guard(self._check_use, self._breaker, _CLOSED, self._pending_writes)
        # The method of the queue itself, without a Python call around it: this is the hot path.
        self.begin_get: Callable[[str], asyncio.Future[Entry | None] | None] = self._reads.queue.begin

    @abstractmethod
    async def _start(self) -> None:
        """Prepare for the namespace and try to reach the server. An error is counted and logged, not raised."""

    @abstractmethod
    async def _stop(self) -> None:
        """Release what `_start` and the calls have opened."""

    @abstractmethod
    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        """Return the entries of keys, in order."""

    @abstractmethod
    async def _observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        """Return what is under each key, given with its tags, in order; None for a key that cannot be read."""

    @abstractmethod
    async def _write(self, batch: WriteBatch) -> None:
        """Carry out a batch and record in it what became of each operation.

        Nothing may be carried out after `batch.until`, by the server's clock. Call `batch.mark_sent` before you send.
        """

    @abstractmethod
    async def _invalidate(self, tag: str | None, refused_below: bool, attempt: Attempt) -> WriteResult:
        """Carry out `invalidate`, as `_write` does a batch."""

    @abstractmethod
    async def _expire_tag(self, tag: str, attempt: Attempt) -> WriteResult:
        """Carry out `expire_tag`, as `_write` does a batch."""

    @abstractmethod
    async def _describe(self) -> str:
        """Ask the server for its product and version."""

    @abstractmethod
    def _is_refusal(self, error: Exception) -> bool:
        """Return whether the server has answered and refuses one call with this error, not all calls."""

    @property
    @abstractmethod
    def counted_connections(self) -> CountedConnections:
        """The connections to the server."""

    def _timed_out(self) -> None:
        """React to a call that the deadline has ended: other connections may be dead as well."""

    async def open(self, namespace: str) -> None:
        if self._loop is not None:
            raise TierError(f"the {self.name} tier is already open")
        self._namespace = checked_namespace("namespace", namespace)
        self._loop = asyncio.get_running_loop()
        self._calls.open(namespace)
        # For reads that wait for writes, or have several parts.
        self._deadline = Deadline(min(self.deadline, self.read_deadline))
        self._reads.open(self.read_deadline)
        self._observations.open(self.read_deadline)
        problems: list[str] = []
        try:
            await self._calls.run(self._start, problems=problems)
        except BaseException:
            await self.close()
            raise
        if problems:
            self._calls.cannot_reach(self._where, problems[0])

    async def close(self) -> None:
        if self._loop is None:
            return
        self._check_use()
        tasks = self._calls.tasks
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.deadline)
            while tasks:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # Close the tier even if this call is cancelled.
            for task in tasks:
                task.cancel()
            self._reads.close()
            self._observations.close()
            self._writes.close()
            self._deadline.close()
            self._loop = None
            self._calls.close()
            await self._stop()

    async def get(self, key: str) -> Entry | None:
        try:
            if not isinstance(key, str):
                check_key(key)
            future = self.begin_get(key)
            if future is not None:
                return await future
            if self._breaker.state is not _CLOSED and not self._may_read(1):
                return None
            return (await self._read_after_write((key,))).get(key)
        except RuntimeError:
            # asyncio raises this in a task that waits for a future of another loop.
            self._check_use()
            raise

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self._check_use()
        check_keys(keys)
        if len(keys) > MAX_READS_TOGETHER:
            return await self._get_in_parts(keys)
        if not keys or not self._may_read(len(keys)):
            return {}
        if not self._pending_writes.keys().isdisjoint(keys):
            return await self._read_after_write(keys)
        return await self._reads.get_many(keys)

    @property
    def is_answering(self) -> bool:
        return self._breaker.state is _CLOSED and not self._breaker.failures_in_a_row

    def now_us(self) -> int:
        """Return the time of the server's clock in microseconds, later than any returned before."""
        self._last_stamp = max(self._last_stamp + 1, self.server_clock.now_us())
        return self._last_stamp

    async def set(self, key: str, entry: Entry) -> bool:
        return bool(await self.set_many({key: entry}))

    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        self._check_use()
        results, _ = await self._write_own(entries)
        return frozenset(key for key, result in results.items() if result.outcome is Outcome.STORED)

    async def delete_many(self, keys: Sequence[str]) -> int | None:
        self._check_use()
        check_keys(keys)
        results, removed = await self._write_own(dict.fromkeys(keys))
        return removed if all(result.outcome is Outcome.STORED for result in results.values()) else None

    async def _write_own(self, entries: Mapping[str, Entry | None]) -> tuple[dict[str, WriteResult], int]:
        """Write entries and tombstones with the tier's own stamps. Return also how many live entries it removed."""
        operations = {key: self._operation(key, Write(one, new_id(), self.now_us())) for key, one in entries.items()}
        if not self._calls.allow(len(operations)):
            return dict.fromkeys(operations, REFUSED), 0
        self._refused += sum(operation.refused for operation in operations.values())
        return await self._writes.carry_out_last(operations)

    async def write(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        self._check_use()
        operations = {key: self._operation(key, write) for key, write in writes.items()}
        if not self._calls.allow(len(operations)):
            return dict.fromkeys(operations, REFUSED)
        self._refused += sum(operation.refused for operation in operations.values())
        return await self._writes.carry_out(operations)

    async def expire_now(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        self._check_use()
        check_keys(list(writes))
        for write in writes.values():
            check_id_and_stamp(write)
        operations = {key: Operation(Action.EXPIRE, write.id, write.stamp) for key, write in writes.items()}
        if not self._calls.allow(len(operations)):
            return dict.fromkeys(operations, REFUSED)
        return await self._writes.carry_out(operations)

    async def remove_written(self, ids: Mapping[str, bytes]) -> bool:
        self._check_use()
        check_keys(list(ids))
        if not self._calls.allow(len(ids)):
            return False
        results = await self._writes.carry_out({key: Operation(Action.UNDO, id_) for key, id_ in ids.items()})
        return all(result.outcome is Outcome.STORED for result in results.values())

    async def store(self, stores: Mapping[str, Store]) -> frozenset[str]:
        self._check_use()
        operations = {}
        now = time.monotonic()
        for key, store in stores.items():
            check_key(key)
            seen = store.seen
            if (seen is None) is not (store.kind is StoreKind.DEMOTION) or (
                seen is not None and seen.expires_at <= now
            ):
                continue
            entry = store.entry
            packed = self._pack(key, entry, self._namespace)
            if packed is not None and (entry.kept_until is None or entry.kept_until > now):
                operations[key] = Operation(Action.STORE, entry.id, entry.stamp, entry, *packed, store=store)
                continue
            self._refused += 1
            if packed is None and store.kind is StoreKind.LOAD and seen is not None:
                # The loaded value cannot be stored, but the former entry is out of date.
                operations[key] = Operation(Action.UNDO, seen.id)
        if not operations or not self._calls.allow(len(operations)):
            return frozenset()
        results = await self._writes.carry_out(operations)
        return frozenset(
            key
            for key, result in results.items()
            if result.outcome is Outcome.STORED and operations[key].action is Action.STORE
        )

    async def observe(self, keys: Sequence[str], tags: Sequence[str] = ()) -> dict[str, Observation]:
        self._check_use()
        check_keys(keys)
        for tag in tags:
            check_tag(tag)
        if not keys or not self._calls.allow(0):
            return {}
        wanted = [(key, tuple(tags)) for key in keys]
        found: dict[str, Observation] = {}
        with self._deadline.wait():
            if not self._pending_writes.keys().isdisjoint(keys):
                await self._writes.wait_for_keys(keys)
                # The tier may have been closed during the wait.
                self._check_use()
            for at in range(0, len(wanted), MAX_READS_TOGETHER):
                part = await self._observations.get_many(wanted[at : at + MAX_READS_TOGETHER])
                found |= {key: seen for (key, _), seen in part.items()}
        return found

    async def look_up(
        self, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Entry], dict[str, Observation]]:
        found = await self.get_many(keys)
        now = time.monotonic()
        absent = [
            key
            for key in keys
            if (entry := found.get(key)) is None or (entry.fresh_until is not None and entry.fresh_until <= now)
        ]
        return found, await self.observe(absent, tags)

    async def invalidate(self, tag: str | None, *, refused_below: bool = False) -> WriteResult:
        if tag is not None:
            check_tag(tag)
        return await self._attempt(lambda attempt: self._invalidate(tag, refused_below, attempt))

    async def expire_tag(self, tag: str) -> WriteResult:
        check_tag(tag)
        return await self._attempt(lambda attempt: self._expire_tag(tag, attempt))

    async def _attempt(self, call: Callable[[Attempt], Awaitable[WriteResult]]) -> WriteResult:
        """Make a call that writes, after all writes that are queued. One deadline covers both."""
        attempt = Attempt()
        attempt.began_at = self._check_use().time()
        attempt.set_deadline(self.deadline)
        if not self._calls.allow(1):
            return REFUSED
        await self._writes.wait_for_all()
        self._check_use()
        if attempt.remaining() <= 0:
            return REFUSED
        # A deadline of its own, because this call began before calls that are already in flight.
        result = await self._calls.run(lambda: call(attempt), Deadline(self.deadline).wait(attempt.began_at))
        if result is not None:
            return result
        if not attempt.sent:
            return REFUSED
        await attempt.wait_for_deadline()
        return UNKNOWN

    def _operation(self, key: str, write: Write) -> Operation:
        """Return what to do with a key; a tombstone if the entry cannot be kept, because the former one is older."""
        check_key(key)
        check_id_and_stamp(write)
        entry = write.entry
        if entry is None:
            return Operation(Action.WRITE, write.id, write.stamp)
        packed = self._pack(key, entry, self._namespace)
        if packed is None or (entry.kept_until is not None and entry.kept_until <= time.monotonic()):
            return Operation(Action.WRITE, write.id, write.stamp, refused=True)
        return Operation(Action.WRITE, write.id, write.stamp, entry, *packed)

    def count_corrupt(self) -> None:
        self._corrupt += 1

    async def health(self) -> TierHealth:
        self._check_use()
        started = time.perf_counter_ns()
        # The caller gets the error message.
        problems: list[str] = []
        detail = await self._calls.run(self._describe, problems=problems)
        latency = time.perf_counter_ns() - started
        return TierHealth(detail is not None, latency, self._breaker.state, detail or problems[0])

    def stats(self) -> TierStats:
        parts = self._calls, self._reads, self._writes, self.counted_connections
        return collect_stats(*parts, refused=self._refused, corrupt=self._corrupt)

    def _check_use(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # This recognizes a fork as well: a child process cannot continue with its parent's loop.
            why = "is not open" if self._loop is None else "belongs to another event loop or process"
            raise TierError(f"the {self.name} tier {why}")
        return loop

    def _may_read(self, keys: int) -> bool:
        if self._calls.allow(keys):
            return True
        self._reads.misses += keys
        return False

    def _unseal(self, blobs: Iterable[bytes | None], identities: Sequence[bytes], token: bytes | None) -> Unsealed:
        """Open the envelopes that the server has returned. `token` is the namespace's; None: they have none."""
        offset = self.server_clock.offset
        return unseal_many(blobs, identities, self._max_value_bytes, time.monotonic(), offset, token)

    async def _get_in_parts(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Read many keys, with a deadline for each part, until the server does not answer."""
        found: dict[str, Entry] = {}
        for at in range(0, len(keys), MAX_READS_TOGETHER):
            if at and self._breaker.failures_in_a_row:
                self._reads.misses += len(keys) - at
                break
            found |= await self.get_many(keys[at : at + MAX_READS_TOGETHER])
        return found

    async def _read_after_write(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Read keys after the writes of them that are in flight; one deadline covers both."""
        queued = False
        with self._deadline.wait():
            await self._writes.wait_for_keys(keys)
            # The tier may have been closed during the wait.
            self._check_use()
            queued = True
            return await self._reads.get_many(keys)
        if not queued:
            # Those that are queued are counted when the server has answered.
            self._reads.misses += len(keys)
        return {}
