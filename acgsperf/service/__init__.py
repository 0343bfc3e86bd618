"""The performance service: checks requests, answers them from a cache or a handler, and monitors and tunes itself."""

from acgsperf.service.service import Handler, PerformanceService, Request
from acgsperf.service.summary import PerformanceSummary, ServiceHealth

__all__ = ["Handler", "PerformanceService", "PerformanceSummary", "Request", "ServiceHealth"]
