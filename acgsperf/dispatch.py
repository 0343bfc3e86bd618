"""Picks the compiled modules, or their plain-Python twins: without them, or when ACGSPERF_NO_EXTENSIONS=1 asks."""

import os
from typing import TYPE_CHECKING

__all__ = [
    "IMPLEMENTATION",
    "HashValidator",
    "LRUCache",
    "LatencyHistogram",
    "Timer",
    "canonical",
    "fingerprint",
    "request_key",
    "unseal_many",
]

if TYPE_CHECKING:
    from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
    from acgsperf._native.canonical import canonical, fingerprint, request_key
    from acgsperf._native.envelope import unseal_many
elif os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1":
    from acgsperf._native.canonical_py import canonical, fingerprint, request_key
    from acgsperf._native.core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
    from acgsperf._native.envelope_py import unseal_many
else:
    # All or none, so that IMPLEMENTATION is true of all.
    try:
        from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
        from acgsperf._native.canonical import canonical, fingerprint, request_key
        from acgsperf._native.envelope import unseal_many
    except ImportError:
        from acgsperf._native.canonical_py import canonical, fingerprint, request_key
        from acgsperf._native.core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
        from acgsperf._native.envelope_py import unseal_many
