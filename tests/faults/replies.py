"""Hostile replies, as data: 36 of a Redis server and 14 of a PostgreSQL server.

A script lists what the server sends in place of a reply, and when. A part is bytes, a `Do`, or a function that makes
bytes of the right reply. The oracle in `oracle.py` holds for every reply; a field says what else must be true.

A reply that the package does not withstand yet has a `fault`, which names the reason; no test plays it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import hiredis


class Do(Enum):
    """A step of a script."""

    REPLY = auto()
    """Send the right reply."""
    HALF = auto()
    """Send its first half."""
    BYTES = auto()
    """Send it in single bytes, a long one in pieces between."""
    EARLIER = auto()
    """Send the right reply to the last command of the same kind for other keys, whoever sent that."""
    HOLD = auto()
    """Send it after the reply to the next request of this connection."""
    WAIT = auto()
    """Send nothing for a moment."""
    SILENCE = auto()
    """Send nothing any more."""
    FLOOD = auto()
    """Send half a gigabyte, or what the client accepts of it."""
    CLOSE = auto()
    """Close the connection."""
    RESET = auto()
    """Reset the connection."""


@dataclass(frozen=True)
class RedisReply:
    """A hostile reply of a Redis server.

    Attributes:
        name: what the server does.
        script: what it sends.
        to: the commands that get it; None for all. `accept` is the moment before the first command.
        executed: whether the server carries out the command.
        harmless: whether every call must succeed as if nothing had happened.
        concerns_command: whether it is an error of one command, which must not keep other commands from the server.
        fault: why it does not hold yet.
    """

    name: str
    script: tuple[bytes | Do | Callable[[bytes], bytes], ...]
    to: frozenset[str] | None = None
    executed: bool = True
    harmless: bool = False
    concerns_command: bool = False
    fault: str = ""


def _bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def _array(items):
    return b"*%d\r\n" % len(items) + b"".join(items)


def _item(value):
    return b":%d\r\n" % value if isinstance(value, int) else _bulk(value)


def _changed_array(change):
    """Return a part that changes the items of an array; a reply that is no array becomes an array."""

    def part(right):
        reader = hiredis.Reader()
        reader.feed(right)
        reply = reader.gets()
        return _array(change(list(map(_item, reply)) if isinstance(reply, list) else [right]))

    return part


def _changed_strings(change):
    """Return a part that changes the strings of an array, or a reply that is a string."""

    def part(right):
        reader = hiredis.Reader()
        reader.feed(right)
        reply = reader.gets()
        if isinstance(reply, list):
            return _array([_item(change(item) if isinstance(item, bytes) else item) for item in reply])
        return _bulk(change(reply)) if isinstance(reply, bytes) and right[:1] == b"$" else right

    return part


def _error(text, *, concerns_command=False, fault=""):
    return RedisReply(
        f"the error {text.split()[0]}",
        (b"-%b\r\n" % text.encode(),),
        executed=False,
        concerns_command=concerns_command,
        fault=fault,
    )


_ANOTHER_HALF = b"$10\r\nabc"
_OOM = "OOM command not allowed when used memory > 'maxmemory'."

REDIS_REPLIES = [
    # Leftovers, and replies to other requests.
    RedisReply("one byte after the reply", (lambda right: right + b"x",)),
    RedisReply("half a reply, a moment after the reply", (Do.REPLY, Do.WAIT, _ANOTHER_HALF)),
    RedisReply("the reply twice", (lambda right: right + right,)),
    RedisReply("the reply again, a moment later", (Do.REPLY, Do.WAIT, Do.REPLY)),
    RedisReply("OK, and then a refusal", (b"+OK\r\n-%b\r\n" % _OOM.encode(),), executed=False),
    RedisReply("the reply to an earlier request", (Do.EARLIER,)),
    RedisReply("replies in the wrong order", (Do.HOLD,)),
    RedisReply("a reply before the first request", (b"+OK\r\n",), to=frozenset({"accept"})),
    # Replies of the wrong type or size.
    RedisReply("an integer", (b":1\r\n",)),
    RedisReply("nil", (b"$-1\r\n",)),
    RedisReply("an array with one item less", (_changed_array(lambda items: items[:-1]),)),
    RedisReply("an array with one item more", (_changed_array(lambda items: [*items, *items[:1]]),)),
    RedisReply("an array of errors", (_changed_array(lambda items: [b"-ERR no\r\n"] * len(items)),)),
    RedisReply("5,000 nested arrays", (b"*1\r\n" * 5_000 + b":1\r\n",)),
    RedisReply("a push message before the reply", (lambda right: b">2\r\n+invalidate\r\n*0\r\n" + right,)),
    # Lengths.
    RedisReply("a negative length", (b"$-7\r\n",)),
    RedisReply("a length that is not a number", (b"$abc\r\n",)),
    RedisReply("500 million items", (b"*500000000\r\n",)),
    RedisReply("a string of 2 GB that does not come", (b"$2000000000\r\n", Do.SILENCE)),
    RedisReply(
        "a string of 2 GB",
        (b"$2000000000\r\n", Do.FLOOD),
    ),
    RedisReply("a string without CRLF", (b"$2\r\nabcd\r\n",)),
    RedisReply(
        "a line without end",
        (b"+", Do.FLOOD),
    ),
    # The connection.
    RedisReply("half a reply, then silence", (Do.HALF, Do.SILENCE)),
    RedisReply("half a reply, then the end", (Do.HALF, Do.CLOSE)),
    RedisReply("half a reply, then a reset", (Do.HALF, Do.RESET)),
    RedisReply("the reply in single bytes", (Do.BYTES,), harmless=True),
    # Envelopes.
    RedisReply("envelopes of other keys", (_changed_array(lambda items: [*items[1:], items[0]]),)),
    RedisReply("truncated envelopes", (_changed_strings(lambda value: value[: len(value) // 2]),)),
    # Errors.
    _error("LOADING Redis is loading the dataset in memory"),
    _error("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    _error("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    _error("NOAUTH Authentication required."),
    _error("READONLY You can't write against a read only replica."),
    _error(_OOM, concerns_command=True),
    _error("NOPERM this user has no permissions to run the command", concerns_command=True),
    # The server is a node of a cluster, so all commands are refused.
    _error("MOVED 3999 127.0.0.1:6381"),
]


@dataclass(frozen=True)
class PostgresReply:
    """A hostile reply of a PostgreSQL server.

    Attributes:
        name: what the server does.
        scripts: what it sends, one variant after the other; each gets the messages of the right reply.
        to: the replies that it sends it for: `startup`, `prepare`, `result`.
        harmless: whether every call must succeed as if nothing had happened.
        recognizable: whether a borrower of a pool can know that the reply is wrong.
        fault: why it does not hold yet.
    """

    name: str
    scripts: tuple[Callable[[list[bytes]], tuple[bytes | Do, ...]], ...]
    to: frozenset[str] = frozenset({"prepare", "result"})
    harmless: bool = False
    recognizable: bool = True
    fault: str = ""


_READY = b"Z\0\0\0\5I"
_NOTICE = b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"


def _message(kind, payload=b""):
    return kind + (len(payload) + 4).to_bytes(4, "big") + payload


def _in_its_place(message):
    """Return a script that sends one message, and ReadyForQuery if the right reply has it."""
    return lambda messages: (message + (_READY if messages[-1][:1] == b"Z" else b""),)


def _rows(change):
    """Return a script that changes the DataRow messages, each a list of columns."""

    def script(messages):
        rows = [_columns(message) for message in messages if message[:1] == b"D"]
        changed = iter([_row(row) for row in change(rows)] if rows else [])
        return (b"".join(next(changed) if message[:1] == b"D" else message for message in messages),)

    return script


def _columns(message):
    columns, at = [], 7
    for _ in range(int.from_bytes(message[5:7], "big")):
        size = int.from_bytes(message[at : at + 4], "big", signed=True)
        at += 4
        columns.append(None if size < 0 else message[at : at + size])
        at += max(size, 0)
    return columns


def _row(columns):
    fields = (b"\xff" * 4 if column is None else len(column).to_bytes(4, "big") + column for column in columns)
    return _message(b"D", len(columns).to_bytes(2, "big") + b"".join(fields))


def _closed_after(count):
    return lambda messages: (b"".join(messages[:count]), Do.CLOSE)


def _other_values(rows):
    """Each row gets the last column of the next one."""
    return [[*row[:-1], other[-1]] for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]


POSTGRES_REPLIES = [
    PostgresReply("an unknown message", (lambda messages: (_message(b"!", b"what"), b"".join(messages)),)),
    PostgresReply(
        "a message of 2 GB",
        (
            lambda messages: (b"D\x7f\xff\xff\xff", Do.SILENCE),
            lambda messages: (b"D\x7f\xff\xff\xff", Do.FLOOD),
        ),
    ),
    PostgresReply(
        "a length that is too small",
        (
            lambda messages: (b"D\0\0\0\0" + b"".join(messages),),
            lambda messages: (b"D\xff\xff\xff\xff" + b"".join(messages),),
        ),
    ),
    PostgresReply(
        "an error without fields",
        (_in_its_place(_message(b"E", b"\0")), _in_its_place(_message(b"E"))),
    ),
    PostgresReply("no ReadyForQuery", (lambda messages: (b"".join(messages[:-1]), Do.SILENCE),)),
    PostgresReply(
        "ReadyForQuery twice",
        (lambda messages: (b"".join(messages) + _READY,),),
    ),
    PostgresReply(
        "rows of another shape",
        (
            _rows(lambda rows: [row[:-1] for row in rows]),
            _rows(lambda rows: [[*row, b"more"] for row in rows]),
            _rows(lambda rows: [[] for row in rows]),
        ),
    ),
    PostgresReply("values of other rows", (_rows(_other_values),), recognizable=False),
    PostgresReply(
        "a flood of notices",
        (lambda messages: (_message(b"N", _NOTICE) * 20_000, b"".join(messages)),),
    ),
    PostgresReply(
        "a login of an unknown kind",
        (
            lambda messages: (_message(b"R", (99).to_bytes(4, "big")),),
            lambda messages: (_message(b"R", b"\0"),),
        ),
        to=frozenset({"startup"}),
    ),
    PostgresReply(
        "silence after the startup",
        (lambda messages: (Do.SILENCE,),),
        to=frozenset({"startup"}),
    ),
    PostgresReply(
        "the end after each step",
        tuple(_closed_after(count) for count in (0, 1, 2, 3)),
        to=frozenset({"startup", "prepare", "result"}),
    ),
    PostgresReply(
        "the reply twice",
        (lambda messages: (b"".join(messages) * 2,),),
    ),
    PostgresReply(
        "the reply in single bytes",
        (lambda messages: (Do.BYTES,),),
        to=frozenset({"startup", "prepare", "result"}),
        harmless=True,
    ),
]
