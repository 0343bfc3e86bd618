"""Follows the logs of all caches of an event loop on one Redis server, over one connection.

A log is a stream. Each round is one pipeline: XREAD waits for records of all streams, and then XREVRANGE looks for the
last position of each. If the position is gone, the stream was trimmed or replaced, and records may have been missed: a
gap. If it is still there, no later record was trimmed before XREAD read it.

A stream is trimmed from its beginning. If the position is gone and there is an earlier one, the server has loaded an
older dump without a restart, and what was removed since is there again. Then the token of the namespace is removed.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from acgsperf.backplane.backoff import Backoff
from acgsperf.backplane.receiver import Receiver, parsed
from acgsperf.backplane.redis_log import Stream, record_of
from acgsperf.tiers.records import Record, RecordKind, packed
from acgsperf.tiers.redis_connections import Command, OwnConnection, RedisConnections
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys, short_run
from acgsperf.tiers.redis_replies import UnexpectedReplyError, array, each, text
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.timeouts import time_limit

__all__ = ["RedisReader"]

_log: Final = logging.getLogger("acgsperf.backplane")
# The same limits as in the scripts of the tier.
MAX_RECORDS: Final = 10_000
_FEWEST_RECORDS: Final = 20
_LOG_BYTES: Final = 20_000_000
RECORDS_A_ROUND: Final = 1_000
_RETRY_S: Final = 1.0
_LONGEST_BLOCK_S: Final = 5.0
_SHORTEST_BLOCK_S: Final = 0.01
_CLOCK_EVERY_S: Final = 60.0
# If records come faster than this, the reader rests after each round: a round of several records costs little more than
# a round of one.
_QUICK_S: Final = 0.0015
_REST_S: Final = 0.001
# Applying records must not keep the event loop from other work for longer than this.
_SLICE_S: Final = 0.005
_POSITION: Final = re.compile(rb"\d{1,20}-\d{1,20}")
# The errors of XADD if a key is no stream, or if no position is left.
_UNUSABLE: Final = re.compile("WRONGTYPE|last possible ID|equal or smaller")
_GREETING: Final = ("INFO", "replication"), ("INFO", "server"), ("CLIENT", "ID")
_RIGHTS: Final = "+xadd +xread +xrevrange +unlink +pexpire +info +time +client|id +client|unblock"


class RedisReader:
    """Follows the logs of all caches of an event loop on one server.

    Args:
        connections: to the server; the reader's own.

    Attributes:
        clock: the clock of the server.
        run: 8 bytes for the run of the server to which the positions belong; empty if it is unknown.
        streams: the logs that caches of this event loop follow, by key.
    """

    def __init__(self, connections: RedisConnections) -> None:
        self.clock: Final = ServerClock()
        self.run: bytes = b""
        self.streams: Final[dict[bytes, Stream]] = {}
        self._connections = connections
        connections.open()
        self._writer = secrets.token_bytes(8)
        self._client_id: int | None = None
        self._measured_at = 0.0
        self._records_at = 0.0
        self._blocked = False  # whether the connection waits in XREAD
        # The last attempt to connect has failed, and the log says so.
        self._failing = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def join(self, key: bytes, receiver: Receiver) -> None:
        """Let a cache follow a log. Return when it does, at the latest after its timeout."""
        stream = self.streams.get(key)
        if stream is None:
            stream = self.streams[key] = Stream(key)
        stream.receivers[receiver] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="acgsperf redis backplane")
        self._changed.set()
        if stream.position:
            receiver.start(stream.level_at, stream.position)
        elif not self._failing and not stream.refused:
            try:
                async with time_limit(receiver.timeout):
                    if self._blocked and not stream.joining:
                        await self._join_meanwhile(stream)
                    await stream.settled.wait()
            except TimeoutError:
                self._warn(f"no answer within {receiver.timeout:g} s")

    def is_only(self, key: bytes, receiver: Receiver) -> bool:
        """Return whether no cache would be left without this one."""
        return all(it.key == key and it.receivers.keys() <= {receiver} for it in self.streams.values())

    async def leave(self, key: bytes, receiver: Receiver) -> None:
        """Let a cache follow a log no longer. If it was the last one, close the connections."""
        stream = self.streams.get(key)
        if stream is not None:
            stream.receivers.pop(receiver, None)
            if not stream.receivers:
                del self.streams[key]
        if self.streams:
            return
        task, self._task = self._task, None
        self._connections.close()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def publish(self, key: bytes, records: Sequence[bytes]) -> int:
        """Append records to a log, and return how many of the first ones the server has accepted."""
        replies = await _added(self._connections.ask, [self._append(key, record) for record in records])
        for count, reply in enumerate(replies):
            if isinstance(reply, Exception):
                self._log_refusal(self.streams.get(key), reply)
                return count
        return len(records)

    @staticmethod
    def _append(key: bytes, record: bytes) -> Command:
        most = max(_FEWEST_RECORDS, min(MAX_RECORDS, _LOG_BYTES // len(record)))
        return ("XADD", key, "MAXLEN", "~", most, "*", "r", record)

    def _hello(self, stream: Stream) -> Command:
        stream.hello = packed(Record(RecordKind.HELLO), self._writer, self.clock.now_us())
        return self._append(stream.key, stream.hello)

    async def _join_meanwhile(self, stream: Stream) -> None:
        """Join a log over another connection, because the reader's one waits in XREAD, and end that wait."""
        stream.joining = True
        sent = monotonic()
        try:
            (hello,) = await _added(self._connections.ask, [self._hello(stream)])
            self._started(stream, sent, hello)
            # End the wait only now, so that the reader finds the position of the log.
            if self._blocked and self._client_id is not None:
                await self._connections.ask([("CLIENT", "UNBLOCK", self._client_id)], list)
        except (RedisError, OSError):
            # The reader tries again in its next round.
            pass
        finally:
            stream.joining = False
            self._connections.close_idle()

    def _started(self, stream: Stream, sent: float, hello: Any) -> None:
        """Follow a log from the record on that this reader has added."""
        if isinstance(hello, ResponseError):
            self._refuse(stream, hello)
        elif not stream.position:
            stream.start(sent, _position(hello))

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            connection = self._connections.own_connection()
            try:
                await self._greet(connection)
                while True:
                    await self._round(connection)
                    backoff.reset()
                    if self._failing:
                        _log.info("redis backplane at %s: the server answers again", self._connections.where)
                        self._failing = False
            except (RedisError, OSError, TimeoutError) as error:
                self._lost(error)
            except Exception:
                _log.exception("redis backplane at %s: unexpected error; connecting again", self._connections.where)
                self._lost(None)
            finally:
                connection.close()
            await asyncio.sleep(backoff.pause())

    def _patience(self) -> float:
        """Return the shortest timeout of the caches."""
        return min((receiver.timeout for stream in self.streams.values() for receiver in stream.receivers), default=1.0)

    async def _greet(self, connection: OwnConnection) -> None:
        """Connect, and find out whether the server is the same as before."""
        try:
            async with time_limit(min(self._patience(), _LONGEST_BLOCK_S)):
                info, client_id = await connection.ask(_GREETING, self._connections.check_role)
                await self._measure_clock(connection)
        except (RedisError, OSError, TimeoutError) as error:
            self._warn(_described(error))
            raise
        self._client_id = client_id if type(client_id) is int else None
        found = re.search(rb"run_id:(\w+)", info) if type(info) is bytes else None
        run = short_run(found[1]) if found else b""
        for stream in self.streams.values():
            stream.recovering = bool(stream.position)
            if stream.position and (not run or run != self.run):
                # Another server, or one restarted from a snapshot: it may have lost records that nobody had read.
                stream.missed()
        self.run = run

    async def _measure_clock(self, connection: OwnConnection) -> None:
        sent = monotonic()
        (reply,) = await connection.ask([("TIME",)], list)
        if type(reply) is list and len(reply) == 2 and all(type(part) is bytes and part.isdigit() for part in reply):
            self.clock.measured(sent, monotonic(), int(reply[0]) + int(reply[1]) / 1e6)
        self._measured_at = sent

    def _lost(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            _log.info("redis backplane at %s: connection lost (%s)", self._connections.where, _described(error))
        self._client_id = None
        self._connections.close_idle()
        for stream in self.streams.values():
            for receiver in stream.receivers:
                receiver.lost()

    def _warn(self, problem: str) -> None:
        if not self._failing:
            _log.warning(
                "redis backplane at %s: cannot reach the server (%s); this process gets no records of other "
                "processes, and tries again",
                *(self._connections.where, problem),
            )
            self._failing = True

    def _refuse(self, stream: Stream, error: Exception) -> None:
        """Note that the server does not let this process follow a log, at least for now."""
        if stream.position:
            stream.missed()
        self._log_refusal(stream, error)
        stream.retry_at = monotonic() + _RETRY_S
        stream.settled.set()
        for receiver in stream.receivers:
            receiver.refused()

    def _log_refusal(self, stream: Stream | None, error: Exception) -> None:
        if stream is None or stream.refused:
            return
        stream.refused = True
        needs = ""
        if isinstance(error, NoPermissionError):
            keys = stream.key.partition(b":")[0].decode()
            needs = f"; the user needs the rights {_RIGHTS} and the keys ~{keys}:*"
        _log.warning(
            "redis backplane %s: the server refuses the log (%s)%s; this cache gets no records of other processes, "
            "and tries again",
            *(stream.name, error, needs),
        )

    async def _round(self, connection: OwnConnection) -> None:
        """Wait for records once, and apply them."""
        patience = min(self._patience(), 4 * _LONGEST_BLOCK_S)
        block = max(patience / 4, _SHORTEST_BLOCK_S)
        now = monotonic()
        self._changed.clear()
        async with time_limit(patience):
            if now - self._measured_at > _CLOCK_EVERY_S:
                await self._measure_clock(connection)
            new = [it for it in self.streams.values() if not (it.position or it.joining) and it.retry_at <= now]
            if new:
                sent = monotonic()
                hellos = await _added(connection.ask, list(map(self._hello, new)))
                for stream, hello in zip(new, hellos, strict=True):
                    self._started(stream, sent, hello)
        followed = [stream for stream in self.streams.values() if stream.position]
        if not followed:
            with suppress(TimeoutError):
                async with time_limit(block):
                    await self._changed.wait()
            return
        keys, positions = [stream.key for stream in followed], [stream.position for stream in followed]
        read: Command = ("XREAD", "COUNT", RECORDS_A_ROUND, "BLOCK", int(block * 1000), "STREAMS", *keys, *positions)
        checks: list[Command] = [
            ("XREVRANGE", key, position, "-", "COUNT", 1) for key, position in zip(keys, positions, strict=True)
        ]
        sent, self._blocked = monotonic(), True
        try:
            async with time_limit(2 * block):
                found, *checked = await connection.ask([read, *checks], list)
        finally:
            self._blocked = False
        await self._forget_older(connection, followed, checked)
        records = self._sorted(followed, found, checked)
        for stream in () if isinstance(found, ResponseError) else followed:
            if stream.position and await self._apply(stream, records.get(stream.key, ())):
                stream.level(sent)
        if records:
            await self._rest()

    async def _rest(self) -> None:
        """Wait shortly if records come in quick succession, so that the next round reads several of them."""
        before, self._records_at = self._records_at, monotonic()
        if self._records_at - before < _QUICK_S:
            await asyncio.sleep(_REST_S)

    async def _forget_older(
        self, connection: OwnConnection, followed: Sequence[Stream], checked: Sequence[Any]
    ) -> None:
        """Make all entries of a namespace misses if an older log has replaced its log, before its L1 is verified."""
        for stream, found in zip(followed, checked, strict=True):
            if isinstance(found, ResponseError) or not array(found) or stream.has_last(found):
                continue
            if stream.receivers and not self._connections.in_cluster:
                _log.warning(
                    "redis backplane %s: the server has loaded an older dump; all entries in it are misses now",
                    stream.name,
                )
                keys = RedisKeys(next(iter(stream.receivers)).namespace)
                await connection.ask([("UNLINK", keys.token, keys.invalidations)], list)

    def _sorted(self, followed: Sequence[Stream], found: Any, checked: Sequence[Any]) -> dict[bytes, list[Any]]:
        """Return the records of each log. Stop following logs that the server refuses, or that have a gap."""
        refused = False
        for stream, position in zip(followed, checked, strict=True):
            if isinstance(position, ResponseError) and _UNUSABLE.search(str(position)):
                self._note_gap(stream)
                refused = True
            elif isinstance(position, ResponseError):
                self._refuse(stream, position)
                refused = True
            elif not stream.has_last(position):
                self._note_gap(stream)
        if isinstance(found, ResponseError):
            # Another process may have replaced an unusable log between the two replies. That is a gap.
            for stream in followed if not (refused or _UNUSABLE.search(str(found))) else ():
                self._refuse(stream, found)
            return {}
        records = {}
        for part in array(found) if found is not None else ():
            key, entries = array(part)
            records[text(key)] = array(entries)
        return records

    @staticmethod
    def _note_gap(stream: Stream) -> None:
        _log.info("redis backplane %s: the log has a gap; L1 is verified", stream.name)
        stream.missed()

    async def _apply(self, stream: Stream, entries: Sequence[Any]) -> bool:
        """Pass records on to the caches. Return whether the log has no more of them."""
        began = monotonic()
        for entry in entries:
            position, fields = array(entry)
            found = record_of(fields)
            record = None if found is None else parsed(found)
            stream.advance(_position(position), fields)
            for receiver in tuple(stream.receivers):
                receiver.take(record, self.clock, recovering=stream.recovering)
                receiver.position = stream.position
            if monotonic() - began > _SLICE_S:
                await asyncio.sleep(0)
                began = monotonic()
        return len(entries) < RECORDS_A_ROUND


async def _added(ask: Callable[..., Awaitable[list[Any]]], commands: Sequence[Command]) -> list[Any]:
    """Send XADD commands and return their replies, among which errors may be.

    A foreign writer may have replaced the log with another value, or added the greatest possible position. Then nothing
    can be added: the log is removed, which is a gap for all its followers, and the records are added again.
    """
    # The log lives until 30 days after the last record.
    renewals = [("PEXPIRE", key, TOKEN_TTL_MS) for key in dict.fromkeys(command[1] for command in commands)]
    replies = await ask([*commands, *renewals], lambda replies: _are_added(replies[: len(commands)]))
    unusable = [at for at, reply in enumerate(replies) if isinstance(reply, Exception) and _UNUSABLE.search(str(reply))]
    if unusable:
        again = [commands[at] for at in unusable]
        removals = [("UNLINK", key) for key in dict.fromkeys(command[1] for command in again)]
        asked = [*removals, *again, *renewals]
        added = await ask(asked, lambda replies: _are_added(replies[len(removals) : len(removals) + len(again)]))
        for at, reply in zip(unusable, added, strict=True):
            replies[at] = reply
    return replies


def _are_added(replies: list[Any]) -> list[Any]:
    return each(replies, bytes)


def _position(reply: Any) -> bytes:
    position = text(reply)
    if not _POSITION.fullmatch(position):
        raise UnexpectedReplyError("reply must be a position of a stream")
    return position


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
