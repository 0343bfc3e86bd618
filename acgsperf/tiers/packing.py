"""Packs the values of entries for a tier with a server, and says once for each type why it cannot."""

import logging
from typing import Final
from weakref import WeakKeyDictionary

from acgsperf._native import envelope_format as envelope
from acgsperf._native.entry import UnstorableValueError
from acgsperf._native.zstd import MOST_BYTES, compressed
from acgsperf.dispatch import changed_type
from acgsperf.tiers.base import Entry
from acgsperf.tiers.tier_arguments import check_times

__all__ = ["Packing"]

_log: Final = logging.getLogger("acgsperf.tiers")

_CHANGES: Final = "would come back as another type: declare a value_type, or make the value JSON-like"
_NO_FORM: Final = "cannot be packed: declare a value_type, or make the value JSON-like"

# The types of refused values, with the namespaces in whose logs they are.
_logged: "Final[WeakKeyDictionary[type, set[str]]]" = WeakKeyDictionary()


class Packing:
    """Packs the values of the entries of one tier.

    Args:
        limit: the bytes of the largest envelope that the tier stores.
        compress_above: the bytes above which a value is compressed, if that makes it smaller; None for never.
    """

    __slots__ = ("_compress_above", "_limit")

    def __init__(self, limit: int, compress_above: int | None) -> None:
        self._limit = limit
        self._compress_above = compress_above

    def packed(self, key: str, entry: Entry, namespace: str) -> tuple[bytes, int] | None:
        """Return the value of an entry as bytes, and their flags in the envelope; None if it cannot be stored.

        A value that would come back as another type cannot be stored. The first one of each type is logged.
        """
        try:
            check_times(entry)
            found = _packed(entry, namespace)
            if found is None:
                return None
            payload, flags = found
            if self._compress_above is not None and self._compress_above < len(payload) <= MOST_BYTES:
                smaller = compressed(payload)
                if len(smaller) < len(payload):
                    payload, flags = smaller, flags | envelope.COMPRESSED_FLAG
            size = envelope.size(envelope.identity(key), payload, entry.tags)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None
        return (payload, flags) if size <= self._limit else None


def _packed(entry: Entry, namespace: str) -> tuple[bytes, int] | None:
    value, codec = entry.value, entry.codec
    try:
        if codec is not None:
            payload, typed = codec.pack(value)
            return payload, envelope.TYPED_FLAG if typed else 0
        payload = envelope.pack_value(value)
    except UnstorableValueError as error:
        _log_once(error.kind, error.why, namespace)
        return None
    except TypeError:
        _log_once((changed_type(value) if codec is None else None) or type(value), _NO_FORM, namespace)
        return None
    changed = changed_type(value)
    if changed is not None:
        _log_once(changed, _CHANGES, namespace)
        return None
    return payload, 0


def _log_once(kind: type, why: str, namespace: str) -> None:
    namespaces = _logged.setdefault(kind, set())
    if namespace not in namespaces:
        namespaces.add(namespace)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        _log.warning(
            "cache %r: the lower tiers do not store a value with a %s, because it %s; logged once for each type",
            *(namespace, name, why),
        )
