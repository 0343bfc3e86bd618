"""Samples the keys that are read through a cache. It costs nothing while no sample is being taken."""

from collections.abc import Callable
from typing import Any, Final

from acgsperf.cache.tiered import TieredCache

__all__ = ["ReadSample"]

_READERS: Final = ("get_local", "_get_local")


class _Tap:
    """Stands in for a function that looks in L1, as long as a sample is taken of its keys.

    All samples of a function share one tap. If each of them replaced the function, the one that ends first would put
    back what the other one has replaced.

    The calls may come from any thread. If two threads change the samples at the same time, a sample may get no keys.

    Args:
        attributes: the attributes of the object that has the function.
        name: the attribute of the function.
        original: the function.
    """

    def __init__(self, attributes: dict[str, Any], name: str, original: Callable[..., Any]) -> None:
        self._attributes = attributes
        self._name = name
        self._original = original
        self._samples: tuple[ReadSample, ...] = ()

    def __call__(self, key: object, default: Any = None, /) -> Any:
        for sample in self._samples:
            sample.note(key)
        return self._original(key, default)

    @staticmethod
    def of(attributes: dict[str, Any], name: str) -> "_Tap":
        """Return the tap in place of a function, which is put there if necessary."""
        found = attributes[name]
        if isinstance(found, _Tap):
            if found._attributes is attributes and found._name == name:
                return found
            # It was copied from another object while a sample was taken there.
            found = found._original
        tap = attributes[name] = _Tap(attributes, name, found)
        return tap

    def add(self, sample: "ReadSample") -> None:
        """Note the next keys in a sample."""
        self._samples = (*self._samples, sample)

    def discard(self, sample: "ReadSample") -> None:
        """Note no more keys in a sample. The last one puts the function back."""
        self._samples = tuple(other for other in self._samples if other is not sample)
        # Something else may have replaced it meanwhile.
        if not self._samples and self._attributes[self._name] is self:
            self._attributes[self._name] = self._original


class ReadSample:
    """Takes short samples of the keys that callers read through a `TieredCache`.

    While a sample is taken, the functions that look in L1 are replaced in the attributes of the cache by ones that also
    note the key. The last key of a sample puts the originals back. So a hit has no further step without a sample. Any
    number of samples of a cache may be taken at the same time.

    Some callers keep the function instead of looking it up, for example the response cache of the middleware. Their
    reads are not sampled, and neither are those of `get_many`. Reads with a key that is not a `str` are not sampled
    either.

    Args:
        cache: the cache.
        others: other objects that read through an attribute `_get_local`, for example a `PerformanceService`.
    """

    def __init__(self, cache: TieredCache[Any], *others: object) -> None:
        self._readers = [(vars(cache), name) for name in _READERS]
        self._readers += [(vars(other), "_get_local") for other in others if "_get_local" in vars(other)]
        self._taps: list[_Tap] = []
        self._keys: list[str] = []
        self._count = 0

    def take(self, count: int) -> list[str]:
        """Return the keys of the last sample, which may have fewer keys than were asked for, and begin a new one.

        Args:
            count: the number of keys that the new sample gets.
        """
        keys = self.end()
        self._count = count
        for attributes, name in self._readers:
            tap = _Tap.of(attributes, name)
            tap.add(self)
            self._taps.append(tap)
        return keys

    def note(self, key: object) -> None:
        """Add a key to the sample, if it is a str. The functions that look in L1 call it before they check the key."""
        if not isinstance(key, str):
            return
        if len(self._keys) < self._count:
            # Without the methods of a subclass.
            self._keys.append(str.__str__(key))
        else:
            self._leave()

    def end(self) -> list[str]:
        """Return the keys of the last sample, and end it."""
        self._leave()
        keys, self._keys = self._keys, []
        return keys

    def _leave(self) -> None:
        taps, self._taps = self._taps, []
        for tap in taps:
            tap.discard(self)
