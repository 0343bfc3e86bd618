"""Makes Python values and choices of bytes, so that a fuzzer that changes bytes reaches all kinds of values."""

import struct
from collections import OrderedDict
from typing import Any, Final


class Source:
    """Bytes that are read from the start; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._data: Final = data
        self._at = 0

    @property
    def ended(self) -> bool:
        """Whether all bytes were read."""
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        """Return all that remains."""
        return self.take(len(self._data))

    def number(self, below: int) -> int:
        """Return a number from 0 on; `below` is at most 65,536."""
        return int.from_bytes(self.take(1 if below <= 256 else 2), "little") % below

    def integer(self) -> int:
        """Return an integer of up to 24 bytes."""
        return int.from_bytes(self.take(self.number(25)), "little", signed=True)

    def double(self) -> float:
        """Return a float of any kind: also infinity, NaN and subnormal ones."""
        return struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0]

    def text(self) -> str:
        """Return a str of any kind: also with lone surrogates and characters of four bytes."""
        size, kind = self.number(32), self.number(4)
        if kind == 0:
            return self.take(size).decode("ascii", "ignore")
        if kind == 1:
            return self.take(size).decode("latin-1")
        if kind == 2:
            return self.take(size).decode("utf-8", "surrogateescape")
        return "".join(chr(int.from_bytes(self.take(3), "little") % 0x110000) for _ in range(size))


class _Text(str):
    __slots__ = ()


class _Number(int):
    pass


class _Fields(dict):  # type: ignore[type-arg]
    pass


_LEAVES: Final[tuple[Any, ...]] = (
    lambda source: None,
    lambda source: source.number(2) == 1,
    Source.integer,
    lambda source: source.number(256) - 128,
    Source.double,
    Source.text,
    lambda source: source.take(source.number(32)),
    lambda source: _Text(source.text()),
    lambda source: _Number(source.integer()),
    # Not JSON-like.
    lambda source: {source.number(3)},
    lambda source: object,
)


def value(source: Source, depth: int = 0) -> Any:
    """Return a value, perhaps nested and perhaps not JSON-like."""
    kind = source.number(16)
    if kind < len(_LEAVES) or source.ended:
        return _LEAVES[kind % len(_LEAVES)](source)
    size = source.number(8)
    if kind == 11:
        return [value(source, depth + 1) for _ in range(size)]
    if kind == 12:
        return tuple(value(source, depth + 1) for _ in range(size))
    if kind == 13:
        # Deeper than the encoders accept, or just not.
        inner: Any = value(source, depth + 1)
        for _ in range(source.number(103) if depth == 0 else size):
            inner = [inner] if size % 2 else {"": inner}
        return inner
    return (_Fields if kind == 14 else OrderedDict if size == 7 else dict)(
        (_key(source), value(source, depth + 1)) for _ in range(size)
    )


def _key(source: Source) -> Any:
    kind = source.number(16)
    key = _LEAVES[kind](source) if kind < 9 else source.text()
    return key if isinstance(key, str | int | float | bytes) or key is None else repr(key)
