"""What is usual at an hour of the week: the medians of the weeks before."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final

from acgsperf.trends.changes import DAY, HOUR_S, WEEK
from acgsperf.trends.history import Hour
from acgsperf.trends.summary import LEAST_REQUESTS, PERCENTILES

__all__ = ["Season", "season_of"]

# The least to know what is usual: two values of each hour of the week.
LEAST_HOURS: Final = 14 * DAY
_LEAST_VALUES: Final = 2


class Season:
    """The usual percentiles of each hour of the week.

    Args:
        levels: for "p50", "p95" and "p99", the logarithm of the usual value in ms, by hour of the week. Hours that are
            not known are missing.
    """

    def __init__(self, levels: Mapping[str, Mapping[int, float]]) -> None:
        self._levels = levels

    def usual_ms(self, figure: str, at: float) -> float | None:
        """Return the usual value of a percentile at a time; None if it is not known.

        Between the middles of two hours it changes steadily, so that a new hour makes no step. Beside an hour that is
        not known, for example before the first requests of the day, it is that of the hour itself.

        Args:
            figure: "p50", "p95" or "p99".
            at: in seconds since 1970.
        """
        hours = at / HOUR_S - 0.5
        before = math.floor(hours)
        levels = self._levels[figure]
        earlier, later = levels.get(before % WEEK), levels.get((before + 1) % WEEK)
        own = earlier if hours - before < 0.5 else later
        if own is None:
            return None
        if earlier is None or later is None:
            return math.exp(own)
        return math.exp(earlier + (later - earlier) * (hours - before))


def season_of(hours: Iterable[Hour]) -> Season | None:
    """Return what is usual in each hour of the week; None if the hours span less than two weeks.

    Hours with fewer than 200 requests do not count. An hour of the week needs two values.

    Args:
        hours: in the order of time.
    """
    counted = [hour for hour in hours if hour.requests >= LEAST_REQUESTS and hour.p50_ms > 0]
    if not counted or (counted[-1].start - counted[0].start) // HOUR_S + 1 < LEAST_HOURS:
        return None
    levels = {}
    for figure in PERCENTILES:
        slots: defaultdict[int, list[float]] = defaultdict(list)
        for hour in counted:
            slots[hour.start // HOUR_S % WEEK].append(math.log(getattr(hour, f"{figure}_ms")))
        levels[figure] = {slot: median(values) for slot, values in slots.items() if len(values) >= _LEAST_VALUES}
    return Season(levels)
