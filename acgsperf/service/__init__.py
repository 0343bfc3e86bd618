"""The performance service: requests are checked, answered from the cache or by a handler, measured and tuned."""

from acgsperf.service.service import Handler, PerformanceService, Request
from acgsperf.service.summary import PerformanceSummary, ServiceHealth

__all__ = ["Handler", "PerformanceService", "PerformanceSummary", "Request", "ServiceHealth"]
