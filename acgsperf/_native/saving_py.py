"""How a cache saves its entries and loads them again, in pure Python."""

import math
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from acgsperf._native.arguments import HEAVIEST_SHARE, checked_weight
from acgsperf._native.lru_table_py import Entry, Token
from acgsperf._native.placing_py import Placing

if TYPE_CHECKING:
    from os import PathLike

    from acgsperf._native.stats import LoadResult, SaveResult

# Later than any expiry: a clock is within 4e9 s of zero and a ttl below 2**62 ns.
NEVER: Final = 2**63 - 1


class Saving(Placing):
    """The part of `BoundedCache` that saves and loads; and its clock."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def maxsize(self) -> int:
            """The largest number of entries."""

        def __len__(self) -> int: ...

    def _now_ns(self) -> int:
        if self._clock is None:
            return time.monotonic_ns()
        # Accepts what C accepts as a number, and no text.
        now = math.fsum((self._clock(),))
        if not -4e9 < now < 4e9:
            raise ValueError(f"clock must return seconds within 4e9 of zero, got {now!r}")
        return round(now * 1e9)

    def _expiry(self, ttl_ns: int | None, now_ns: int) -> int:
        return NEVER if ttl_ns is None else now_ns + ttl_ns

    def _weigh(self, key: Hashable, value: Any) -> int:
        return 1 if self._weigher is None else checked_weight(self._weigher(key, value))

    def save(self, path: "str | PathLike[str]", *, namespace: str = "", value_type: Any = None) -> "SaveResult":
        """Save the entries to a file, for `load` in another process. It replaces the file in one step."""
        from acgsperf._native import snapshot

        return snapshot.save(self, path, namespace, value_type)

    def load(self, path: "str | PathLike[str]", *, namespace: str = "", value_type: Any = None) -> "LoadResult":
        """Add the entries of a file that `save` has written."""
        from acgsperf._native import snapshot

        return snapshot.load(self, path, namespace, value_type)

    def _kind(self) -> str:
        """Return the kind of cache that a file must be of."""
        return type(self).__name__

    def _dump(self) -> tuple[int | None, list[Any], list[Any], list[int | None], list[int]]:
        """Return the setting, and the keys, values, remaining ns and meta of the fresh entries, in their order."""
        now_ns = self._now_ns()
        entries = [entry for entry in self._entries() if now_ns < entry.expires_ns]
        setting, metas = self._policy_state()
        return (
            setting,
            [entry.key for entry in entries],
            [entry.value for entry in entries],
            [None if entry.expires_ns == NEVER else entry.expires_ns - now_ns for entry in entries],
            [metas.get(entry.token, 0) for entry in entries],
        )

    def _restore(self, key: Hashable, value: Any, ttl_ns: int | None, meta: int, /) -> bool:
        """Add a saved entry as the oldest one of its queue; False if the key is there, or if the entry does not fit."""
        key_hash = hash(key)
        new = Entry(key, key_hash, value, 0, self._weigh(key, value))
        new.expires_ns = self._expiry(ttl_ns, self._now_ns())
        if self._managed:
            new.token = Token()
        while True:
            bucket, found = self._table.find(key, key_hash)
            maxweight = self._table.maxweight
            if found is not None or (maxweight and new.weight > maxweight // HEAVIEST_SHARE):
                return False
            version = self._table.version
            room = self._table.has_room(new.weight)
            if self._table.bucket(key_hash) is not bucket:
                continue
            if not room:
                return False
            if self._table.add_oldest(version, new, (*bucket, new)):
                self._restored(new, meta)
                return True

    def _resume(self, setting: int, /) -> None:
        """Continue with the setting of a saved cache."""
