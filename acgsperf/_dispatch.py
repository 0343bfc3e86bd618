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
    from acgsperf._canonical import canonical, fingerprint, request_key
    from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
    from acgsperf.tiers._envelope import unseal_many
elif os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1":
    from acgsperf._canonical_py import canonical, fingerprint, request_key
    from acgsperf._core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
    from acgsperf.tiers.envelope import unseal_many
else:
    # All or none, so that IMPLEMENTATION is true of all.
    try:
        from acgsperf._canonical import canonical, fingerprint, request_key
        from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
        from acgsperf.tiers._envelope import unseal_many
    except ImportError:
        from acgsperf._canonical_py import canonical, fingerprint, request_key
        from acgsperf._core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
        from acgsperf.tiers.envelope import unseal_many
