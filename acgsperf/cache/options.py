"""The options of an entry: for a cache, for a decorated function, or for one call."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict

from acgsperf.cache.arguments import checked_number, checked_ttl

__all__ = ["DEFAULT_TTL", "EntryKeywords", "EntryOptions", "checked_options", "options_of_cache", "with_ttl"]


class _Inherited:
    """Stands for an option that is not given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."

    def __reduce__(self) -> str:
        # A copy is the same object.
        return "_INHERITED"


_INHERITED: Final[Any] = _Inherited()
# Stands for the ttl of the options when a call passes none: None means that a value does not expire.
DEFAULT_TTL: Final[Any] = _INHERITED


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryOptions:
    """How long a value is fresh, and what callers get when it is not. Times are in seconds.

    A cache, a decorated function and a call can have options. An option that is not given is that of the cache, and if
    the cache has none, the default.

    Attributes:
        ttl: the time for which a value is fresh, 3600 by default; None for no limit.
        jitter: the share of the ttl, less than 1, by which it is shortened at random. 0 by default.
        stale_ttl: the time for which an expired value is kept, in case a load is slow or fails. 0 by default: then a
            call gets no stale value either.
        soft_timeout: the time that a caller waits for a load if there is a stale value. Then it gets the stale value,
            and the load continues in the background. 0 (default) serves the stale value at once
            (stale-while-revalidate). None serves it only if the load fails (stale-if-error).
        hard_timeout: the time that a load may take, None (default) for no limit. That of the call that starts it
            counts.
        negative_ttl: the time for which a loader's None is remembered. With None (default), it is like any value.
        refresh_ahead: the share of the ttl after which a hit of `get_or_load` starts a load in the background. Greater
            than 0 and less than 1; None (default) for never. A `PerformanceService` moves that of its cache.

    Raises:
        TypeError: if an option has the wrong type.
        ValueError: if an option is out of range.
    """

    ttl: float | None = _INHERITED
    jitter: float = _INHERITED
    stale_ttl: float = _INHERITED
    soft_timeout: float | None = _INHERITED
    hard_timeout: float | None = _INHERITED
    negative_ttl: float | None = _INHERITED
    refresh_ahead: float | None = _INHERITED

    def __post_init__(self) -> None:
        given = self._given()
        if "ttl" in given:
            checked_ttl(given["ttl"])
        for name in ("hard_timeout", "negative_ttl"):
            if given.get(name) is not None:
                checked_number(name, given[name], "greater than 0", lambda seconds: seconds > 0)
        for name in ("stale_ttl", "soft_timeout"):
            if name in given and not (given[name] is None and name == "soft_timeout"):
                checked_number(name, given[name], "at least 0", lambda seconds: seconds >= 0)
        if "jitter" in given:
            checked_number("jitter", given["jitter"], "at least 0 and less than 1", lambda share: 0 <= share < 1)
        if given.get("refresh_ahead") is not None:
            share = given["refresh_ahead"]
            checked_number("refresh_ahead", share, "greater than 0 and less than 1", lambda share: 0 < share < 1)

    def __repr__(self) -> str:
        return f"EntryOptions({', '.join(f'{name}={value!r}' for name, value in self._given().items())})"

    def _given(self) -> dict[str, Any]:
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not _INHERITED}

    def over(self, base: "EntryOptions") -> "EntryOptions":
        """Return these options, and those of `base` for what is not given here."""
        return _made(
            (own if (own := getattr(self, name)) is not _INHERITED else getattr(base, name)) for name in _NAMES
        )


class EntryKeywords(TypedDict, total=False):
    """The options of `EntryOptions` as keywords."""

    ttl: float | None
    jitter: float
    stale_ttl: float
    soft_timeout: float | None
    hard_timeout: float | None
    negative_ttl: float | None
    refresh_ahead: float | None


def with_ttl(options: EntryOptions, ttl: float | None) -> EntryOptions:
    """Return options with another ttl."""
    checked_ttl(ttl)
    return _made(ttl if name == "ttl" else getattr(options, name) for name in _NAMES)


def _made(values: Iterable[Any]) -> EntryOptions:
    """Return options with values that have been checked. `replace` would check them again, for each call."""
    options = object.__new__(EntryOptions)
    for name, value in zip(_NAMES, values, strict=True):
        object.__setattr__(options, name, value)
    return options


_NAMES: Final = tuple(one.name for one in fields(EntryOptions))


_DEFAULTS: Final = EntryOptions(
    ttl=3600, jitter=0.0, stale_ttl=0, soft_timeout=0, hard_timeout=None, negative_ttl=None, refresh_ahead=None
)


def checked_options(options: EntryOptions | None, base: EntryOptions = _DEFAULTS) -> EntryOptions:
    """Return options, and those of `base` for what is not given.

    Raises:
        TypeError: if they are not `EntryOptions` or None.
    """
    if options is None:
        return base
    if not isinstance(options, EntryOptions):
        raise TypeError(f"options must be EntryOptions or None, got {type(options).__name__}")
    return options.over(base)


def options_of_cache(options: EntryOptions | None, keywords: EntryKeywords) -> EntryOptions:
    """Return the options of a cache: those given as keywords, then `options`, then the defaults.

    Raises:
        TypeError, ValueError: if an option is unknown or not valid.
    """
    for name in keywords:
        if name not in _NAMES:
            raise TypeError(f"TieredCache() got an unexpected keyword argument {name!r}")
    return EntryOptions(**keywords).over(checked_options(options))
