"""Picks the compiled core, or its plain-Python twin: without one, or when ACGSPERF_NO_EXTENSIONS=1 asks."""

import os
from typing import TYPE_CHECKING

__all__ = ["IMPLEMENTATION", "HashValidator", "LRUCache", "LatencyHistogram", "Timer"]

if TYPE_CHECKING:
    from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
elif os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1":
    from acgsperf._core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
else:
    try:
        from acgsperf._core import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
    except ImportError:
        from acgsperf._core_py import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
