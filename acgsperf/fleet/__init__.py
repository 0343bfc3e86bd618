"""The instances of a service, seen together: each leaves a report in a shared server, and reads those of the others.

`RedisStore` and `PostgresStore` have modules of their own, which import their drivers.
"""

from acgsperf.fleet.report import Report
from acgsperf.fleet.servers import store_of
from acgsperf.fleet.store import Found, ReportStore
from acgsperf.fleet.summary import FleetSummary, Instance

__all__ = ["FleetSummary", "Found", "Instance", "Report", "ReportStore", "store_of"]
