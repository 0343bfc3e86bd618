"""Samples the keys that are read through a cache. It costs nothing while no sample is being taken."""

from collections.abc import Callable
from typing import Any, Final

from acgsperf.cache.tiered import TieredCache

__all__ = ["ReadSample"]

_READERS: Final = ("get_local", "_get_local")


class ReadSample:
    """Takes short samples of the keys that callers read through a `TieredCache`.

    While a sample is taken, the functions that look in L1 are replaced in the attributes of the cache by ones that also
    note the key. The last key of a sample puts the originals back. So a hit has no further step without a sample.

    Some callers keep the function instead of looking it up, for example the response cache of the middleware. Their
    reads are not sampled, and neither are those of `get_many`.

    Args:
        cache: the cache.
        others: other objects that read through an attribute `_get_local`, for example a `PerformanceService`.
    """

    def __init__(self, cache: TieredCache[Any], *others: object) -> None:
        self._readers = [(vars(cache), name) for name in _READERS]
        self._readers += [(vars(other), "_get_local") for other in others if "_get_local" in vars(other)]
        self._replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._keys: list[str] = []

    def take(self, count: int) -> list[str]:
        """Return the keys of the last sample, which may have fewer keys than were asked for, and begin a new one.

        Args:
            count: the number of keys that the new sample gets.
        """
        keys = self.end()
        for attributes, name in self._readers:
            original = attributes[name]
            noting = self._noting(original, count)
            self._replaced.append((attributes, name, original, noting))
            attributes[name] = noting
        return keys

    def end(self) -> list[str]:
        """Return the keys of the last sample, and end it."""
        self._restore()
        keys, self._keys = self._keys, []
        return keys

    def _noting(self, original: Callable[..., Any], count: int) -> Callable[..., Any]:
        keys = self._keys

        def get_local(key: str, default: Any = None, /) -> Any:
            if len(keys) < count:
                keys.append(key)
            else:
                self._restore()
            return original(key, default)

        return get_local

    def _restore(self) -> None:
        replaced, self._replaced = self._replaced, []
        for attributes, name, original, noting in replaced:
            # Something else may have replaced it meanwhile.
            if attributes[name] is noting:
                attributes[name] = original
