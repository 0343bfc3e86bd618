"""What the tiers that have a server share: batches, a deadline, a circuit breaker and counters."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, isnan
from threading import get_ident
from typing import Final

from acgsperf._native import envelope_format as envelope
from acgsperf._native.arguments import checked_int, checked_namespace, checked_seconds
from acgsperf.dispatch import unseal_many
from acgsperf.errors import TierError
from acgsperf.tiers.base import BreakerState, Entry, Tier, TierHealth, TierStats
from acgsperf.tiers.read_batches import MAX_READS_TOGETHER, ReadBatches
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.write_batches import Operation, WriteBatch, WriteBatches

__all__ = ["DEADLINE_S", "MAX_VALUE_BYTES", "ServerTier", "Unsealed", "check_tag", "seconds"]

DEADLINE_S: Final = 0.25
MAX_VALUE_BYTES: Final = 1 << 20
# The limit of a Redis string, and more than a table row should hold.
_MOST_VALUE_BYTES: Final = 512 << 20

_CLOSED: Final = BreakerState.CLOSED

# Entries; by position, the tokens of those with tags; how many envelopes could not be opened.
Unsealed = tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]], int]


class ServerTier(Tier):
    """A tier that keeps entries in a server.

    A subclass says how to talk to its server, by six methods: `_start`, `_stop`, `_fetch`, `_write`,
    `_describe` and `_is_refusal`.
    `ServerCalls` gives each call a deadline and a circuit breaker; `ReadBatches` and `WriteBatches` collect calls.

    Args:
        where: address of the server, for messages; without a password.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read; at most 512 MiB.
    """

    def __init__(self, where: str, *, deadline: float = DEADLINE_S, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        deadline = seconds("deadline", deadline)
        self._max_value_bytes = checked_int("max_value_bytes", max_value_bytes)
        if not 1 <= self._max_value_bytes <= _MOST_VALUE_BYTES:
            raise ValueError(f"max_value_bytes must be between 1 and {_MOST_VALUE_BYTES}, got {max_value_bytes!r}")
        self.deadline = deadline
        self._where = where
        self._namespace = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._refused = self._deletes = self._corrupt = 0
        self._calls = ServerCalls(self.name, deadline, self._timed_out, self._is_refusal)
        self._breaker = self._calls.breaker
        self._reads = ReadBatches(self._calls, self._fetch, deadline)
        self._writes = WriteBatches(self._calls, self._write, deadline)
        self._pending_writes = self._writes.pending

    @abstractmethod
    async def _start(self) -> None:
        """Prepares for the namespace and tries to reach the server. An error is counted and logged, not raised."""

    @abstractmethod
    async def _stop(self) -> None:
        """Releases what `_start` and the calls have opened."""

    @abstractmethod
    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        """Returns the entries of keys, in order."""

    @abstractmethod
    async def _write(self, batch: WriteBatch) -> None:
        """Carries out a batch and records in it what was stored and removed."""

    @abstractmethod
    async def _describe(self) -> str:
        """Asks the server for its product and version."""

    @abstractmethod
    def _is_refusal(self, error: Exception) -> bool:
        """Returns whether the server has answered and refuses one call with this error, not all calls."""

    def _timed_out(self) -> None:
        """Called when the deadline has ended a call: other connections may be dead as well."""

    async def open(self, namespace: str) -> None:
        if self._loop is not None:
            raise TierError(f"the {self.name} tier is already open")
        self._namespace = checked_namespace("namespace", namespace)
        self._loop, self._thread = asyncio.get_running_loop(), get_ident()
        self._calls.open(namespace)
        self._reads.open()
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
            # If this call is cancelled, the tier is closed all the same.
            for task in tasks:
                task.cancel()
            self._reads.close()
            self._writes.close()
            self._loop = None
            self._calls.close()
            await self._stop()

    async def get(self, key: str) -> Entry | None:
        try:
            # Asking for the running loop is a system call on 3.11, so only the first caller of a batch does it. In this
            # thread no other loop can run while this one has calls waiting.
            reads = self._reads
            if not reads.waiting or get_ident() != self._thread:
                self._check_use()
            if not isinstance(key, str):
                _check_key(key)
            if self._breaker.state is not _CLOSED and not self._may_read(1):
                return None
            if key in self._pending_writes:
                return (await self._read_after_write((key,))).get(key)
            return await reads.get(key)
        except RuntimeError:
            # asyncio raises this in a task that waits for a future of another loop.
            self._check_use()
            raise

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self._check_use()
        _check_keys(keys)
        if len(keys) > MAX_READS_TOGETHER:
            return await self._get_in_parts(keys)
        if not keys or not self._may_read(len(keys)):
            return {}
        if not self._pending_writes.keys().isdisjoint(keys):
            return await self._read_after_write(keys)
        return await self._reads.get_many(keys)

    async def set(self, key: str, entry: Entry) -> bool:
        return bool(await self.set_many({key: entry}))

    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        self._check_use()
        operations: dict[str, Operation] = {}
        now, expired = time.time(), 0
        for key, entry in entries.items():
            _check_key(key)
            try:
                _check_times(entry)
                payload = envelope.pack_value(entry.value)
                size = envelope.size(envelope.identity(key), payload, entry.tags)
            except (TypeError, ValueError, OverflowError, RecursionError):
                size = self._max_value_bytes + 1
            if entry.kept_until is not None and entry.kept_until <= now:
                expired += 1
            else:
                # If an entry is refused here, the former value of its key is deleted: it is out of date.
                operations[key] = None if size > self._max_value_bytes else (entry, payload)
        if not self._calls.allow(len(operations)):
            return frozenset()
        self._refused += expired + list(operations.values()).count(None)
        batches = self._writes.enqueue(operations)
        await self._writes.wait(batches)
        # A batch may also contain an operation that another caller queued for the same key.
        own = ((batch, key) for batch in batches for key in batch.stored if key in operations)
        return frozenset(key for batch, key in own if batch.operations[key] is operations[key])

    async def delete_many(self, keys: Sequence[str]) -> int | None:
        self._check_use()
        _check_keys(keys)
        if not self._calls.allow(len(keys)):
            return None
        wanted = set(keys)
        batches = self._writes.enqueue(dict.fromkeys(keys))
        await self._writes.wait(batches)
        if any(batch.removed is None or not wanted.isdisjoint(batch.refused) for batch in batches):
            return None
        return sum(len(wanted & batch.removed) for batch in batches if batch.removed)

    async def health(self) -> TierHealth:
        self._check_use()
        started = time.perf_counter_ns()
        # The caller gets the error message.
        problems: list[str] = []
        detail = await self._calls.run(self._describe, problems=problems)
        latency = time.perf_counter_ns() - started
        return TierHealth(detail is not None, latency, self._breaker.state, detail or problems[0])

    def stats(self) -> TierStats:
        calls, reads, writes = self._calls, self._reads, self._writes
        return TierStats(
            hits=reads.hits,
            misses=reads.misses,
            stores=writes.stores,
            refused=self._refused,
            deletes=writes.deletes + self._deletes,
            skipped=calls.skipped,
            timeouts=calls.errors["TimeoutError"],
            errors=dict(calls.errors),
            corrupt=self._corrupt,
            breaker=self._breaker.state,
            latency=reads.latency.snapshot(),
        )

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

    def _unseal(self, blobs: Iterable[bytes | None], identities: Sequence[bytes]) -> Unsealed:
        """Opens the envelopes that the server has returned."""
        return unseal_many(blobs, identities, self._max_value_bytes, time.time(), 0.0, None)

    async def _get_in_parts(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Reads many keys, with a deadline for each part, until the server does not answer."""
        found: dict[str, Entry] = {}
        for at in range(0, len(keys), MAX_READS_TOGETHER):
            if at and self._breaker.failures_in_a_row:
                self._reads.misses += len(keys) - at
                break
            found |= await self.get_many(keys[at : at + MAX_READS_TOGETHER])
        return found

    async def _read_after_write(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Reads keys after the writes of them that are in flight; one deadline covers both."""
        queued = False
        try:
            async with asyncio.timeout(self.deadline):
                await self._writes.wait_for_keys(keys)
                # The tier may have been closed during the wait.
                self._check_use()
                queued = True
                return await self._reads.get_many(keys)
        except TimeoutError:
            # If it is queued, it is counted when the server has answered.
            self._reads.misses += 0 if queued else len(keys)
            return {}


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, got {key!r:.100}")


def _check_keys(keys: object) -> None:
    if isinstance(keys, str | bytes):
        raise TypeError(f"keys must be a sequence of str, got the {type(keys).__name__} {keys!r:.100}")
    for key in keys:  # type: ignore[attr-defined]
        _check_key(key)


def check_tag(tag: object) -> None:
    """Raises TypeError if a tag is not a str."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be a str, got {tag!r:.100}")


def _check_times(entry: Entry) -> None:
    """Raises ValueError or OverflowError for times that an envelope cannot hold."""
    created, fresh, kept = entry.created_at, entry.fresh_until, entry.kept_until
    if not isfinite(created) or (fresh is not None and isnan(fresh)) or (kept is not None and isnan(kept)):
        raise ValueError("not a time")


def seconds(name: str, value: float) -> float:
    """Returns a positive number of seconds, which may be infinite; raises TypeError or ValueError for anything else."""
    number = checked_seconds(name, value)
    if number == inf != value:
        raise ValueError(f"{name} must be a number of seconds that a float can hold, got {value!r:.40}...")
    return number
