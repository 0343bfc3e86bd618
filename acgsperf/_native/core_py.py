"""The core in pure Python: the fallback where nothing compiles, and the reference that the tests compare with."""

from typing import Final

from acgsperf._native.adaptive_py import AdaptiveCache
from acgsperf._native.atomic import finish
from acgsperf._native.bounded_py import BoundedCache
from acgsperf._native.histogram_py import LatencyHistogram, Timer
from acgsperf._native.lru_py import LRUCache
from acgsperf._native.method_guard_py import MethodGuard
from acgsperf._native.placing_py import Placing
from acgsperf._native.recording_py import RecordingCache
from acgsperf._native.requests_py import RequestCounters
from acgsperf._native.saving_py import Saving
from acgsperf._native.validator_py import HashValidator

__all__ = [
    "IMPLEMENTATION",
    "AdaptiveCache",
    "BoundedCache",
    "HashValidator",
    "LRUCache",
    "LatencyHistogram",
    "MethodGuard",
    "RecordingCache",
    "RequestCounters",
    "Timer",
]

IMPLEMENTATION: Final = "python"

# The twin of `_core` is this module, in however many files.
_CACHES: Final = (Placing, Saving, BoundedCache, LRUCache, RecordingCache, AdaptiveCache)
for _class in (HashValidator, *_CACHES, LatencyHistogram, Timer, RequestCounters, MethodGuard):
    finish(_class, __name__)
