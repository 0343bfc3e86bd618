"""L2: entries in Redis, over redis-py's connections.

The tier uses RESP2: every reply belongs to the command before it, and the server never pushes anything in between.
redis-py's retries are off. A connection carries one batch at a time. If a batch does not end well, its connection is
closed, so that a late reply can never be read as the answer to something else.

Each tag has a generation: a random token in a key of its own, copied into each entry with that tag. Invalidation
replaces the token, in constant time; an entry with another token is a miss. If the server evicts a token, its entries
become misses, never stale hits. Entries with tags cost a second round trip for the batch; entries without cost nothing.
"""

import asyncio
import math
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers.base import Entry
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.redis_connections import MAX_LIFETIME_S, Command, Credentials, RedisConnections
from acgsperf.tiers.redis_replies import UnexpectedReplyError, array, blobs, each, is_ok, number, refuses_all, text
from acgsperf.tiers.server import DEADLINE_S, MAX_VALUE_BYTES, ServerTier, Unsealed, check_tag
from acgsperf.tiers.write_batches import WriteBatch

__all__ = ["RedisTier"]

KEYS_A_COMMAND: Final = 1_000
# Redis refuses an expiry time beyond 64 bits. An entry that is kept longer than this has no expiry.
LONGEST_MS: Final = 1 << 60
TAG_TTL_MS: Final = 30 * 24 * 3600 * 1000

# The value of a lock is its token and its owner; the script recognizes a repeated command by the owner. A token is at
# least the clock in microseconds, so that tokens keep growing even if the server has lost the counter.
_LOCK: Final = """
local held = redis.call('GET', KEYS[1])
if held then
    local token, owner = string.match(held, '^(%d+):(.+)$')
    return owner == ARGV[2] and tonumber(token) or 0
end
local now = redis.call('TIME')
local token = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) + 1, now[1] * 1000000 + now[2])
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], token .. ':' .. ARGV[2], 'PX', ARGV[1])
return tonumber(token)
"""
# Releases by token or by owner.
_UNLOCK: Final = """
local token, owner = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):(.+)$')
if token and (token == ARGV[1] or owner == ARGV[1]) then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RELEASE_EVERY_S: Final = 0.5
_MAX_UNKNOWN_LOCKS: Final = 1_000


class RedisTier(ServerTier):
    """Keeps entries in a Redis server that processes share.

    Args:
        url: `redis://`, `rediss://` (certificate and host name are checked) or `unix://`.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read.
        max_connections: maximum number of open connections; callers wait for one in order. None for the URL's
            `max_connections`, or 10.
        max_lifetime: seconds after which a connection is replaced; most are replaced up to 10 % earlier.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password. Use
            it for tokens that expire. The URL must not contain a user name or password then.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it, because it may contain a password.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        deadline: float = DEADLINE_S,
        max_value_bytes: int = MAX_VALUE_BYTES,
        max_connections: int | None = None,
        max_lifetime: float = MAX_LIFETIME_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._connections = RedisConnections(
            url, max_connections=max_connections, max_lifetime=max_lifetime, credentials=credentials
        )
        super().__init__(self._connections.where, deadline=deadline, max_value_bytes=max_value_bytes)
        self._ask = self._connections.ask
        # Locks whose reply was lost, by owner: the key, and how long to try to release them.
        self._unknown_locks: dict[str, tuple[str, float]] = {}
        self._releasing = False

    def __repr__(self) -> str:
        return f"RedisTier({self._where!r})"

    async def invalidate_tag(self, tag: str) -> int | None:
        check_tag(tag)
        started = self._check_use().time()
        if not self._calls.allow(1):
            return None
        await self._writes.wait_for_all()
        command = ("SET", self._tag_key(tag), secrets.token_bytes(8), "PX", TAG_TTL_MS)
        # A deadline of its own, because this call began before calls that are already in flight.
        wait = Deadline(self.deadline).wait(started)
        done = await self._calls.run(lambda: self._ask([command], lambda replies: is_ok(replies[0])), wait)
        # The number of entries that carried the old generation is unknown.
        return 0 if done else None

    async def clear(self) -> int | None:
        """Deletes all entries of the namespace by SCAN and UNLINK, a thousand keys at a time; see `Tier`."""
        self._check_use()
        if not self._calls.allow(1):
            return None
        await self._writes.wait_for_all()
        # The pattern narrows the scan; the exact prefix decides which keys are ours.
        pattern = re.sub(rb"([*?\[\]\\^-])", rb"\\\1", self._prefix[:-1]) + b"[:%]*"
        ours = (self._prefix, self._special("tag"))
        cleared, cursor = 0, b"0"
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", KEYS_A_COMMAND)
            scanned = await self._calls.run(lambda scan=scan: self._ask([scan], _scanned))  # type: ignore[misc]
            if scanned is None:
                return None
            cursor, keys = scanned
            entries = [key for key in keys if key.startswith(ours[0])]
            doomed = entries + [key for key in keys if key.startswith(ours[1])]
            if doomed:
                unlink = ("UNLINK", *doomed)
                if await self._calls.run(lambda unlink=unlink: self._ask([unlink], _number)) is None:  # type: ignore[misc]
                    return None
                cleared += len(entries)
            if cursor == b"0":
                return cleared

    async def lock(self, key: str, ttl: float) -> int | None:
        """See `LockingTier`."""
        self._check_use()
        if not self._calls.allow(1):
            return None
        owner = secrets.token_hex(8)
        if not ttl > 0:
            raise ValueError(f"ttl must be greater than 0, got {ttl!r}")
        lifetime_ms = max(1, math.ceil(ttl * 1000)) if ttl * 1000 < LONGEST_MS else LONGEST_MS
        command = ("EVAL", _LOCK, 2, self._lock_key(key), self._special("fence"), lifetime_ms, owner)
        token: int | None = None
        refused = False

        async def ask() -> int:
            nonlocal refused
            try:
                return await self._ask([command], _number)
            except ResponseError:
                refused = True
                raise

        try:
            token = await self._calls.run(ask)
            return token
        finally:
            if (
                token is None
                and not refused
                and self._loop is not None
                and len(self._unknown_locks) < _MAX_UNKNOWN_LOCKS
            ):
                # The server may have taken the lock, or may still do so.
                self._unknown_locks[owner] = key, time.monotonic() + 2 * ttl
                if not self._releasing:
                    self._releasing = True
                    self._calls.start(self._release_unknown_locks())

    async def _release_unknown_locks(self) -> None:
        """Releases locks that the server took although the reply was lost, once it answers again."""
        try:
            while self._unknown_locks:
                asked = list(self._unknown_locks.items())
                if self._calls.allow(0):
                    commands = [("EVAL", _UNLOCK, 1, self._lock_key(key), owner) for owner, (key, _) in asked]
                    replies = await self._calls.run(lambda commands=commands: self._ask(commands, _numbers))  # type: ignore[misc]
                    for (owner, _), reply in zip(asked, replies or (), strict=False):
                        if reply == 1:
                            self._unknown_locks.pop(owner, None)
                now = time.monotonic()
                for owner, (_, until) in asked:
                    if until < now:
                        self._unknown_locks.pop(owner, None)
                await asyncio.sleep(_RELEASE_EVERY_S)
        finally:
            self._releasing = False

    async def unlock(self, key: str, token: int) -> bool:
        """See `LockingTier`."""
        self._check_use()
        command = ("EVAL", _UNLOCK, 1, self._lock_key(key), token)
        if not self._calls.allow(1):
            return False
        return bool(await self._calls.run(lambda: self._ask([command], _number)))

    async def _start(self) -> None:
        # Colons in a namespace are escaped, so that no key of `a` is a key of `a:b`. Keys that are not entries have a %
        # in place of the colon; no escape sequence looks like that.
        escaped = self._namespace.replace("%", "%25").replace(":", "%3A").encode()
        self._prefix = escaped + b":"
        self._connections.open()
        await self._ask([("PING",)], lambda replies: text(replies[0]))

    async def _stop(self) -> None:
        self._unknown_locks.clear()
        self._connections.close()

    def _is_refusal(self, error: Exception) -> bool:
        return isinstance(error, ResponseError) and not refuses_all(error)

    def _timed_out(self) -> None:
        self._connections.close_idle()

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        prefix = self._prefix
        identities = envelope.identities(keys)
        addresses = [prefix + address for address in envelope.addresses(identities)]
        chunks = [addresses[at : at + KEYS_A_COMMAND] for at in range(0, len(addresses), KEYS_A_COMMAND)]

        def read(replies: list[Any]) -> Unsealed:
            if len(replies) == 1:
                values = blobs(replies[0], len(addresses))
            else:
                found = (blobs(reply, len(chunk)) for reply, chunk in zip(replies, chunks, strict=True))
                values = [value for part in found for value in part]
            unsealed = self._unseal(values, identities)
            if unsealed[2] and any(map(envelope.is_of_another_key, values, identities)):
                raise UnexpectedReplyError("the envelope of another key", unsealed)
            return unsealed

        try:
            unsealed = await self._ask([("MGET", *chunk) for chunk in chunks], read, fenced=False)
        except ResponseError as error:
            unsealed = self._unseal(await self._get_each(addresses, error), identities)
        found, tagged, corrupt = unsealed
        self._corrupt += corrupt
        if tagged:
            await self._drop_invalidated(found, tagged)
        return found

    async def _drop_invalidated(self, found: list[Entry | None], tagged: list[tuple[int, Sequence[bytes]]]) -> None:
        tags = list({tag for i, _ in tagged if (entry := found[i]) for tag in entry.tags})
        keys = list(map(self._tag_key, tags))
        try:
            tokens = await self._ask([("MGET", *keys)], lambda replies: blobs(replies[0], len(tags)))
        except ResponseError as error:
            tokens = await self._get_each(keys, error)
        current = dict(zip(tags, tokens, strict=True))
        for i, generations in tagged:
            entry = found[i]
            if entry and any(current[tag] != old for tag, old in zip(entry.tags, generations, strict=True)):
                found[i] = None

    async def _get_each(self, keys: Sequence[bytes], refusal: ResponseError) -> list[bytes | None]:
        """Reads keys one by one, because the server may have refused all of them because of one."""
        if not self._is_refusal(refusal):
            raise refusal
        replies = await self._ask([("GET", key) for key in keys], lambda replies: each(replies, bytes, type(None)))
        values: list[bytes | None] = []
        for reply in replies:
            if isinstance(reply, Exception):
                self._calls.errors[type(reply).__name__] += 1
                reply = None
            values.append(reply)
        return values

    async def _write(self, batch: WriteBatch) -> None:
        sets = {key: operation for key, operation in batch.operations.items() if operation is not None}
        generations = await self._generations({tag for entry, _ in sets.values() for tag in entry.tags}) if sets else {}
        # Without the generation of each of its tags, an entry cannot be stored.
        untagged = {key for key, (entry, _) in sets.items() if any(generations[tag] is None for tag in entry.tags)}
        keys = [key for key in sets if key not in untagged]
        commands: list[Command] = [self._set_command(key, *sets[key], generations) for key in keys]
        deletes = [key for key, operation in batch.operations.items() if operation is None]
        commands += map(self._unlink_command, deletes)

        def read(replies: list[Any]) -> list[Any]:
            if replies[: len(keys)] != [b"OK"] * len(keys):
                for reply in replies[: len(keys)]:
                    if not isinstance(reply, ResponseError):
                        is_ok(reply)
            if deletes:
                each(replies[len(keys) :], int)
            return replies

        replies = await self._ask(commands, read) if commands else []
        batch.removed = set()
        for key, reply in zip([*keys, *deletes], replies, strict=True):
            if isinstance(reply, Exception):
                self._calls.errors[type(reply).__name__] += 1
                batch.refused.add(key)
            elif key in sets:
                batch.stored.add(key)
            elif reply:
                batch.removed.add(key)
        batch.refused |= untagged
        outdated = [key for key in sets if key in batch.refused]
        self._refused += len(outdated)
        if outdated:
            # The former values are deleted, because they are out of date. Deleting needs no memory.
            replies = await self._ask(list(map(self._unlink_command, outdated)), _numbers)
            self._deletes += sum(reply == 1 for reply in replies)

    def _set_command(self, key: str, entry: Entry, payload: bytes, generations: Mapping[str, bytes | None]) -> Command:
        identity = envelope.identity(key)
        blob = envelope.seal(entry, identity, payload, [generations[tag] or b"" for tag in entry.tags])
        command: Command = ("SET", self._prefix + envelope.address(identity), blob)
        if entry.kept_until is not None:
            remaining_ms = (entry.kept_until - time.time()) * 1000
            if remaining_ms < LONGEST_MS:
                command += ("PX", max(1, math.ceil(remaining_ms)))
        return command

    def _unlink_command(self, key: str) -> Command:
        return ("UNLINK", self._prefix + envelope.address(envelope.identity(key)))

    async def _generations(self, tags: Iterable[str]) -> dict[str, bytes | None]:
        """Returns the generation of each tag, and creates those that are missing; None if the server refuses it.

        If a tag is invalidated between this and the write, the written entry is a miss.
        """
        tags = list(tags)
        commands: list[Command] = []
        for key in map(self._tag_key, tags):
            new: Command = ("SET", key, secrets.token_bytes(8), "NX", "PX", TAG_TTL_MS)
            commands += [new, ("PEXPIRE", key, TAG_TTL_MS), ("GET", key)]

        def read(replies: list[Any]) -> list[Any]:
            each(replies[0::3], bytes, type(None))
            each(replies[1::3], int)
            return each(replies[2::3], bytes, type(None))

        replies = await self._ask(commands, read) if commands else []
        for reply in replies:
            if isinstance(reply, Exception):
                self._calls.errors[type(reply).__name__] += 1
        return {tag: reply if type(reply) is bytes else None for tag, reply in zip(tags, replies, strict=True)}

    async def _describe(self) -> str:
        info = await self._ask([("INFO", "server")], lambda replies: text(replies[0]))
        # For its clients, Valkey calls itself Redis 7.2.4, too.
        for name in ("Valkey", "Redis"):
            if version := re.search(rb"\b%s_version:(\S+)" % name.lower().encode(), info):
                return f"{name} {version[1].decode()} at {self._where}"
        return f"Redis at {self._where}"

    def _special(self, kind: str) -> bytes:
        return self._prefix[:-1] + f"%{kind}:".encode()

    def _tag_key(self, tag: str) -> bytes:
        return self._special("tag") + envelope.address(envelope.identity(tag))

    def _lock_key(self, key: str) -> bytes:
        return self._special("lock") + envelope.address(envelope.identity(key))


def _number(replies: list[Any]) -> int:
    return number(replies[0])


def _numbers(replies: list[Any]) -> list[Any]:
    return each(replies, int)


def _scanned(replies: list[Any]) -> tuple[bytes, list[bytes]]:
    found = array(replies[0])
    if len(found) != 2:
        raise UnexpectedReplyError(f"reply must be an array of 2 items, got {len(found)}")
    cursor, keys = found
    return text(cursor), list(map(text, array(keys)))
