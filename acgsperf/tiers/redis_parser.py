"""Reads replies of a Redis server: hiredis, and a check of lengths before hiredis sees them."""

import re
from typing import Any, Final

from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MovedError, RedisError, ResponseError

from acgsperf.dispatch import has_long_array
from acgsperf.tiers.redis_replies import (
    MovedSlotError,
    ReplicaError,
    UnexpectedReplyError,
    is_of_replica,
    refuses_all,
    refuses_slot,
)

__all__ = ["CheckedParser", "NodeParser"]

# No reply that a tier asks for has as many items. hiredis allocates an array as soon as it has read its length. At 500
# million items, releasing that array blocks the event loop for a second.
_TOO_MANY: Final = 1_000_000
# hiredis also reads the arrays of RESP3, which no server sends without being asked: sets, pushes and attributes.
_ARRAYS: Final = b"*~>|"
_MAYBE_TOO_MANY: Final = re.compile(rb"[*~>|]\d{7}")
_LONGEST_MATCH: Final = 8
_LENGTHS_CHECKED_EVERY_BYTES: Final = 16 << 20
# The longest string of a Redis server, by default.
_TOO_LONG: Final = (512 << 20) + 1
_MAYBE_TOO_LONG: Final = re.compile(rb"\$\d{9}")
# Errors, statuses and lengths are lines. hiredis searches a line from its start whenever it gets more data.
_LONGEST_LINE: Final = 64 << 10
_MOST_DIGITS: Final = 20


class CheckedParser(_AsyncHiredisParser):
    """redis-py's parser, which refuses an array, a string or a line that is too long before it takes much memory.

    Attributes:
        follows_slots: whether an answer MOVED of a cluster belongs to its command alone, because the caller sends that
            to another node.
    """

    follows_slots: bool = False

    _stream: Any
    _reader: Any

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._lengths = _Lengths()

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._lengths = _Lengths()

    @property
    def is_clean(self) -> bool:
        """Whether the server has neither sent data that belongs to no reply, nor closed the connection."""
        stream = self._stream
        return not (stream._buffer or self._reader.has_data() or stream.at_eof())

    async def read_replies(self, count: int) -> list[Any]:
        """Return the next replies; an error reply is an exception among them.

        Raises:
            redis.ConnectionError: if the connection is lost, or the server is loading its data or wants a login.
            ReplicaError: if the server is a replica and refuses one of the commands, or has lost its slot.
            redis.ResponseError: if the server refuses every command.
            redis.InvalidResponse: if the data is not a reply, or an array, a string or a line in it is too long.
            UnexpectedReplyError: if there is data after the last reply.
        """
        replies: list[Any] = []
        unavailable: RedisError | None = None
        gets = self._reader.gets
        while len(replies) < count:
            reply = gets()
            if reply is NOT_ENOUGH_DATA:
                try:
                    await self.read_from_socket()
                except OSError as error:
                    raise RedisConnectionError(f"connection lost: {error}") from error
            else:
                if isinstance(reply, Exception):
                    if isinstance(reply, RedisConnectionError):
                        raise reply
                    if isinstance(reply, ResponseError):
                        if is_of_replica(reply):
                            unavailable = ReplicaError(reply)
                        elif isinstance(reply, MovedError) and not self.follows_slots:
                            unavailable = MovedSlotError(reply)
                        elif refuses_all(reply) and not (self.follows_slots and refuses_slot(reply)):
                            unavailable = reply
                replies.append(reply)
        if self._stream._buffer or self._reader.has_data():
            raise UnexpectedReplyError("there is data after the last reply")
        self._lengths.clear()
        if unavailable is not None:
            raise unavailable
        return replies

    async def read_from_socket(self) -> bool:
        data = await self._stream.read(self._read_size)
        if not data:
            raise RedisConnectionError("connection closed by the server")
        self._lengths.check(data)
        self._reader.feed(data)
        return True


class NodeParser(CheckedParser):
    """Reads the replies of a node of a cluster, for a caller that follows slots."""

    follows_slots: bool = True


class _Lengths:
    """Looks for arrays, strings and lines that are too long.

    A search for a long number finds most replies harmless. Only if it matches, or if the data gets large, the data is
    split into replies, because a value may contain anything. Replies of at most 64 KiB are not searched for strings and
    lines, because the memory for them grows only with the data that arrives.
    """

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        self._size = 0
        # The size at which strings and lines are looked at next.
        self._check_at = _LONGEST_LINE
        self._end = b""
        # Bytes of a value, and its line end, that are still to come.
        self._skip = 0

    def clear(self) -> None:
        """Forget the data so far, because it consisted of complete replies."""
        self._pending = []
        self._size = self._skip = 0
        self._check_at = _LONGEST_LINE
        self._end = b""

    def check(self, data: bytes) -> None:
        """Add data from the server. Raise InvalidResponse if something in it is too long."""
        self._pending.append(data)
        self._size += len(data)
        suspicious = has_long_array(data)
        if self._end:
            seam = self._end + data[:_LONGEST_MATCH]
            suspicious = suspicious or has_long_array(seam)
            self._end = seam if len(data) < _LONGEST_MATCH else data
        else:
            self._end = data
        self._end = self._end[-_LONGEST_MATCH:]
        if suspicious or (self._size > self._check_at and self._may_be_too_long(data)):
            self._split()

    def _may_be_too_long(self, data: bytes) -> bool:
        """Return whether to look for a string or a line that is too long; `data` is what came last."""
        if self._size > _LENGTHS_CHECKED_EVERY_BYTES:
            return True
        self._check_at = _LENGTHS_CHECKED_EVERY_BYTES
        start = b"".join(self._pending)
        self._pending = [start]
        return b"\r\n" not in data or _MAYBE_TOO_LONG.search(start) is not None

    def _split(self) -> None:
        data = b"".join(self._pending)
        at = self._skip
        while at < len(data):
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > _LONGEST_LINE:
                    raise InvalidResponse(f"line of {len(data) - at} bytes or more, expected at most {_LONGEST_LINE}")
                if _MAYBE_TOO_MANY.match(data, at):
                    number = data[at + 1 : at + _LONGEST_MATCH]
                    raise InvalidResponse(f"array of {number.decode()}... items, expected fewer than {_TOO_MANY}")
                break
            kind, number = data[at : at + 1], data[at + 1 : end]
            at = end + 2
            if (kind == b"$" or kind in _ARRAYS) and number.isdigit():
                if kind != b"$" and _is_at_least(number, _TOO_MANY):
                    raise InvalidResponse(f"array of {number.decode():.30} items, expected fewer than {_TOO_MANY}")
                if kind == b"$":
                    if _is_at_least(number, _TOO_LONG):
                        raise InvalidResponse(f"string of {number.decode():.30} bytes, expected fewer than {_TOO_LONG}")
                    at += int(number) + 2
        rest = data[at:]
        self._pending = [rest] if rest else []
        self._size = len(rest)
        self._skip = max(at - len(data), 0)
        self._check_at = min(self._skip + _LONGEST_LINE, _LENGTHS_CHECKED_EVERY_BYTES)


def _is_at_least(digits: bytes, limit: int) -> bool:
    # Python refuses to convert thousands of digits.
    return len(digits) > _MOST_DIGITS or int(digits) >= limit
