"""Names of parameters. Processes that share the tests need the same names: no addresses, and sets in one order."""

import re

__all__ = ["name_of"]

_ADDRESS = re.compile(" at 0x[0-9a-fA-F]+")


def name_of(value: object) -> str:
    """Return the repr of a parameter, at most 60 characters of it, as every process names it."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} of {', '.join(sorted(map(repr, value)))}"
    return _ADDRESS.sub("", repr(value))[:60]
