"""From a request to its address: canonical bytes, and their xxh3-128.

Two requests have the same bytes exactly when they are equal as JSON-like values: the order of keys does not matter,
the type of every value does. A list and a tuple are the same array. 0.0 and -0.0 differ. The bytes are the same in
every process and on every machine.
"""

from hashlib import sha256
from typing import Final

from acgsperf._dispatch import canonical, fingerprint

__all__ = ["canonical", "fingerprint", "request_key"]

# The tiers keep a key of this length as it is.
MAX_KEY_BYTES: Final = 200


def request_key(request: object, /) -> str:
    """What a request is kept under in a cache: its canonical bytes as text, or the SHA-256 of many.

    Unlike a fingerprint it is an identity: nobody can find two requests that share one.

    Args:
        request: as for `canonical`.

    Raises:
        TypeError, ValueError: as for `canonical`.
    """
    key = canonical(request)
    return key.decode("latin-1") if len(key) <= MAX_KEY_BYTES else "sha256:" + sha256(key).hexdigest()
