"""The shadow caches of an `AdaptiveCache` in pure Python: how often each setting would have missed.

Twin of `shadows.pxd`. This is miniature simulation (Waldspurger et al., "Cache Modeling and Optimization using
Miniature Simulations", USENIX ATC 2017): a cache of 1/R the size that sees 1/R of the keys misses about as often as the
cache.
"""

from array import array
from math import sqrt
from sys import getsizeof
from typing import Final, NamedTuple

MASK: Final = 2**64 - 1
MULTIPLIER: Final = 0x9E3779B97F4A7C15
SECOND_MULTIPLIER: Final = 0xD6E8FEB86659FD93


class Setting(NamedTuple):
    """How the queues are run.

    Attributes:
        name: as `stats` reports it.
        share: the part of the cache that the small queue may take.
        threshold: how many hits bring an entry of the small queue to the main queue.
        ghost: how long a removed key is remembered, in cache sizes of removals.
        cap: how many hits count at the end of the main queue.
        keeps_main: whether what the main queue evicts is remembered, too.
    """

    name: str
    share: float
    threshold: int
    ghost: float
    cap: int
    keeps_main: bool = False


SETTINGS: Final = (
    Setting("scan", 0.01, 2, 0.5, 7),
    Setting("frequency", 0.01, 2, 2.0, 3),
    Setting("recency", 0.15, 1, 0.9, 3),
    Setting("s3fifo", 0.10, 2, 0.9, 3),
    Setting("history", 0.15, 2, 2.0, 7, True),
    Setting("lru", 1.0, 0, 0.0, 0),
)
FIFOS: Final = 5
LRU: Final = 5

RESIDENT: Final = 0x80
IN_MAIN: Final = 0x40
COUNT: Final = 7
STAMPS: Final = 127
WAYS: Final = 8


def share_of(size: int, share: float) -> int:
    """Return how many entries of a cache the small queue may have."""
    return max(1, int(size * share))


def sampling_rate(size: int) -> float:
    """Return R: one key in R is sampled."""
    if size <= 128:
        return 1.0
    if size < 500:
        return 2.0
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
        self.life = int(32 * setting.ghost + 0.5)
        self.every = max(1, size // 32)
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


class Shadows:
    """Six shadow caches over one directory of sampled keys, and the decision which setting is best.

    A node of the directory is a tag and a byte for each setting: in a queue with a count of hits, or forgotten at a
    time, or nothing. A key is in one of two buckets of 8 nodes.
    """

    __slots__ = (
        "buckets",
        "differences",
        "disagreements",
        "epoch",
        "epoch_misses",
        "every",
        "fast_decay",
        "fast_differences",
        "fast_disagreements",
        "fifos",
        "lru",
        "lru_ring",
        "lru_size",
        "missed",
        "misses",
        "patterns",
        "refused",
        "samples",
        "setting",
        "since_decision",
        "size",
        "slow_decay",
        "tags",
    )

    def __init__(self, size: int, setting: int) -> None:
        self.size = size
        self.setting = setting
        self.buckets = max(2, -(-16 * size // 40))
        nodes = WAYS * self.buckets
        self.tags = array("H", bytes(2 * nodes))
        self.fifos = [Fifo(kind, size, nodes) for kind in SETTINGS[:FIFOS]]
        self.lru = bytearray(nodes)
        self.lru_ring = Ring(2 * size + 8)
        self.lru_size = 0
        self.refused = 0
        self.samples = 0
        # How many sampled keys the cache itself missed, and each shadow cache.
        self.missed = 0
        self.misses = [0] * len(SETTINGS)
        self.epoch = 0
        self.epoch_misses = 0
        self.every = max(8, size // 4)
        self.since_decision = 0
        self.patterns = [0] * 64
        self.slow_decay = 0.5 ** (self.every / (64.0 * size))
        self.fast_decay = 0.5 ** (self.every / (4.0 * size))
        pairs = len(SETTINGS) * (len(SETTINGS) - 1) // 2
        self.differences = array("f", bytes(4 * pairs))
        self.disagreements = array("f", bytes(4 * pairs))
        self.fast_differences = array("f", bytes(4 * pairs))
        self.fast_disagreements = array("f", bytes(4 * pairs))

    def resident(self, node: int) -> int:
        """Return in how many shadow caches a node is."""
        return sum(fifo.state[node] >= RESIDENT for fifo in self.fifos) + (self.lru[node] > 0)

    def find(self, mixed: int) -> int:
        """Return the node of a key, a new one if needed; -1 if the access is to be ignored."""
        tag = mixed & 0xFFFF or 1
        other = (mixed ^ mixed >> 31) * MULTIPLIER & MASK
        first = WAYS * ((other >> 32) * self.buckets >> 32)
        second = WAYS * ((other & 0xFFFFFFFF) * self.buckets >> 32)
        places: tuple[int, ...] = (*range(first, first + WAYS), *range(second, second + WAYS))
        tags = self.tags
        for node in places:
            if tags[node] == tag:
                return node
        node = self.free(places)
        if node >= 0:
            tags[node] = tag
        return node

    def free(self, places: tuple[int, ...]) -> int:
        """Return an unused node of two buckets; one that is used least if all are used, or -1."""
        found = self.empty(places)
        if found >= 0:
            return found
        best, least = -1, STAMPS + 1
        for node in places:
            if self.resident(node):
                continue
            remaining = max(0, *(fifo.remaining(node) for fifo in self.fifos))
            if remaining < least:
                best, least = node, remaining
                if not remaining:
                    break
        if best < 0:
            self.refused += 1
            if self.refused & 3:
                return -1
            best = min(places, key=self.resident)
        for fifo in self.fifos:
            fifo.forget(best)
        if self.lru[best]:
            self.lru[best] = 0
            self.lru_size -= 1
        return best

    def empty(self, places: tuple[int, ...]) -> int:
        """Return an empty node in the bucket that has more of them, or -1."""
        tags = self.tags
        firsts = sum(not tags[node] for node in places[:WAYS])
        seconds = sum(not tags[node] for node in places[WAYS:])
        if not firsts and not seconds:
            return -1
        return next(node for node in (places[:WAYS] if firsts >= seconds else places[WAYS:]) if not tags[node])

    def use_lru(self, node: int) -> bool:
        """Use a node of the LRU shadow; return whether it was a hit."""
        hit = self.lru[node] > 0
        if not hit:
            if self.lru_size >= self.size:
                self.evict_lru()
            self.lru_size += 1
            self.epoch_misses += 1
            if self.epoch_misses >= max(1, self.size // 8):
                self.epoch_misses = 0
                self.epoch ^= 1
        if self.lru_ring.full or self.lru[node] == 255:
            self.compact_lru()
        self.lru_ring.push(node)
        self.lru[node] += 1
        return hit

    def evict_lru(self) -> None:
        """Remove the least recently used node of the LRU shadow."""
        while self.lru_ring.length:
            node = self.lru_ring.pop()
            if self.lru[node]:
                self.lru[node] -= 1
                if not self.lru[node]:
                    self.lru_size -= 1
                    return
        self.lru_size = 0

    def compact_lru(self) -> None:
        """Keep the last reference to each node."""
        for _ in range(self.lru_ring.length):
            node = self.lru_ring.pop()
            if self.lru[node] == 1:
                self.lru_ring.push(node)
            elif self.lru[node]:
                self.lru[node] -= 1

    def sample(self, mixed: int) -> bool:
        """Let every shadow cache see an access to a sampled key; return whether the setting has changed."""
        node = self.find(mixed)
        if node < 0:
            return False
        hits = 0
        for bit, fifo in enumerate(self.fifos):
            if fifo.access(node, self.size):
                hits |= 1 << bit
            else:
                self.misses[bit] += 1
        if self.use_lru(node):
            hits |= 1 << LRU
        else:
            self.misses[LRU] += 1
        self.patterns[hits] += 1
        self.samples += 1
        self.since_decision += 1
        if self.since_decision < self.every:
            return False
        self.since_decision = 0
        return self.decide()

    def decide(self) -> bool:
        """Change to a setting that is significantly better; return whether one was."""
        self.decay()
        best = self.better(self.differences, self.disagreements, 2.0, 2.5)
        if best < 0:
            best = self.better(self.fast_differences, self.fast_disagreements, 4.0, 4.0)
        if best < 0:
            return False
        self.setting = best
        return True

    def decay(self) -> None:
        """Add what was seen since the last decision, pair by pair, and let what is older count less."""
        pair = 0
        for one in range(1, len(SETTINGS)):
            for other in range(one):
                wins = losses = 0
                for hits, times in enumerate(self.patterns):
                    if times and (hits >> one ^ hits >> other) & 1:
                        if hits >> one & 1:
                            wins += times
                        else:
                            losses += times
                self.differences[pair] = self.differences[pair] * self.slow_decay + (wins - losses)
                self.disagreements[pair] = self.disagreements[pair] * self.slow_decay + (wins + losses)
                self.fast_differences[pair] = self.fast_differences[pair] * self.fast_decay + (wins - losses)
                self.fast_disagreements[pair] = self.fast_disagreements[pair] * self.fast_decay + (wins + losses)
                pair += 1
        self.patterns = [0] * 64

    def better(self, differences: "array[float]", disagreements: "array[float]", sure: float, sure_lru: float) -> int:
        """Return the setting that has most hits more than the present one, beyond doubt; or -1."""
        best = -1
        most = 0.0
        now = self.setting
        for other in range(len(SETTINGS)):
            if other == now:
                continue
            high, low = max(now, other), min(now, other)
            pair = high * (high - 1) // 2 + low
            more = differences[pair] if other == high else -differences[pair]
            if other == LRU:
                needed = sure_lru * sqrt(disagreements[pair]) + 8 + 0.03 * self.size
            else:
                needed = sure * sqrt(disagreements[pair]) + 4
            if more > needed and more > most:
                best, most = other, more
        return best

    def reset_counters(self) -> None:
        """Forget what was counted for `stats`."""
        self.samples = self.missed = 0
        self.misses = [0] * len(SETTINGS)

    def __sizeof__(self) -> int:
        parts = [self.tags, self.lru, self.lru_ring.numbers]
        for fifo in self.fifos:
            parts += [fifo.state, fifo.small.numbers, fifo.main.numbers]
        return object.__sizeof__(self) + sum(map(getsizeof, parts))
