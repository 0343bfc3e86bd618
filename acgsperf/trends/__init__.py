"""The hours of a service, kept in PostgreSQL for 90 days, and what became slower since when.

`TrendStore` has a module of its own, `acgsperf.trends.store`, which imports its driver.
"""

from acgsperf.trends.changes import Comparison
from acgsperf.trends.history import History, Hour, InstanceHour
from acgsperf.trends.season import Season, season_of
from acgsperf.trends.summary import Change, Period, Trends, trends_of

__all__ = [
    "Change",
    "Comparison",
    "History",
    "Hour",
    "InstanceHour",
    "Period",
    "Season",
    "Trends",
    "season_of",
    "trends_of",
]
