"""Carries out the writes of a namespace in Redis: explicit writes, conditional stores, observations, invalidations."""

import math
import secrets
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers import records
from acgsperf.tiers.base import Entry, Observation, Outcome, Store, StoreKind, WriteResult
from acgsperf.tiers.records import Record, RecordKind
from acgsperf.tiers.redis_calls import KEYS_A_SCRIPT, Job, RedisCalls, Reply, ScriptCall
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys
from acgsperf.tiers.redis_scripts import EXPIRE, EXPIRE_TAG, INVALIDATE, OBSERVE, STORE, TOMBSTONE, UNDO, WRITE, Script
from acgsperf.tiers.server import Wanted
from acgsperf.tiers.server_calls import Attempt
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.tiers.tier_arguments import MOST_STAMP
from acgsperf.tiers.write_batches import REFUSED, Action, Operation, WriteBatch

__all__ = ["RedisWrites", "by_kind"]

# Redis refuses an expiry time beyond 64 bits. An entry that is kept longer than this has no expiry.
_LONGEST_MS: Final = 1 << 60
# Lua's numbers are exact up to this.
_LATEST_US: Final = 1 << 53
_REMOVED: Final = -2

_Item = tuple[str, Operation]
# Builds a call. The arguments: the items that it is for, and those that its record has.
_Build = Callable[[Sequence[_Item], Sequence[_Item]], ScriptCall]
_Builds = tuple[_Build, Sequence[_Item]]
_ByKind = dict[str, list[_Item]]
# A script that has one deadline, its keys, and its arguments after the deadline.
_Call = tuple[Script, Sequence[bytes], Sequence[Any]]


class _Part:
    """Builds one of the calls for many items. The last one publishes a record of all, because it is carried out last.

    Args:
        build: builds the call.
        items: those of this call.
        others: those of all earlier calls, if this is the last call; None for an earlier call.
    """

    __slots__ = ("_build", "_items", "_others")

    def __init__(self, build: _Build, items: Sequence[_Item], others: Sequence[_Item] | None) -> None:
        self._build, self._items, self._others = build, items, others

    def __call__(self, items: Sequence[_Item]) -> ScriptCall:
        if self._others is None:
            return self._build(items, ())
        # If the server has refused the whole call, each item has one of its own.
        return self._build(items, [*self._others, *items] if len(items) == len(self._items) else items)

    @property
    def earlier_keys(self) -> list[str]:
        """The keys of earlier calls that the record of this call has."""
        return [key for key, _ in self._others or ()]


class RedisWrites:
    """Writes of one namespace.

    Args:
        scripts: calls the scripts.
        keys: names the keys.
        clock: the server's.
        retention: the seconds for which ids and tombstones are kept after an entry has ended.
        writer: names this cache in records; empty for no records.
        errors: counts what the server refuses, by kind.

    Attributes:
        clock: the server's.
    """

    def __init__(
        self,
        scripts: RedisCalls,
        keys: RedisKeys,
        clock: ServerClock,
        *,
        retention: float,
        writer: bytes,
        errors: Counter[str],
    ) -> None:
        self._scripts = scripts
        self._keys = keys
        self.clock: ServerClock = clock
        self._retention_s = retention
        self._retention_ms = math.ceil(retention * 1000)
        self._writer = writer
        self._errors = errors

    async def carry_out(self, batch: WriteBatch) -> None:
        """Carry out a batch and record the results in it."""
        items = by_kind(batch.operations.items())
        await self._run(batch, self.builds(batch, items))
        await self._remove_refused(batch, self.removals(batch, items))

    def builds(self, batch: WriteBatch, items: _ByKind) -> list[_Builds]:
        """Return what builds the calls for the operations of a batch, and for which ones."""
        build: dict[str, _Build] = {
            "write": lambda some, recorded: self._write_call(some, recorded, batch),
            "tombstone": lambda some, recorded: self._header_call(TOMBSTONE, some, recorded, batch),
            "expire": lambda some, recorded: self._header_call(EXPIRE, some, recorded, batch),
            "undo": self._undo_call,
            "store": self._store_call,
        }
        return [(build[kind], some) for kind, some in items.items()]

    def removals(self, batch: WriteBatch, items: _ByKind) -> list[_Builds]:
        """Return the same for what is removed because the server has refused its value.

        The former value is still out of date then. Removing it needs no memory.
        """
        tombstones = [
            (key, operation)
            for key, operation in items.get("write", []) + items.get("expire", [])
            if batch.results[key].outcome is Outcome.REFUSED
        ]
        undone = [
            (key, Operation(Action.UNDO, seen.id))
            for key, operation in items.get("store", [])
            if batch.results[key].outcome is Outcome.REFUSED and (seen := _seen_by_load(operation)) is not None
        ]
        found: list[_Builds] = []
        if tombstones:
            build = lambda some, recorded: self._header_call(TOMBSTONE, some, recorded, batch)  # noqa: E731
            found.append((build, tombstones))
        if undone:
            found.append((self._undo_call, undone))
        return found

    async def _remove_refused(self, batch: WriteBatch, removals: Sequence[_Builds]) -> None:
        if not removals:
            return
        removal = WriteBatch(batch.done, batch.queued_at)
        removal.began_at, removal.until = batch.began_at, batch.until
        await self._run(removal, removals)
        batch.removed |= removal.removed
        for key, result in removal.results.items():
            outcome = Outcome.REMOVED if result.outcome is Outcome.STORED else Outcome.REFUSED
            batch.results[key] = WriteResult(outcome, published=result.published)

    async def _run(self, batch: WriteBatch, builds: Sequence[_Builds]) -> None:
        """Call scripts, once more if the server finds that their deadline has passed: this clock may be wrong."""
        jobs: list[Job] = [part for build, items in builds for part in _parts(build, items)]
        for is_last in (False, True):
            sent = time.monotonic()
            late: list[Job] = []
            answered = await self._scripts.run_each(jobs, batch.mark_sent)
            received = time.monotonic()
            for job, reply in answered:
                self._measure(sent, received, job, reply)
                if isinstance(reply, list) and len(reply) == 1:
                    late.append(job)
                else:
                    self._note(batch, job, reply)
            jobs = late
            if not jobs:
                return
            if is_last or batch.remaining() <= 0:
                batch.results.update((key, REFUSED) for _, items in late for key, _ in items)
                return

    def _measure(self, sent: float, received: float, _job: Job | None, reply: Reply) -> None:
        if isinstance(reply, list) and 0 < abs(reply[0]) < MOST_STAMP:
            self.clock.measured(sent, received, abs(reply[0]) / 1e6)

    def _note(self, batch: WriteBatch, job: Job, reply: Reply) -> None:
        part, items = job
        if isinstance(reply, ResponseError):
            self._errors[type(reply).__name__] += 1
            batch.results.update((key, REFUSED) for key, _ in items)
            return
        published = reply[0] > 0
        stored = WriteResult(Outcome.STORED, published=published)
        for (key, _), result in zip(items, reply[1:], strict=True):
            if isinstance(result, ResponseError):
                self._errors[type(result).__name__] += 1
                batch.results[key] = REFUSED
            elif result >= 0:
                batch.results[key] = WriteResult(Outcome.NEWER, result, published)
            else:
                batch.results[key] = stored
                if result == _REMOVED:
                    batch.removed.add(key)
        if published and isinstance(part, _Part):
            for key in part.earlier_keys:
                before = batch.results.get(key)
                if before is None:
                    continue
                if before.outcome is Outcome.STORED:
                    batch.results[key] = stored
                elif before.outcome is Outcome.NEWER:
                    batch.results[key] = WriteResult(Outcome.NEWER, before.stamp, published=True)

    async def observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        """Return what is under keys. If there is nothing under a key, leave a marker."""
        return await self._observed(wanted, [(self.observe_call, wanted)])

    async def _observed(self, wanted: Sequence[Wanted], jobs: Sequence[Job]) -> list[Observation | None]:
        expires_at = time.monotonic() + self._retention_s
        found: dict[Wanted, Observation] = {}
        for (_, some), reply in await self._scripts.run_each(jobs):
            if isinstance(reply, ResponseError):
                self._errors[type(reply).__name__] += 1
                continue
            tags = _positions(tag for _, tags in some for tag in tags)
            values = reply[2 + len(tags) :]
            for item, value in zip(some, values, strict=True):
                if isinstance(value, ResponseError):
                    self._errors[type(value).__name__] += 1
                else:
                    header = envelope.unseal_header(value)
                    tokens = (reply[0], *(reply[2 + tags[tag]] for tag in item[1]))
                    stamp = header.stamp if header.stamp < MOST_STAMP else 0
                    refused = any(len(token) % 2 for token in tokens)
                    found[item] = Observation(header.id, stamp, expires_at, tokens, reply[1], refused)
        return [found.get(item) for item in wanted]

    async def invalidate(self, tag: str | None, refused_below: bool, attempt: Attempt) -> WriteResult:
        """Remove the token of a tag, or that of the namespace."""
        return await self._run_one(self.invalidate_call(tag, refused_below), attempt)

    def invalidate_call(self, tag: str | None, refused_below: bool) -> _Call:
        """Return the script that removes a token, its keys, and its arguments after the deadline."""
        if tag is None:
            token, lifetime_ms, record = self._keys.token, TOKEN_TTL_MS, Record(RecordKind.CLEAR)
        else:
            token, lifetime_ms = self._keys.tag(tag), self._retention_ms
            record = records.of_tag(RecordKind.TAG, tag)
        keys = [self._keys.log, token, self._keys.invalidations]
        new = self._new_token() if refused_below else b""
        return INVALIDATE, keys, [new, int(tag is None), lifetime_ms, *self._packed([record])]

    async def expire_tag(self, tag: str, attempt: Attempt) -> WriteResult:
        """Store the time before which the entries of a tag are stale, together with its token."""
        return await self._run_one(self.expire_tag_call(tag), attempt)

    def expire_tag_call(self, tag: str) -> _Call:
        """Return the same as `invalidate_call`, for `expire_tag`."""
        record = records.of_tag(RecordKind.EXPIRED_TAG, tag)
        return EXPIRE_TAG, [self._keys.log, self._keys.tag(tag)], self._packed([record])

    async def _run_one(self, wanted: _Call, attempt: Attempt) -> WriteResult:
        script, keys, arguments = wanted
        for _ in range(2):
            sent = time.monotonic()
            call = ScriptCall(script, keys, [self.deadline_us(attempt), *arguments], 2)
            (reply,) = await self._scripts.run([call], attempt.mark_sent)
            if isinstance(reply, ResponseError):
                self._errors[type(reply).__name__] += 1
                return REFUSED
            self._measure(sent, time.monotonic(), None, reply)
            if len(reply) == 2:
                return WriteResult(Outcome.STORED, published=reply[0] > 0)
            if attempt.remaining() <= 0:
                break
        return REFUSED

    def _write_call(self, items: Sequence[_Item], recorded: Sequence[_Item], attempt: Attempt) -> ScriptCall:
        tags = _positions(tag for _, operation in items for tag in _tags(operation))
        arguments: list[Any] = [len(items), self.deadline_us(attempt), TOKEN_TTL_MS, self._new_token()]
        arguments += self._records(recorded)
        now = time.monotonic()
        for key, operation in items:
            assert operation.entry is not None
            arguments += self._sealed(key, operation, operation.entry, now, tags)
        keys = [self._keys.log, self._keys.token, *self._entries(items), *map(self._keys.tag, tags)]
        return ScriptCall(WRITE, keys, arguments, 1 + len(items))

    def _header_call(
        self, script: Script, items: Sequence[_Item], recorded: Sequence[_Item], attempt: Attempt
    ) -> ScriptCall:
        kind = RecordKind.EXPIRED_KEYS if script is EXPIRE else RecordKind.KEYS
        arguments = [len(items), self.deadline_us(attempt), self._retention_ms, *self._records(recorded, kind)]
        arguments += [_id_and_stamp(operation) for _, operation in items]
        return ScriptCall(script, [self._keys.log, *self._entries(items)], arguments, 1 + len(items))

    def _undo_call(self, items: Sequence[_Item], _recorded: Sequence[_Item]) -> ScriptCall:
        # The record has the id of the tombstone, so that a process whose L1 has the removed entry drops it. Each call
        # has a record of its own, because its ids are made here.
        new = [self._new_token() for _ in items]
        removed = records.of_keys(RecordKind.KEYS, zip((key for key, _ in items), new, strict=True))
        arguments: list[Any] = [len(items), self._retention_ms, *self._packed(removed)]
        for (_, operation), identifier in zip(items, new, strict=True):
            arguments += operation.id, identifier
        return ScriptCall(UNDO, [self._keys.log, *self._entries(items)], arguments, 1 + len(items))

    def _store_call(self, items: Sequence[_Item], _recorded: Sequence[_Item]) -> ScriptCall:
        tags = _positions(tag for _, operation in items for tag in _tags(operation))
        arguments: list[Any] = [len(items), TOKEN_TTL_MS, self._new_token()]
        now = time.monotonic()
        for key, operation in items:
            assert operation.entry is not None
            assert operation.store is not None
            arguments += _conditions(operation.store)
            until = now + self._retention_s if operation.store.seen is None else operation.store.seen.expires_at
            arguments.append(int(min(self.clock.deadline(until) * 1e6, _LATEST_US)))
            arguments += self._sealed(key, operation, operation.entry, now, tags)
        keys = [self._keys.log, self._keys.token, self._keys.invalidations]
        return ScriptCall(STORE, [*keys, *self._entries(items), *map(self._keys.tag, tags)], arguments, 1 + len(items))

    def observe_call(self, wanted: Sequence[Wanted]) -> ScriptCall:
        """Return the call that observes keys."""
        tags = _positions(tag for _, tags in wanted for tag in tags)
        arguments = [
            len(tags),
            len(wanted),
            self._retention_ms,
            self._new_token(),
            TOKEN_TTL_MS,
            secrets.token_bytes(envelope.ID_BYTES * len(wanted)),
        ]
        entries = [self._keys.entry(key) for key, _ in wanted]
        keys = [self._keys.token, self._keys.invalidations, *map(self._keys.tag, tags), *entries]
        return ScriptCall(OBSERVE, keys, arguments, 2 + len(tags) + len(wanted))

    def _sealed(
        self, key: str, operation: Operation, entry: Entry, now: float, tags: dict[str, int]
    ) -> tuple[bytes, bytes, int | bytes, bytes]:
        """Return the arguments for an entry: head, tail, lifetime and the positions of its tags."""
        identity, offset = envelope.identity(key), self.clock.offset
        head, tail = envelope.seal(entry, identity, operation.payload, offset, flags=operation.flags)
        lifetime: int | bytes = b""
        if entry.kept_until is not None:
            lifetime_ms = (max(entry.kept_until - now, 0) + self._retention_s) * 1000
            if lifetime_ms < _LONGEST_MS:
                lifetime = math.ceil(lifetime_ms)
        positions = b"".join([struct.pack(">H", tags[tag] + 1) for tag in entry.tags])
        return _id_and_stamp(operation) + head[envelope.HEADER_BYTES - 1 :], tail, lifetime, positions

    def _entries(self, items: Iterable[_Item]) -> list[bytes]:
        return [self._keys.entry(key) for key, _ in items]

    def deadline_us(self, attempt: Attempt) -> int:
        """Return the deadline of an attempt by the server's clock."""
        return int(self.clock.deadline(time.monotonic() + attempt.remaining()) * 1e6)

    def _new_token(self) -> bytes:
        return secrets.token_bytes(envelope.TOKEN_BYTES)

    def _records(self, items: Sequence[_Item], kind: RecordKind = RecordKind.KEYS) -> list[Any]:
        if not self._writer or not items:
            return [0]
        return self._packed(records.of_keys(kind, [(key, operation.id) for key, operation in items]))

    def _packed(self, found: Sequence[Record]) -> list[Any]:
        """Return the number of records, and the records."""
        if not self._writer:
            return [0]
        now_us = self.clock.now_us()
        return [len(found), *(records.packed(record, self._writer, now_us) for record in found)]


def _parts(build: _Build, items: Sequence[_Item]) -> list[Job]:
    last = (len(items) - 1) // KEYS_A_SCRIPT * KEYS_A_SCRIPT
    return [
        (_Part(build, some, items[:last] if at == last else None), some)
        for at in range(0, len(items), KEYS_A_SCRIPT)
        for some in (items[at : at + KEYS_A_SCRIPT],)
    ]


def by_kind(items: Iterable[_Item]) -> _ByKind:
    """Return operations by the script that carries them out."""
    found: _ByKind = {}
    for key, operation in items:
        found.setdefault(_kind(operation), []).append((key, operation))
    return found


def _kind(operation: Operation) -> str:
    if operation.action is Action.WRITE and operation.entry is None:
        return "tombstone"
    return operation.action.value


def _seen_by_load(operation: Operation) -> Observation | None:
    store = operation.store
    return store.seen if store is not None and store.kind is StoreKind.LOAD else None


def _tags(operation: Operation) -> tuple[str, ...]:
    return operation.entry.tags if operation.entry is not None else ()


def _positions(tags: Iterable[str]) -> dict[str, int]:
    return {tag: at for at, tag in enumerate(dict.fromkeys(tags))}


def _id_and_stamp(operation: Operation) -> bytes:
    return operation.id + operation.stamp.to_bytes(8, "big")


def _conditions(store: Store) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what to compare, the observed id or position, tokens and invalidations."""
    seen = store.seen
    if seen is None:
        return b"D", store.log_position, b"", b""
    tokens = seen.tokens
    compare = b"C"
    if store.kind is StoreKind.LOAD:
        # If the tags were not known before the load, no tag may have been invalidated since.
        compare = b"T" if len(tokens) == 1 + len(store.entry.tags) else b"I"
    if compare != b"T":
        tokens = tokens[:1]
    return compare, seen.id, b"".join([bytes([len(token)]) + token for token in tokens]), seen.invalidations
