"""Checks that a PostgreSQL server sends only what its client has asked for: the twin of `pg_dialogue`."""

from struct import Struct
from typing import TYPE_CHECKING, Final, final

from acgsperf._native.atomic import exclusive
from acgsperf._native.pg_replies import (
    ANSWERS,
    ANYTIME,
    DESCRIBE,
    NOTHING,
    OWED,
    OWED_FOR_STATEMENT,
    SIGN_IN,
    STATEMENT,
    SYNC,
    SYNCED,
    UPGRADE_REQUESTS,
    refusal,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["IMPLEMENTATION", "Dialogue"]

IMPLEMENTATION: Final = "python"

_ERROR: Final = ord("E")
# A length and a code; a type and a length.
_STARTUP: Final = Struct(">ii")
_HEADER: Final = Struct(">Bi")


def _bytes(data: "Buffer") -> bytes:
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}") from None
    with view:
        if not view.c_contiguous:
            raise BufferError("memoryview: underlying buffer is not C-contiguous")
        return view.tobytes()


@final
class Dialogue:
    """Dialogue()
    --

    Follows both directions of one connection in PostgreSQL's protocol 3.0, and finds messages that answer nothing.

    Call `sent` before the bytes are written, and `received` before they are used. Both take pieces of any size: only
    the headers of messages are read, and a header may be split. A message counts when its header is complete. Time is
    O(messages). Memory is one byte for each answer that is due, and is released when nothing is due.

    A connection belongs to one event loop. If two threads call the same object, the process does not crash, but what it
    returns is undefined.

    A copy of a reply that arrives after the next request of the same kind was sent cannot be told from its reply.

    Limit: PostgreSQL ignores a Sync that it reads during `COPY ... FROM STDIN`, but here it owes a 'Z'. So a client
    must not send a Sync between the command and the end of its data. asyncpg does not.
    """

    __slots__ = (
        "_due",
        "_received_part",
        "_received_skip",
        "_refusal",
        "_sent_part",
        "_sent_skip",
        "_skipping",
        "_started",
    )

    def __init__(self) -> None:
        # The answers that are due, in order: keys of ANSWERS.
        self._due = bytearray()
        # Whether the start-up message was sent.
        self._started = False
        # Whether the server skips all messages up to the next Sync.
        self._skipping = False
        self._refusal: str | None = None
        # For each direction: the start of a header that is not complete, and how many bytes of a message are to come.
        self._sent_part = self._received_part = b""
        self._sent_skip = self._received_skip = 0

    @exclusive
    def sent(self, data: "Buffer", /) -> None:
        """Note what the client has sent.

        A length that is too small counts as the smallest possible one: the server ends such a connection.

        Args:
            data: the next bytes of the client. May begin and end anywhere in a message.

        Raises:
            TypeError, BufferError: if `data` has no contiguous buffer.
            MemoryError: if there is no memory for the answers that become due. Then the object is no longer useful.
        """
        piece = self._sent_part + _bytes(data)
        if self._refusal is not None:
            return
        at = self._sent_skip
        while at < len(piece):
            if not self._started:
                if at + _STARTUP.size > len(piece):
                    break
                length, code = _STARTUP.unpack_from(piece, at)
                if code not in UPGRADE_REQUESTS:
                    self._started = True
                    self._due.append(SIGN_IN)
                at += max(length, _STARTUP.size)
                continue
            if at + _HEADER.size > len(piece):
                break
            kind, length = _HEADER.unpack_from(piece, at)
            owed = OWED.get(kind, ())
            if kind == DESCRIBE and length > 4:
                # The first byte after the header says what is described.
                if at + _HEADER.size == len(piece):
                    break
                if piece[at + _HEADER.size] == STATEMENT:
                    owed = OWED_FOR_STATEMENT
            if kind == SYNC:
                self._skipping = False
            if not self._skipping:
                self._due += bytes(owed)
            at += 1 + max(length, 4)
        self._sent_part = piece[at:]
        self._sent_skip = max(at - len(piece), 0)

    @exclusive
    def received(self, data: "Buffer", /) -> str | None:
        """Check what the server has sent.

        Args:
            data: the next bytes of the server. May begin and end anywhere in a message.

        Returns:
            None if every message was due. Otherwise a text that names the first one that was not, and what was due.
            From then on, each call returns the same text: the connection must be aborted.

        Raises:
            TypeError, BufferError: if `data` has no contiguous buffer.
        """
        piece = self._received_part + _bytes(data)
        if self._refusal is not None:
            return self._refusal
        at = self._received_skip
        while at + _HEADER.size <= len(piece):
            kind, length = _HEADER.unpack_from(piece, at)
            due = self._due[0] if self._due else NOTHING
            if length < 4 or not self._accept(due, kind):
                self._refusal = refusal(due, kind, length)
                return self._refusal
            at += 1 + length
        self._received_part = piece[at:]
        self._received_skip = max(at - len(piece), 0)
        return None

    def _accept(self, due: int, kind: int) -> bool:
        """Change what is due as a message of the server asks for; return False if the message is not due."""
        answer = ANSWERS[due]
        if kind in answer.last:
            del self._due[:1]
        elif kind in answer.next_due:
            self._due[0] = answer.next_due[kind]
        elif kind == _ERROR and kind not in answer.more:
            self._skip_to_sync()
        else:
            return kind in answer.more or kind in ANYTIME
        return True

    def _skip_to_sync(self) -> None:
        """Drop everything up to the next Sync: after an error in an extended query, the server skips that much."""
        sync = self._due.find(SYNCED)
        if sync == -1:
            # The Sync was not sent yet. Until it is, the server skips whatever else is sent.
            self._due.clear()
            self._skipping = True
        else:
            del self._due[:sync]
