"""The parts of RESP2 that run for each read, in pure Python: the twin of `resp`."""

import re
from typing import Final

__all__ = ["IMPLEMENTATION", "has_long_array", "mget"]

IMPLEMENTATION: Final = "python"

_LONG_ARRAY: Final = re.compile(rb"(?:\A|\n)[*~>|]\d{7}")


def mget(addresses: list[bytes], prefix: bytes, last: bytes, longest: int, /) -> bytes | None:
    """Return the packed command that reads a list of Redis keys and one more.

    Args:
        addresses: what follows `prefix` in each key.
        prefix: the common beginning of the keys.
        last: the key that is read last.
        longest: the longest address in bytes that is expected. If one is longer, the result is None.
    """
    if max(map(len, addresses), default=0) > longest:
        return None
    of_prefix = len(prefix)
    parts = [b"$%d\r\n%b%b\r\n" % (of_prefix + len(address), prefix, address) for address in addresses]
    return b"*%d\r\n$4\r\nMGET\r\n%b$%d\r\n%b\r\n" % (len(addresses) + 2, b"".join(parts), len(last), last)


def has_long_array(data: bytes, /) -> bool:
    """Return whether something in data may be the length of an array of a million items or more.

    Data may begin in the middle of a reply. An array may be one of RESP3: a set, a push or an attribute.
    """
    return _LONG_ARRAY.search(data) is not None
