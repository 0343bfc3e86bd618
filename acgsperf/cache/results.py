"""What a loader may return besides a value, and what it gets of the value that it replaces."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Never, TypeVar, cast

from msgspec.structs import replace

from acgsperf import hooks
from acgsperf._native.arguments import checked_bool
from acgsperf.cache.arguments import checked_tags, checked_ttl
from acgsperf.cache.options import DEFAULT_TTL, with_ttl
from acgsperf.cache.source import Source
from acgsperf.cache.staleness import Staleness
from acgsperf.errors import LoadError
from acgsperf.tiers.base import ONLY_L1, Entry

__all__ = ["UNCHANGED", "Loaded", "LoadedEntries", "Loader", "LoaderOfMany", "Previous", "load_entries"]

_V = TypeVar("_V")
_V_co = TypeVar("_V_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[_V_co]):
    """A loader returns it instead of a bare value, to decide how the value is kept.

    Attributes:
        value: the value that callers get.
        ttl: the seconds for which it is fresh, None for no limit; by default, the ttl of the call.
        tags: more tags, besides those of the call. If any tag is invalidated during the load, no lower tier stores the
            value.
        keep: whether the value is stored. If not, it goes to the callers of this load only, and what the cache has of
            the key stays.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if the ttl is not greater than 0, or a tag cannot be encoded as UTF-8.
    """

    value: _V_co
    ttl: float | None = field(default=DEFAULT_TTL, kw_only=True)
    tags: Sequence[str] = field(default=(), kw_only=True)
    keep: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.value, Loaded):
            raise TypeError(f"value must not be a Loaded, got {self.value!r:.100}")
        if self.ttl is not DEFAULT_TTL:
            checked_ttl(self.ttl)
        checked_bool("keep", self.keep)
        object.__setattr__(self, "tags", checked_tags(self.tags))


@dataclass(frozen=True, slots=True)
class Previous(Generic[_V_co]):
    """What a load replaces. A loader with a second parameter gets it, to ask its source only for what has changed.

    Attributes:
        value: the value; do not change it.
        age: the seconds since it was loaded or set.
    """

    value: _V_co
    age: float


class _Unchanged:
    """The type of `UNCHANGED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __reduce__(self) -> str:
        return "UNCHANGED"


# What a load stores, and the keys of it that must not be stored.
LoadedEntries = tuple[dict[str, Entry], set[str]]
Loader = Callable[[str], Awaitable[_V | Loaded[_V]]] | Callable[[str, Previous[_V] | None], Awaitable[_V | Loaded[_V]]]
LoaderOfMany = (
    Callable[[list[str]], Awaitable[Mapping[str, _V | Loaded[_V]]]]
    | Callable[[list[str], Mapping[str, Previous[_V]]], Awaitable[Mapping[str, _V | Loaded[_V]]]]
)

UNCHANGED: Final[Loaded[Never]] = cast("Any", _Unchanged())
"""A loader returns it to keep the previous value, with a new ttl. It counts as a `Loaded` to type checkers."""


def _previous_of(entries: Mapping[str, Entry], staleness: Staleness) -> dict[str, Previous[Any]]:
    """Return what a loader gets of the entries that it replaces."""
    now, clone = staleness.clock(), staleness.clone
    return {
        key: Previous(
            entry.value if clone is None else clone(entry.value, entry.codec), max(now - entry.created_at, 0.0)
        )
        for key, entry in entries.items()
        if not entry.negative
    }


def _entries_of(keys: Sequence[str], results: Mapping[str, Any], source: Source, staleness: Staleness) -> LoadedEntries:
    if not isinstance(results, Mapping):
        raise TypeError(f"loader must return a mapping of keys to values, got {type(results).__name__}")
    entries: dict[str, Entry] = {}
    unkept: set[str] = set()
    for key in keys:
        value = results.get(key)
        options, tags = source.options, source.tags
        if isinstance(value, Loaded):
            if value.ttl is not DEFAULT_TTL:
                options = with_ttl(options, value.ttl)
            tags = _joined(tags, value.tags)
            if not value.keep:
                unkept.add(key)
            value = value.value
        if value is UNCHANGED:
            former = source.replaced.get(key)
            if former is None or former.negative:
                raise LoadError(f"loader returned UNCHANGED for {key!r}, but there is no previous value")
            value, tags = former.value, _joined(tags, former.tags)
        if value is None and options.negative_ttl is not None:
            entry = staleness.negative_entry(options, tags)
        elif key in results:
            entry = staleness.entry(value, options, tags, source.codec)
        else:
            continue
        entries[key] = replace(entry, id=ONLY_L1) if source.local else entry
    return entries, unkept


def load_entries(
    keys: list[str], source: Source, staleness: Staleness, namespace: str, holder: Any
) -> Awaitable[LoadedEntries]:
    """Call the loader, within a span if there are spans. Return an entry for each of its results.

    With a `negative_ttl`, each key without a value gets an entry, too.

    Args:
        keys: what to load.
        source: the loader, how its values are stored, and what they replace.
        staleness: makes the entries.
        namespace: names the cache in the span.
        holder: the load of the span; see `hooks.Spans.during`.

    Returns:
        The entries, and the keys whose entry must not be stored.

    Raises:
        TypeError: if the results are not a mapping.
        LoadError: if a value is unchanged, but there is no previous one.
    """
    loading = _load(keys, source, staleness)
    if hooks.spans is not None:
        return hooks.spans.during("cache.load", hooks.about_cache(namespace, keys), loading, load=holder)
    return loading


async def _load(keys: list[str], source: Source, staleness: Staleness) -> LoadedEntries:
    if source.takes_previous:
        results = await source.loader(keys, _previous_of(source.replaced, staleness))
    else:
        results = await source.loader(keys)
    return _entries_of(keys, results, source, staleness)


def _joined(tags: tuple[str, ...], more: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of a call, and then those that are not among them. Tiers compare the former in order."""
    return (*tags, *dict.fromkeys(tag for tag in more if tag not in tags)) if more else tags
