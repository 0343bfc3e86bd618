"""ASGI middleware: compliance gate, response cache, latencies by route, and a metrics page."""

from acgsperf.asgi.concurrency_limit import ConcurrencyLimit, ConcurrencyLimitStats
from acgsperf.asgi.credentials import DEFAULT_CREDENTIALS
from acgsperf.asgi.middleware import PerformanceMiddleware

__all__ = ["DEFAULT_CREDENTIALS", "ConcurrencyLimit", "ConcurrencyLimitStats", "PerformanceMiddleware"]
