"""The common read of a lower tier in pure Python: the twin of `read_path`."""

from collections.abc import Callable, Collection
from threading import get_ident
from typing import Any, Final, Protocol

__all__ = ["IMPLEMENTATION", "ReadPath", "ReadQueue", "answer"]

IMPLEMENTATION: Final = "python"


class _Hits(Protocol):
    def get(self, key: str, default: int, /) -> int: ...
    def set(self, key: str, value: int) -> None: ...


class _Promotion(Protocol):
    threshold: int
    hits: _Hits


class ReadPath:
    """What happens before and after the `await` of a common read: one that a lower tier answers with a fresh entry.

    If `begin` or `end` finds that a read is not common, it does nothing, and `Lookup` answers the read.

    Args:
        held: collections of the keys that this process holds besides the `LRUCache`. A read of one of them is not
            common.
        start: starts a read of the first tier, and returns a future; None if the read is not common.
        promotion: has `hits`, a cache of the number of hits by key, and `threshold`. The hit that reaches the threshold
            is not common.
        clock: the clock of the entries.
        packed: the type of values that a codec must open. A read of one is not common.
        typed: whether a codec must open every value. Then no answer is common before it has done so.

    Attributes:
        enabled: if it is False, no read is common.
    """

    __slots__ = ("_clock", "_held", "_hits", "_packed", "_promotion", "_start", "_typed", "enabled")

    def __init__(
        self,
        held: "tuple[Collection[str], ...]",
        start: Callable[[str], Any],
        promotion: _Promotion,
        clock: Callable[[], float],
        packed: type | None = None,
        typed: bool = False,
    ) -> None:
        self.enabled = False
        self._held = held
        self._start = start
        self._hits = promotion.hits
        self._promotion = promotion
        self._clock = clock
        self._packed = packed
        self._typed = typed

    def begin(self, key: object, /) -> Any:
        """Start the read of a key, and return its future; None if the read is not common, and nothing was done."""
        if not self.enabled or type(key) is not str:
            return None
        for held in self._held:
            if held and key in held:
                return None
        return self._start(key)

    def end(self, key: str, entry: Any, /) -> bool:
        """Count a hit, and return whether the entry is the answer; if not, nothing was done."""
        return not self._typed and self.end_opened(key, entry)

    def end_opened(self, key: str, entry: Any, /) -> bool:
        """`end` for an entry whose value a codec has opened."""
        if entry is None or entry.negative or type(entry.value) is self._packed:
            return False
        fresh_until = entry.fresh_until
        if fresh_until is not None and self._clock() >= fresh_until:
            return False
        hits = self._hits.get(key, 0) + 1
        if hits >= self._promotion.threshold:
            return False
        self._hits.set(key, hits)
        return True


class ReadQueue:
    """Reads of single keys that wait for the next batch.

    Args:
        new_future: makes the future of a read; gets the event loop as the keyword argument `loop`.
        schedule: called after a read was added while `scheduled` was False.

    Attributes:
        keys: the keys that wait.
        futures: the future of each key.
        scheduled: whether a batch is scheduled; it will take the keys.
    """

    __slots__ = (
        *("_breaker", "_check_use", "_closed", "_loop", "_new_future", "_pending", "_schedule", "_thread"),
        *("futures", "keys", "scheduled"),
    )

    def __init__(self, new_future: Callable[..., Any], schedule: Callable[[], object]) -> None:
        self.keys: list[Any] = []
        self.futures: list[Any] = []
        self.scheduled = False
        self._new_future = new_future
        self._schedule = schedule
        self._check_use: Any = None
        self._breaker: Any = None
        self._closed: object = None
        self._pending: Any = None
        self._loop: object = None
        self._thread = 0

    def guard(
        self, check_use: Callable[[], object], breaker: object, closed: object, pending: Collection[Any], /
    ) -> None:
        """Set when `begin` may add a key.

        Args:
            check_use: raises an error if the queue must not be used in this thread and event loop.
            breaker: its attribute `state` must be `closed`.
            closed: the state of a breaker that allows reads.
            pending: a collection that must not contain the key.
        """
        self._check_use = check_use
        self._breaker = breaker
        self._closed = closed
        self._pending = pending

    def open(self, loop: object, /) -> None:
        """Make futures of this event loop from now on. Call it in the thread of the loop."""
        self._loop = loop
        self._thread = get_ident()

    def begin(self, key: Any, /) -> Any:
        """Add a key and return its future; None if the breaker is not closed, or if the key is pending."""
        # The check gets the running loop, which needs a system call on 3.11, so only the first read of a batch does it.
        # While reads of this loop wait, no other loop can run in this thread.
        if not self.keys or get_ident() != self._thread:
            self._check_use()
        if self._breaker.state is not self._closed or key in self._pending:
            return None
        future = self._new_future(loop=self._loop)
        self._drop_orphan()
        self.keys.append(key)
        self.futures.append(future)
        if not self.scheduled:
            self._schedule()
        return future

    def take(self, most: int, /) -> tuple[list[Any], list[Any]]:
        """Remove the oldest keys, at most `most`. Return them and their futures."""
        self._drop_orphan()
        keys, futures = self.keys, self.futures
        taken = keys[:most], futures[:most]
        # Nothing is changed before all memory is there.
        self.keys, self.futures = keys[most:], futures[most:]
        return taken

    def _drop_orphan(self) -> None:
        """Drop a key whose future could not be added, because there was no memory. Each future must be at the place of
        its key: otherwise it would get the value of another one."""
        if len(self.keys) > len(self.futures):
            self.keys.pop()


def answer(futures: list[Any], found: list[Any], /) -> None:
    """Give each future the value at its position; None if there are fewer values.

    A future that is done, because its caller was cancelled, stays as it is.
    """
    known = len(found)
    for at, future in enumerate(futures):
        if not future.done():
            future.set_result(found[at] if at < known else None)
