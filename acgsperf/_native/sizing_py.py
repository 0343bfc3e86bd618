"""What an `AdaptiveCache` would hit if it were smaller or larger, in pure Python: the twin of `sizing.pxd`."""

from sys import getsizeof
from typing import Final

from acgsperf._native.fifo_py import LRU, sampling_rate
from acgsperf._native.shadows_py import Shadows
from acgsperf._native.sizing_stats import FACTORS

ONCE: Final = 1
# Up to this many entries, the shadow caches of a size see every key; of a larger size they see about this many. With a
# sample of 512, the estimate for a loop that just fits was wrong by up to 99 points.
LARGEST_SIZING: Final = 2_048
# If hits are much more frequent than misses, they are logged in one of this many phases.
PHASES: Final = 32
# A phase is this many sampled requests for each entry of the shadow caches of half the size. The first part of it does
# not count if no hits were logged before.
PHASE: Final = 16
WARM_UP: Final = 8
# How many logged hits are acceptable for each miss of the cache.
HITS_A_MISS: Final = 4


def sizing_rate(size: int) -> float:
    """Return R if other sizes are estimated: one key in R is sampled."""
    return min(sampling_rate(size), max(1.0, size / LARGEST_SIZING))


class Sizing:
    """The shadow caches of other sizes, and how often they have missed.

    Args:
        size: the size of the cache.
        once: the shadow caches of that size.
    """

    __slots__ = (
        "counted",
        "counts_from",
        "due",
        "is_first",
        "length",
        "logged",
        "logs",
        "missed",
        "rate",
        "recent",
        "remaining",
        "sampled_up_to",
        "shadows",
        "step",
        "tallies",
        "uncounted",
    )

    def __init__(self, size: int, once: Shadows) -> None:
        self.rate = sizing_rate(size)
        self.shadows: list[Shadows] = []
        self.sampled_up_to: list[int] = []
        for scale, factor in enumerate(FACTORS):
            rate = self.rate
            if scale == ONCE:
                self.shadows.append(once)
            else:
                nodes = int(max(1.0, min(factor * size / rate, LARGEST_SIZING)))
                rate = max(rate, factor * size / nodes)
                oversampling = max(1.0, sampling_rate(int(factor * size)) / rate)
                self.shadows.append(Shadows(nodes, once.setting, oversampling, refuses=False))
            self.sampled_up_to.append(int(min(0xFFFFFFFF, 2**32 / rate)))
        self.due = 0.0
        self.step = 8.0 * size / self.shadows[0].size
        self.logs = True
        # When the shadow caches are not full, their misses say nothing about later phases.
        self.is_first = True
        self.length = PHASE * int(max(1.0, size / 2 / self.rate))
        self.remaining = self.counts_from = self.length
        self.missed = self.logged = 0
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero."""
        # For each size the misses of the cache itself, and those of the shadow caches with LRU and the best setting.
        self.tallies = [[0.0, 0.0, 0.0] for _ in FACTORS]
        # The misses of logged hits in the last phase that counts, which are not in `tallies` yet.
        self.recent = [[0, 0] for _ in FACTORS]
        self.counted = self.uncounted = 0

    def tally(self, scale: int) -> tuple[float, float, float]:
        """Return the misses of a size so far."""
        weight = 1.0 + self.uncounted / max(1, self.counted)
        missed, lru, best = self.tallies[scale]
        return missed, lru + weight * self.recent[scale][0], best + weight * self.recent[scale][1]

    def settle(self) -> None:
        """Let the last phase count for itself and for the hits since then that were not counted."""
        self.tallies = [list(self.tally(scale)) for scale in range(len(FACTORS))]
        self.recent = [[0, 0] for _ in FACTORS]
        self.counted = self.uncounted = 0

    def start_phase(self) -> None:
        """Decide whether to log hits in the next phase."""
        self.remaining = self.counts_from = self.length
        if not self.logs:
            self.logs = True
            self.counts_from -= self.length // WARM_UP
        elif self.logged > HITS_A_MISS * self.rate * self.missed and not self.is_first:
            self.logs = False
            self.remaining *= PHASES - 1
        self.is_first = False
        self.missed = self.logged = 0

    def count(self, *, missed: bool) -> None:
        """Count a request for a sampled key."""
        if not self.remaining:
            self.start_phase()
        if self.logs and self.remaining == self.counts_from:
            self.settle()
        self.remaining -= 1
        if self.logs and self.remaining < self.counts_from:
            self.counted += not missed
        else:
            self.uncounted += not missed

    def sample(self, mixed: int, remixed: int, missed: bool) -> bool:
        """Let the shadow caches see a miss or a logged hit.

        Returns:
            Whether those of the present size have changed the setting.
        """
        if missed:
            self.missed += 1
            if not self.logs and self.missed > self.length // WARM_UP:
                # Misses are frequent again.
                self.remaining = 0
            self.count(missed=True)
        else:
            self.logged += 1
        counts = self.logs and self.remaining < self.counts_from
        has_changed = False
        for scale, shadows in enumerate(self.shadows):
            if mixed >> 32 > self.sampled_up_to[scale]:
                continue
            setting = shadows.setting
            lru, chosen = shadows.misses[LRU], shadows.misses[setting]
            changed = shadows.sample(remixed)
            lru, chosen = shadows.misses[LRU] - lru, shadows.misses[setting] - chosen
            if scale == ONCE:
                has_changed = changed
            elif scale == 0 and lru:
                # After an eighth of its entries were replaced, all entries may be logged again.
                self.due += self.step
            if missed:
                tally = self.tallies[scale]
                tally[0] += 1
                tally[1] += lru
                tally[2] += chosen
            elif counts:
                self.recent[scale][0] += lru
                self.recent[scale][1] += chosen
        return has_changed

    def __sizeof__(self) -> int:
        others = (shadows for scale, shadows in enumerate(self.shadows) if scale != ONCE)
        return object.__sizeof__(self) + sum(map(getsizeof, others))
