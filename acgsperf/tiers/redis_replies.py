"""Checks replies of a Redis server: each must be of the kind that its command gives."""

from typing import Any, Final

from redis.exceptions import ClusterDownError, MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = [
    "MovedSlotError",
    "ReplicaError",
    "UnexpectedReplyError",
    "array",
    "blobs",
    "cursor_and_keys",
    "each",
    "is_of_replica",
    "is_ok",
    "is_refusal",
    "number",
    "refuses_all",
    "refuses_slot",
    "text",
]


class ReplicaError(RedisConnectionError):
    """The server is a replica: it refuses writes, and may lack acknowledged ones. Its connections are closed.

    Args:
        error: the answer that says so.

    Attributes:
        reason: that answer.
    """

    _message = "the server is a replica"

    def __init__(self, error: Exception | str) -> None:
        self.reason: Final = str(error)
        super().__init__(f"{self._message}: {error}")


class MovedSlotError(ReplicaError):
    """The server is a node of a cluster, and another node has the slot. Its connections are closed."""

    _message = "the server is a node of a cluster, and another node has the key (use redis+cluster://)"


def is_of_replica(error: ResponseError) -> bool:
    """Return whether only a replica gives this error, also as the text of an error that ended a script."""
    return isinstance(error, ReadOnlyError | MasterDownError) or "READONLY " in str(error)


def refuses_all(error: ResponseError) -> bool:
    """Return whether a server refuses every command with this error."""
    return isinstance(error, ClusterDownError) or str(error).startswith("BUSY ")


def refuses_slot(error: ResponseError) -> bool:
    """Return whether a node of a cluster refuses a command only because no node has the slot of its keys."""
    return isinstance(error, ClusterDownError) and "slot not served" in str(error).lower()


def is_refusal(error: Exception) -> bool:
    """Return whether a server has answered and refuses one call with this error, not all calls."""
    return isinstance(error, ResponseError) and not refuses_all(error)


class UnexpectedReplyError(RedisError):
    """A reply that cannot belong to its command. Its connection is closed.

    Args:
        message: what is wrong.
        usable: what the caller gets if a new connection gives the same reply; None if nothing in it can be used.
    """

    def __init__(self, message: str, usable: Any = None) -> None:
        super().__init__(message)
        self.usable = usable


def _unexpected(reply: Any, expected: str) -> Exception:
    """Return what to raise for a reply that is not the expected one."""
    if isinstance(reply, ResponseError):
        return reply
    got = f"{type(reply).__name__} of {len(reply)} items" if isinstance(reply, list) else type(reply).__name__
    return UnexpectedReplyError(f"reply must be {expected}, got {got}")


def is_ok(reply: Any, *, optional: bool = False) -> bool:
    """Return True for OK; with `optional` False for nil. Raise the error reply of the command."""
    if reply == b"OK":
        return True
    if reply is None and optional:
        return False
    raise _unexpected(reply, "OK")


def number(reply: Any) -> int:
    """Return an integer. Raise the error reply of the command."""
    if type(reply) is int:
        return reply
    raise _unexpected(reply, "an integer")


def text(reply: Any) -> bytes:
    """Return a string. Raise the error reply of the command."""
    if type(reply) is bytes:
        return reply
    raise _unexpected(reply, "a string")


def array(reply: Any) -> list[Any]:
    """Return an array. Raise the error reply of the command."""
    if type(reply) is list:
        return reply
    raise _unexpected(reply, "an array")


def cursor_and_keys(replies: list[Any]) -> tuple[bytes, list[bytes]]:
    """Return the cursor and the keys in the reply of SCAN."""
    found = array(replies[0])
    if len(found) != 2:
        raise UnexpectedReplyError(f"reply must be an array of 2 items, got {len(found)}")
    cursor, keys = found
    return text(cursor), list(map(text, array(keys)))


def blobs(reply: Any, count: int) -> list[bytes | None]:
    """Return an array of strings and nils. Raise the error reply of the command."""
    if type(reply) is not list or len(reply) != count:
        raise _unexpected(reply, f"an array of {count} items")
    if not _STRINGS.issuperset(map(type, reply)):
        raise UnexpectedReplyError("items of an array must be strings or nil")
    return reply


def each(replies: list[Any], *kinds: type) -> list[Any]:
    """Return replies, among which error replies may be; all others must be of some types."""
    for reply in replies:
        if type(reply) not in kinds and not isinstance(reply, ResponseError):
            raise _unexpected(reply, " or ".join(kind.__name__ for kind in kinds))
    return replies


_STRINGS = frozenset({bytes, type(None)})
