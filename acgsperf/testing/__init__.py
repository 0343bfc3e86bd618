"""Parts for the tests of applications: a tier in memory, a clock that the test moves, and servers of one's own."""

from acgsperf.testing.binding import bound
from acgsperf.testing.clock import ManualClock
from acgsperf.testing.embedded import ServerUrls
from acgsperf.testing.memory import MemoryServer, MemoryTier, memory_cache

__all__ = ["ManualClock", "MemoryServer", "MemoryTier", "ServerUrls", "bound", "memory_cache"]
