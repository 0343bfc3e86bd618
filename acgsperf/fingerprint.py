"""Fingerprints of requests: canonical bytes, and the xxh3-128 of them.

Two requests have the same bytes if and only if they are equal as JSON-like values. The order of keys does not matter;
the type of every value does. A list and a tuple are the same array. 0.0 and -0.0 differ. The bytes are the same in
every process and on every machine.
"""

from acgsperf.dispatch import canonical, fingerprint, request_key

__all__ = ["canonical", "fingerprint", "request_key"]
