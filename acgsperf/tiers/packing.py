"""Packs the values of entries for a tier with a server, and says once for each type why it cannot."""

import logging
from typing import Final
from weakref import WeakKeyDictionary

from acgsperf._native import envelope_format as envelope
from acgsperf._native.entry import UnstorableValueError
from acgsperf.dispatch import changed_type
from acgsperf.tiers.base import Entry

__all__ = ["packed_value"]

_log: Final = logging.getLogger("acgsperf.tiers")

_CHANGES: Final = "would come back as another type: declare a value_type, or make the value JSON-like"
_NO_FORM: Final = "cannot be packed: declare a value_type, or make the value JSON-like"

# The types of refused values, with the namespaces in whose logs they are.
_logged: "Final[WeakKeyDictionary[type, set[str]]]" = WeakKeyDictionary()


def packed_value(entry: Entry, namespace: str) -> tuple[bytes, int] | None:
    """Return the value of an entry as bytes, and their flags in the envelope.

    Returns:
        None if the value would come back as something else. The first value of each type is logged.

    Raises:
        ValueError, OverflowError, RecursionError: for lone surrogates, integers of more than 64 bits, endless nesting.
    """
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
