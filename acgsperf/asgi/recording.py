"""A response that is being sent: its body is collected while it may still be stored."""

from typing import Final

from acgsperf.asgi.fields import Headers, joined, seconds
from acgsperf.asgi.freshness import Freshness
from acgsperf.asgi.ranges import Part

__all__ = ["Recording"]


class Recording:
    """A response that is being sent.

    Attributes:
        status, headers: those of the response.
        freshness: how it may be used; None if it will not be stored.
        varying: the request headers that it depends on.
        part: the part of a whole that it contains; None for a whole.
        has_ended: whether its last part was added.
    """

    __slots__ = (
        "_declared",
        "_limit",
        "_pieces",
        "_size",
        "freshness",
        "has_ended",
        "headers",
        "part",
        "status",
        "varying",
    )

    def __init__(
        self,
        status: int,
        headers: Headers,
        freshness: Freshness | None,
        varying: tuple[bytes, ...],
        limit: int,
        part: Part | None = None,
    ) -> None:
        self.status: Final = status
        self.headers: Final = headers
        self.varying: Final = varying
        self.part: Final = part
        self.freshness = freshness
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self.has_ended: bool = False
        length = joined(headers, b"content-length")
        # -1 if the header is not a number: no body has that length.
        self._declared = None if length is None else seconds(length.decode("latin-1")) or -(length != b"0")
        if self._declared is not None and self._declared > limit:
            self.freshness = None

    @property
    def is_complete(self) -> bool:
        """Whether it has ended, and its length is what its header says."""
        return self.has_ended and self._declared in {None, self._size}

    def add(self, piece: bytes, last: bool) -> None:
        """Add a part of the body. If the body gets too large, the response is not stored."""
        self.has_ended = last
        if self.freshness is None:
            return
        self._size += len(piece)
        if self._size > self._limit:
            self.give_up()
        else:
            self._pieces.append(bytes(piece))

    def give_up(self) -> None:
        """Drop the body; the response is not stored."""
        self.freshness = None
        self._pieces.clear()

    def body(self) -> bytes:
        """Return the body so far."""
        return b"".join(self._pieces)
