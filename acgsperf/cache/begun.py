"""Numbers the writes of this process, so that an earlier write cannot replace a later one."""

from collections.abc import Iterable
from typing import Final

__all__ = ["ALL", "Begun", "key_name", "tag_name"]

ALL: Final = ""


class Begun:
    """Numbers the writes of keys, of tags and of the whole namespace, so that a later write supersedes an earlier one.

    A write goes to L3 first and then to L2. If two writes of a key are in flight, the earlier one may be the last to
    reach a tier. A tier that compares stamps keeps the later one. Other tiers do not get the earlier one.
    """

    def __init__(self) -> None:
        self._count = 0
        # The number of the last write of a name, and how many are in flight.
        self._last: dict[str, tuple[int, int]] = {}

    def begin(self, names: Iterable[str], watched: Iterable[str] = ()) -> int:
        """Record that a write begins, and return its number.

        Args:
            names: what it writes, from `key_name`, `tag_name` and `ALL`.
            watched: other names, whose later writes are remembered until this one ends.
        """
        self._count += 1
        for name in watched:
            last, in_flight = self._last.get(name, (0, 0))
            self._last[name] = last, in_flight + 1
        for name in names:
            in_flight = self._last.get(name, (0, 0))[1]
            self._last[name] = self._count, in_flight + 1
        return self._count

    def end(self, names: Iterable[str]) -> None:
        """Record that a write has ended."""
        for name in names:
            last, in_flight = self._last[name]
            if in_flight == 1:
                del self._last[name]
            else:
                self._last[name] = last, in_flight - 1

    def is_latest(self, number: int, names: Iterable[str]) -> bool:
        """Return whether the write with this number is the latest one of these names that is in flight."""
        last = self._last
        return all(name not in last or last[name][0] <= number for name in names)


def key_name(key: str) -> str:
    """Return the name for the writes of a key."""
    return "k" + key


def tag_name(tag: str) -> str:
    """Return the name for the invalidations of a tag."""
    return "t" + tag
