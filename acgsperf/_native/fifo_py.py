"""The settings of an `AdaptiveCache`, and the shadow cache of a setting with queues, in pure Python.

The queues are those of S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023). The twin is
`shadows.pxd`. A *ghost* is an evicted key that a shadow cache remembers.
"""

from array import array
from typing import Final, NamedTuple


class Setting(NamedTuple):
    """How the queues work.

    Attributes:
        share: the largest share of the cache that the small queue takes.
        threshold: how many hits an entry of the small queue needs to move to the main queue.
        ghost: how long a removed key is remembered, in cache sizes of removals.
        cap: how many hits count at the end of the main queue.
        keeps_main: whether keys that the main queue evicts are remembered, too.
    """

    share: float
    threshold: int
    ghost: float
    cap: int
    keeps_main: bool = False


# In the order of `SETTING_NAMES`.
SETTINGS: Final = (
    Setting(0.01, 2, 0.5, 7),
    Setting(0.01, 2, 2.0, 3),
    Setting(0.15, 1, 0.9, 3),
    Setting(0.10, 2, 0.9, 3),
    Setting(0.15, 2, 2.0, 7, True),
    Setting(1.0, 0, 0.0, 0),
)
FIFOS: Final = 5
LRU: Final = 5

RESIDENT: Final = 0x80
IN_MAIN: Final = 0x40
COUNT: Final = 7
STAMPS: Final = 127
# The clock ticks so often for each cache size of evicted keys, or a little less often.
TICKS: Final = 32


def share_of(size: int, share: float) -> int:
    """Return how many entries of a cache the small queue may have."""
    return max(1, int(size * share))


def sampling_rate(size: int) -> float:
    """Return R: one key in R is sampled."""
    if size <= 128:
        return 1.0
    if size < 500:
        return 1.5
    if size < 2_048:
        return 2.4
    rate = 4.0 if size < 4_096 else 8.0 if size < 16_384 else 16.0
    while size / rate > 19_000:
        rate *= 2
    return rate


class Ring:
    """A bounded queue of node numbers."""

    __slots__ = ("first", "length", "numbers")

    def __init__(self, room: int) -> None:
        self.numbers = array("H", bytes(2 * room))
        self.first = 0
        self.length = 0

    def push(self, number: int) -> None:
        """Append a number; there must be room."""
        self.numbers[(self.first + self.length) % len(self.numbers)] = number
        self.length += 1

    def pop(self) -> int:
        """Remove the oldest number; there must be one."""
        number = self.numbers[self.first]
        self.first = (self.first + 1) % len(self.numbers)
        self.length -= 1
        return number

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return self.length == len(self.numbers)


class Fifo:
    """The shadow cache of one setting with queues."""

    __slots__ = (
        "cap",
        "clock",
        "every",
        "keeps_main",
        "life",
        "main",
        "main_size",
        "share",
        "small",
        "small_size",
        "state",
        "threshold",
        "ticks",
    )

    def __init__(self, setting: Setting, size: int, nodes: int) -> None:
        self.state = bytearray(nodes)
        self.share = share_of(size, setting.share)
        self.threshold = setting.threshold
        self.cap = setting.cap
        self.keeps_main = setting.keeps_main
        self.every = -(-size // TICKS)
        self.life = max(1, int(setting.ghost * size / self.every))
        self.clock = 1
        self.ticks = 0
        self.small = Ring(self.share + 4)
        self.main = Ring(size + 4)
        self.small_size = 0
        self.main_size = 0

    def remaining(self, node: int) -> int:
        """Return how many ticks the ghost of a node has left; 0 or less if it has expired or there is none."""
        stamp = self.state[node]
        return self.life - (self.clock - stamp) % STAMPS if stamp else 0

    def remember(self, node: int) -> None:
        """Turn a node into a ghost."""
        self.state[node] = self.clock
        self.ticks += 1
        if self.ticks >= self.every:
            self.ticks = 0
            self.clock = self.clock % STAMPS + 1

    def push_small(self, node: int) -> None:
        """Append a node to the small queue."""
        if self.small.full:
            self.squeeze(self.small, 0)
        self.state[node] = RESIDENT
        self.small.push(node)
        self.small_size += 1

    def push_main(self, node: int, count: int) -> None:
        """Append a node to the main queue."""
        if self.main.full:
            self.squeeze(self.main, IN_MAIN)
        self.state[node] = RESIDENT | IN_MAIN | count
        self.main.push(node)
        self.main_size += 1

    def squeeze(self, ring: Ring, queue: int) -> None:
        """Make room in a ring: drop the numbers that are no longer in this queue, else the oldest one."""
        for _ in range(ring.length):
            node = ring.pop()
            if self.state[node] & (RESIDENT | IN_MAIN) == RESIDENT | queue:
                ring.push(node)
        if ring.full:
            self.forget(ring.pop())

    def forget(self, node: int) -> None:
        """Remove a node from its queue; its number stays in the ring until it is popped."""
        if self.state[node] & RESIDENT:
            if self.state[node] & IN_MAIN:
                self.main_size -= 1
            else:
                self.small_size -= 1
        self.state[node] = 0

    def forget_all_but_main(self) -> None:
        """Empty the small queue, and forget the ghosts."""
        in_main = RESIDENT | IN_MAIN
        self.state = bytearray(state if state & in_main == in_main else 0 for state in self.state)
        self.small.length = self.small_size = 0

    def pop_small(self) -> int:
        """Remove the oldest node of the small queue; -1 if there is none."""
        while self.small.length:
            node = self.small.pop()
            if self.state[node] & (RESIDENT | IN_MAIN) == RESIDENT:
                self.small_size -= 1
                return node
        self.small_size = 0
        return -1

    def pop_main(self) -> int:
        """Remove the oldest node of the main queue; -1 if there is none."""
        while self.main.length:
            node = self.main.pop()
            if self.state[node] & (RESIDENT | IN_MAIN) == RESIDENT | IN_MAIN:
                self.main_size -= 1
                return node
        self.main_size = 0
        return -1

    def evict(self) -> None:
        """Remove one node."""
        while self.small_size and (self.small_size > self.share or not self.main_size):
            node = self.pop_small()
            if node < 0:
                break
            if self.state[node] & COUNT < self.threshold:
                self.remember(node)
                return
            self.push_main(node, 0)
        while True:
            node = self.pop_main()
            if node < 0:
                return
            count = self.state[node] & COUNT
            if not count:
                break
            self.push_main(node, min(count, self.cap) - 1)
        if self.keeps_main:
            self.remember(node)
        else:
            self.state[node] = 0

    def access(self, node: int, size: int) -> bool:
        """Use a node; return whether it was a hit."""
        state = self.state[node]
        if state & RESIDENT:
            if state & COUNT < COUNT:
                self.state[node] = state + 1
            return True
        known = self.remaining(node) > 0
        self.state[node] = 0
        if self.small_size + self.main_size >= size:
            self.evict()
        while self.main_size + 1 < size - self.share and self.small_size > self.share:
            oldest = self.pop_small()
            if oldest < 0:
                break
            self.push_main(oldest, self.state[oldest] & COUNT)
        if known:
            self.push_main(node, 0)
        else:
            self.push_small(node)
        return False
