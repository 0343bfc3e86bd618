"""The shadow caches of an `AdaptiveCache` in pure Python: how often each setting would have missed.

Twin of `shadows.pxd`. This is miniature simulation (Waldspurger et al., "Cache Modeling and Optimization using
Miniature Simulations", USENIX ATC 2017): a cache of 1/R the size that sees 1/R of the keys misses about as often as the
cache.
"""

from array import array
from math import sqrt
from sys import getsizeof
from typing import Final

from acgsperf._native.fifo_py import FIFOS, LRU, RESIDENT, SETTINGS, STAMPS, Fifo, Ring

MASK: Final = 2**64 - 1
MULTIPLIER: Final = 0x9E3779B97F4A7C15
SECOND_MULTIPLIER: Final = 0xD6E8FEB86659FD93
WAYS: Final = 8
# During a scan the shadow caches see about one new key in so many.
SCAN_RATE: Final = 8


class Shadows:
    """Six shadow caches over one directory of sampled keys, and the decision which setting is best.

    A node of the directory is a tag and a byte for each setting. The byte is the queue of the key and its count of
    hits, or the time of its eviction (a ghost), or 0; for the setting "lru" it is the number of references in the ring.
    A key is in one of two buckets of 8 nodes.
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
        "oversampling",
        "patterns",
        "refused",
        "refuses",
        "regrets",
        "regretted",
        "samples",
        "setting",
        "since_decision",
        "size",
        "slow_decay",
        "strangers",
        "tags",
    )

    def __init__(self, size: int, setting: int, oversampling: float = 1.0, *, refuses: bool = True) -> None:
        self.size = size
        self.setting = setting
        # How many times larger the sample is than that of `sampling_rate`, for which the decisions were tuned.
        self.oversampling = oversampling
        self.buckets = max(2, -(-16 * size // 40))
        nodes = WAYS * self.buckets
        self.tags = array("H", bytes(2 * nodes))
        self.fifos = [Fifo(kind, size, nodes) for kind in SETTINGS[:FIFOS]]
        self.lru = bytearray(nodes)
        self.lru_ring = Ring(size + size // 2 + 8)
        self.lru_size = 0
        # Whether to ignore some new keys if there is no room for them.
        self.refuses = refuses
        self.refused = 0
        # How many sampled keys in a row were new; those that were skipped count.
        self.strangers = 0
        self.samples = 0
        # How often the cache itself missed a sampled key, and how often each shadow cache did.
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
        # By setting: how many more hits it would have had than the settings that were chosen, and in how many requests
        # they disagreed.
        self.regrets = array("f", bytes(4 * len(SETTINGS)))
        self.regretted = array("f", bytes(4 * len(SETTINGS)))

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
                self.strangers = 0
                return node
        self.strangers += 1
        node = self.free(places)
        if node >= 0:
            tags[node] = tag
        return node

    def free(self, places: tuple[int, ...]) -> int:
        """Return an unused node of two buckets; if all are used, -1 in three of four cases, else the least used one."""
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
            if self.refuses and self.refused & 3:
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
            self.miss_lru()
        if self.lru_ring.full or self.lru[node] == 255:
            self.compact_lru()
        self.lru_ring.push(node)
        self.lru[node] += 1
        return hit

    def miss_lru(self) -> None:
        """Begin another epoch after every eighth of the size."""
        self.epoch_misses += 1
        if self.epoch_misses >= max(1, self.size // 8):
            self.epoch_misses = 0
            self.epoch += 1

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

    def forget(self) -> None:
        """Remove what a scan evicts: all nodes but those in a main queue."""
        for fifo in self.fifos:
            fifo.forget_all_but_main()
        self.lru = bytearray(len(self.lru))
        self.lru_ring.length = self.lru_size = 0
        for node, tag in enumerate(self.tags):
            if tag and not any(fifo.state[node] for fifo in self.fifos):
                self.tags[node] = 0

    def resume(self) -> None:
        """See every key again, if any are skipped."""
        if self.strangers >= len(self.tags):
            self.forget()
            self.strangers = 0

    def skip(self) -> bool:
        """Return whether to count an access as a miss of every shadow cache, and do nothing else.

        If as many new keys came in a row as the directory has nodes, this is a scan, and its next keys say nothing.
        """
        if self.strangers < len(self.tags):
            return False
        if self.strangers == SCAN_RATE * len(self.tags):
            self.resume()
            return False
        self.strangers += 1
        self.misses = [misses + 1 for misses in self.misses]
        self.miss_lru()
        return True

    def sample(self, mixed: int) -> bool:
        """Let every shadow cache see an access to a sampled key; return whether the setting has changed."""
        if self.skip():
            return False
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
        if best < 0 and not self.regret():
            best = self.better(self.fast_differences, self.fast_disagreements, 4.0, 4.0)
        if best < 0:
            return False
        self.setting = best
        return True

    def decay(self) -> None:
        """Add the requests since the last decision to the figures of each pair, and reduce the weight of older ones."""
        for setting in range(len(SETTINGS)):
            self.regrets[setting] *= self.slow_decay
            self.regretted[setting] *= self.slow_decay
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
                if self.setting in (one, other):
                    setting = other if self.setting == one else one
                    self.regrets[setting] += wins - losses if setting == one else losses - wins
                    self.regretted[setting] += wins + losses
                pair += 1
        self.patterns = [0] * 64

    def needed(self, disagreements: float, sure: float, more: int) -> float:
        """Return how many more hits are significant."""
        return sure * sqrt(disagreements * self.oversampling) + more * self.oversampling

    def better(self, differences: "array[float]", disagreements: "array[float]", sure: float, sure_lru: float) -> int:
        """Return the best of the settings with significantly more hits than the present one, or -1."""
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
                needed = self.needed(disagreements[pair], sure_lru, 8) + 0.03 * self.size
            else:
                needed = self.needed(disagreements[pair], sure, 4)
            if more > needed and more > most:
                best, most = other, more
        return best

    def regret(self) -> bool:
        """Return whether one setting alone would have had significantly more hits than the chosen ones."""
        return any(
            more > self.needed(disagreements, 2.0, 4)
            for more, disagreements in zip(self.regrets, self.regretted, strict=True)
        )

    def reset_counters(self) -> None:
        """Set the counters of `stats` to zero."""
        self.samples = self.missed = 0
        self.misses = [0] * len(SETTINGS)

    def __sizeof__(self) -> int:
        parts = [self.tags, self.lru, self.lru_ring.numbers]
        for fifo in self.fifos:
            parts += [fifo.state, fifo.small.numbers, fifo.main.numbers]
        return object.__sizeof__(self) + sum(map(getsizeof, parts))
