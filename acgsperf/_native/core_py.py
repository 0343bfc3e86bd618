"""The core in pure Python: the fallback where nothing compiles, and the reference that the tests compare with."""

from typing import Final

from acgsperf._native.atomic import finish
from acgsperf._native.histogram_py import LatencyHistogram, Timer
from acgsperf._native.lru_py import LRUCache
from acgsperf._native.validator_py import HashValidator

__all__ = ["IMPLEMENTATION", "HashValidator", "LRUCache", "LatencyHistogram", "Timer"]

IMPLEMENTATION: Final = "python"

# The twin of `_core` is this module, in however many files.
for _class in (HashValidator, LRUCache, LatencyHistogram, Timer):
    finish(_class, __name__)
