"""The part of the HTTP response cache that runs for each hit in L1, in pure Python: the twin of `hits`."""

from collections.abc import Callable, Mapping
from typing import Any, Final, final

__all__ = ["IMPLEMENTATION", "HitFinder"]

IMPLEMENTATION: Final = "python"


@final
class HitFinder:
    """Finds responses that are ready to be sent, for requests without headers that the cache reads.

    Args:
        read: the names of the headers that the cache reads.
        targets: has an object with the key in L1, `uri`, for each raw path, query, host and scheme.
        get_local: returns what L1 has for a key: a list with a response.
        ticks: the clock, in seconds.
        prepare: called with a response that has no answer in its attribute `ready`, or one of another finder, or an
            expired one. Returns the answer; None if the general path must look for one. An answer is a tuple of its
            finder, the time until which it is ready, and what else the caller needs.

    Attributes:
        hits: the number of answers so far.
    """

    __slots__ = ("_get_local", "_prepare", "_read", "_targets", "_ticks", "hits")

    def __init__(
        self,
        read: frozenset[bytes],
        targets: Mapping[tuple[Any, ...], Any],
        get_local: Callable[[str], Any],
        ticks: Callable[[], float],
        prepare: Callable[[Any], tuple[Any, ...] | None],
    ) -> None:
        self.hits = 0
        self._read = read
        self._targets = targets
        self._get_local = get_local
        self._ticks = ticks
        self._prepare = prepare

    def find(self, scope: Mapping[str, Any], /) -> Any:
        """Return the answer to a GET without a body, and count it; None if the general path must look for one."""
        host = None
        for name, value in scope["headers"]:
            if name in self._read:
                if host is not None or name != b"host":
                    return None
                host = value
        try:
            target = self._targets[scope["raw_path"], scope["query_string"], host, scope["scheme"]]
        except (KeyError, TypeError):
            return None
        cell = self._get_local(target.uri)
        if type(cell) is not list or len(cell) != 1:
            return None
        answer = getattr(cell[0], "ready", None)
        if answer is None or answer[0] is not self or self._ticks() >= answer[1]:
            answer = self._prepare(cell[0])
            if answer is None:
                return None
        self.hits += 1
        return answer
