"""What an `AdaptiveCache` evicts, in pure Python: two queues, a memory of evicted keys, and a choice of settings.

Twin of `policy.pxd`. The queues are those of S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction",
SOSP 2023).
"""

from array import array
from collections import OrderedDict
from collections.abc import Hashable
from sys import getsizeof
from typing import Any, Final

from acgsperf._native.fifo_py import COUNT, LRU, SETTINGS, sampling_rate, share_of
from acgsperf._native.shadows_py import MASK, MULTIPLIER, SECOND_MULTIPLIER, Shadows
from acgsperf._native.sizing_py import Sizing, sizing_rate

MAIN: Final = 0x08
SAMPLED: Final = 0x10
LOGGED: Final = 0x20
LOGS: Final = 0x60
LOG_ROOM: Final = 16
MOST_CREDIT: Final = 512
# Limits the time of one insertion in the compiled twin to some ten microseconds.
MOST_MOVES: Final = 1024
# A change of the size by at most one part in so many is small.
SMALL_CHANGE: Final = 8
# With half as many, so many keys of a loop may have the same bucket that some of them are never remembered.
GHOST_WAYS: Final = 16
# The clock of the ghosts ticks about so often for each cache size of evicted keys.
GHOST_TICKS: Final = 8
GHOST_STAMPS: Final = 16


class Ghost:
    """Remembers evicted keys: 16 bits of the hash, and 4 bits of the time.

    With 11 bits of the hash, a few keys of a loop would be mistaken for others in every round.
    """

    __slots__ = ("buckets", "clock", "every", "stamps", "swept", "tags", "ticks")

    def __init__(self, size: int) -> None:
        self.buckets = int(1.6 * size / GHOST_WAYS) + 1
        self.tags: array[int] | None = None
        self.stamps = bytearray()
        self.every = (size if size >= 8 * GHOST_TICKS else size + GHOST_TICKS - 1) // GHOST_TICKS
        # The next bucket to remove old ghosts from, before their stamps look new again.
        self.swept = 0
        self.clock = 0
        self.ticks = 0

    def first(self, mixed: int) -> int:
        """Return the first place of a key's bucket."""
        return GHOST_WAYS * ((mixed >> 32) * self.buckets >> 32)

    @staticmethod
    def tag(mixed: int) -> int:
        """Return 16 bits of a hash, never 0."""
        return ((mixed & 0xFFFFFFFF) * 0xFFFF >> 32) + 1

    def age(self, place: int) -> int:
        """Return how many ticks ago the key at a place was evicted."""
        return (self.clock - self.stamps[place]) % GHOST_STAMPS

    def expire(self, first: int, tags: "array[int]") -> None:
        """Forget the ghosts of a bucket with the greatest age, whose stamps will look new at the next tick."""
        for place in range(first, first + GHOST_WAYS):
            if self.age(place) == GHOST_STAMPS - 1:
                tags[place] = 0

    def place(self, first: int, tags: "array[int]") -> int:
        """Return an empty place of a bucket, else that of the oldest ghost."""
        return max(range(first, first + GHOST_WAYS), key=lambda place: self.age(place) if tags[place] else GHOST_STAMPS)

    def add(self, mixed: int) -> None:
        """Remember a key."""
        if self.tags is None:
            self.tags = array("H", bytes(2 * GHOST_WAYS * self.buckets))
            self.stamps = bytearray(GHOST_WAYS * self.buckets)
        self.expire(GHOST_WAYS * self.swept, self.tags)
        self.swept = (self.swept + 1) % self.buckets
        chosen = self.place(self.first(mixed), self.tags)
        self.tags[chosen] = self.tag(mixed)
        self.stamps[chosen] = self.clock
        self.ticks += 1
        if self.ticks >= self.every:
            self.ticks = 0
            self.clock = (self.clock + 1) % GHOST_STAMPS

    def take(self, mixed: int, life: int) -> bool:
        """Forget a key; return whether it was remembered and not too old."""
        if self.tags is None:
            return False
        tag = self.tag(mixed)
        first = self.first(mixed)
        for place in range(first, first + GHOST_WAYS):
            if self.tags[place] == tag and self.age(place) < life:
                self.tags[place] = 0
                return True
        return False


class Policy:
    """Orders the entries of a cache, and chooses the entry to evict next.

    An opaque object, the *token*, identifies an entry. The cache reports what happens to an entry with `miss`,
    `insert`, `hit`, `reweigh` and `remove`, and gets the entry to evict from `victim`. Reports about unknown tokens are
    ignored.

    A load is a number of entries, or a weight if the bound of the cache is a weight.
    """

    __slots__ = (
        "adaptive",
        "credit",
        "earlier",
        "epoch",
        "ghost",
        "life",
        "loads",
        "log",
        "main",
        "main_load",
        "meta",
        "room",
        "sampled_up_to",
        "seed",
        "setting",
        "shadows",
        "share",
        "size",
        "sizes",
        "sizing",
        "small",
        "small_load",
        "switches",
        "timed",
        "unmarking",
    )

    def __init__(self, setting: int, adaptive: bool, seed: int, sizes: bool) -> None:
        self.adaptive = adaptive
        # Whether to estimate what other sizes would hit.
        self.sizes = sizes
        self.setting = setting
        self.seed = seed
        self.switches = 0
        # Whether the time of the last change of the setting is known.
        self.timed = False
        # The hash of each entry, oldest first.
        self.small: OrderedDict[Hashable, int] = OrderedDict()
        self.main: OrderedDict[Hashable, int] = OrderedDict()
        self.small_load = 0
        self.main_load = 0
        self.meta: dict[Hashable, int] = {}
        self.loads: dict[Hashable, int] = {}
        self.size = 0
        self.resize(0, 1)

    def resize(self, size: int, room: int, earlier: tuple[int, int] = (0, 0)) -> None:
        """Restart with another number of entries and another load; the setting and the queues stay.

        If the number of entries changes only a little, the policy keeps what it has learned.

        Args:
            size: the number of entries; 0 while it is not known how many fit.
            room: the largest load.
            earlier: the requests and misses of the cache so far.
        """
        if size and self.size and abs(size - self.size) <= self.size // SMALL_CHANGE:
            # Keep what was learned.
            self.room = room
            self.use(self.setting)
            return
        self.size = size
        self.room = room
        # What `sizing` has not counted of the requests and misses of the cache.
        self.earlier = earlier
        self.credit = 0
        # That of the shadows when the hits of all entries could be logged again.
        self.epoch = 0
        self.log: list[int] = []
        self.ghost = Ghost(size) if size else None
        self.shadows: Shadows | None = None
        self.sizing: Sizing | None = None
        # The tokens whose hits may soon be logged again.
        self.unmarking: list[Hashable] = []
        self.sampled_up_to = 0
        if size:
            rate = sizing_rate(size) if self.sizes else sampling_rate(size)
            self.sampled_up_to = int(2**32 / rate)
            if self.adaptive:
                self.shadows = Shadows(max(1, int(size / rate)), self.setting, sampling_rate(size) / rate)
                if self.sizes:
                    self.sizing = Sizing(size, self.shadows)
        self.use(self.setting)
        for queue in (self.main, self.small):
            for token, key_hash in queue.items():
                meta = self.meta[token] & (COUNT | MAIN)
                sampled = self.shadows is not None and self.mix(key_hash) >> 32 <= self.sampled_up_to
                self.meta[token] = meta | SAMPLED if sampled else meta

    def use(self, setting: int) -> None:
        """Continue with a setting."""
        self.setting = setting
        self.share = share_of(self.room, SETTINGS[setting].share)
        life = SETTINGS[setting].ghost * self.size / self.ghost.every if self.ghost else 0
        self.life = int(max(1, min(life, GHOST_STAMPS - 1)))

    def clear(self) -> None:
        """Remove every entry, and keep what was learned."""
        self.small.clear()
        self.main.clear()
        self.meta.clear()
        self.loads.clear()
        self.small_load = self.main_load = 0

    def mix(self, key_hash: int) -> int:
        """Return a hash whose high half decides whether the key is sampled."""
        return (key_hash + self.seed) * MULTIPLIER & MASK

    @staticmethod
    def remix(mixed: int) -> int:
        """Return a hash that does not depend on whether the key is sampled."""
        return (mixed ^ mixed >> 29) * SECOND_MULTIPLIER & MASK

    def hit(self, token: Hashable, key_hash: int) -> None:
        """Count a hit of an entry."""
        meta = self.meta.get(token)
        if meta is None:
            return
        if meta & COUNT < COUNT:
            meta += 1
        if self.setting == LRU:
            if meta & MAIN:
                self.small[token] = self.main.pop(token)
                self.main_load -= self.loads[token]
                self.small_load += self.loads[token]
                meta &= ~MAIN
            else:
                self.small.move_to_end(token)
        self.meta[token] = meta
        if meta & SAMPLED and self.shadows is not None:
            self.log_hit(self.shadows, token, meta, key_hash)
            self.unmark()

    def log_hit(self, shadows: Shadows, token: Hashable, meta: int, key_hash: int) -> None:
        """Log a hit for the shadows, unless enough hits of this entry were logged in this epoch."""
        sizing = self.sizing
        if sizing is not None:
            sizing.count(missed=False)
        if sizing is None or not sizing.logs:
            if self.epoch != shadows.epoch:
                self.epoch = shadows.epoch
                self.meta = {key: byte & ~LOGS for key, byte in self.meta.items()}
                meta &= ~LOGS
            if meta & LOGS == LOGS or not self.credit:
                return
            self.credit -= 1
        elif meta & LOGS == LOGS:
            return
        self.meta[token] = meta + LOGGED
        self.log.append(self.mix(key_hash))
        if len(self.log) == LOG_ROOM:
            self.flush(shadows)

    def unmark(self) -> None:
        """Let the hits of some entries be logged again, which were logged often enough."""
        while self.sizing is not None and self.sizing.due >= 1:
            if not self.unmarking:
                self.unmarking = [*self.meta]
                if not self.unmarking:
                    return
            token = self.unmarking.pop()
            if token in self.meta:
                self.meta[token] &= ~LOGS
            self.sizing.due -= 1

    def recognize(self, shadows: Shadows) -> None:
        """End a scan: a key is used again."""
        for each in (shadows,) if self.sizing is None else self.sizing.shadows:
            each.resume()

    def flush(self, shadows: Shadows) -> None:
        """Let the shadows see the logged hits."""
        self.recognize(shadows)
        log, self.log = self.log, []
        for mixed in log:
            self.sample(shadows, mixed, False)

    def sample(self, shadows: Shadows, mixed: int, missed: bool) -> None:
        """Let the shadows see an access to a sampled key, and continue with the setting that they choose."""
        remixed = self.remix(mixed)
        if shadows.sample(remixed) if self.sizing is None else self.sizing.sample(mixed, remixed, missed):
            self.use(shadows.setting)
            self.switches += 1
            self.timed = False

    def miss(self, key_hash: int) -> int:
        """Let the shadows see a new key; return the initial `meta` byte of its entry."""
        mixed = self.mix(key_hash)
        remixed = self.remix(mixed)
        meta = 0
        shadows = self.shadows
        if shadows is not None:
            self.credit = min(self.credit + 8, MOST_CREDIT)
            if self.log:
                self.flush(shadows)
            if mixed >> 32 <= self.sampled_up_to:
                meta = SAMPLED
                shadows.missed += 1
                self.sample(shadows, mixed, True)
        if self.setting != LRU and self.ghost is not None and self.ghost.take(remixed, self.life):
            meta |= MAIN
            if shadows is not None:
                self.recognize(shadows)
        return meta

    def victim(self) -> Any:
        """Return the token of the entry to evict next; None if there is none."""
        if not self.meta:
            return None
        setting = SETTINGS[self.setting]
        if self.setting == LRU:
            return next(iter(self.main or self.small))
        moves = 0
        while self.small and (self.small_load > self.share or not self.main):
            token = next(iter(self.small))
            if self.meta[token] & COUNT < setting.threshold or moves >= MOST_MOVES:
                return token
            moves += 1
            self.meta[token] &= ~COUNT
            self.promote(token)
        while True:
            token = next(iter(self.main))
            count = self.meta[token] & COUNT
            if not count or moves >= MOST_MOVES:
                return token
            moves += 1
            self.meta[token] = self.meta[token] & ~COUNT | min(count, setting.cap) - 1
            self.main.move_to_end(token)

    def spare(self, token: Hashable) -> None:
        """Make an entry that `victim` has returned the newest of the main queue."""
        if token in self.small:
            self.promote(token)
        elif token in self.main:
            self.main.move_to_end(token)

    def promote(self, token: Hashable) -> None:
        """Move the oldest entry of the small queue to the main queue."""
        self.main[token] = self.small.pop(token)
        self.small_load -= self.loads[token]
        self.main_load += self.loads[token]
        self.meta[token] |= MAIN

    def remove(self, token: Hashable, evicted: bool) -> None:
        """Remove an entry; remember its key if it was evicted to make room."""
        meta = self.meta.pop(token, None)
        if meta is None:
            return
        if meta & MAIN:
            key_hash = self.main.pop(token)
            self.main_load -= self.loads.pop(token)
        else:
            key_hash = self.small.pop(token)
            self.small_load -= self.loads.pop(token)
        remembered = not meta & MAIN or SETTINGS[self.setting].keeps_main
        if evicted and remembered and self.setting != LRU and self.ghost is not None:
            self.ghost.add(self.remix(self.mix(key_hash)))

    def insert(self, token: Hashable, key_hash: int, meta: int, load: int) -> None:
        """Add an entry; `meta` is what `miss` returned."""
        if token in self.meta:
            return
        if self.setting != LRU:
            for _ in range(MOST_MOVES):
                if self.main_load + 1 + self.share >= self.room or self.small_load <= self.share:
                    break
                self.promote(next(iter(self.small)))
        else:
            meta &= ~MAIN
        self.meta[token] = meta
        self.loads[token] = load
        if meta & MAIN:
            self.main[token] = key_hash
            self.main_load += load
        else:
            self.small[token] = key_hash
            self.small_load += load

    def restore(self, token: Hashable, key_hash: int, meta: int, load: int) -> None:
        """Add an entry of a saved cache as the oldest one of its queue; `meta` has the hits and the queue."""
        if token in self.meta:
            return
        meta &= COUNT | MAIN
        if self.shadows is not None and self.mix(key_hash) >> 32 <= self.sampled_up_to:
            meta |= SAMPLED
        self.meta[token] = meta
        self.loads[token] = load
        queue = self.main if meta & MAIN else self.small
        queue[token] = key_hash
        queue.move_to_end(token, last=False)
        if meta & MAIN:
            self.main_load += load
        else:
            self.small_load += load

    def resume(self, setting: int) -> None:
        """Continue with the setting of a saved cache."""
        self.use(setting)
        self.timed = False
        if self.shadows is not None:
            self.shadows.setting = setting

    def saved(self) -> tuple[int, dict[Any, int]]:
        """Return the setting, and the hits and queue of each entry."""
        return self.setting, {token: meta & (COUNT | MAIN) for token, meta in self.meta.items()}

    def reweigh(self, token: Hashable, load: int) -> None:
        """Change the load of an entry."""
        meta = self.meta.get(token)
        if meta is None:
            return
        if meta & MAIN:
            self.main_load += load - self.loads[token]
        else:
            self.small_load += load - self.loads[token]
        self.loads[token] = load

    def order(self) -> list[Hashable]:
        """Return every token: the main queue, then the small one, oldest first."""
        return [*self.main, *self.small]

    def reset_counters(self) -> None:
        """Set the counters of `stats` to zero."""
        self.switches = 0
        self.earlier = (0, 0)
        if self.sizing is not None:
            self.sizing.reset()
        if self.shadows is not None:
            self.shadows.reset_counters()

    def __sizeof__(self) -> int:
        own = object.__sizeof__(self) + sum(map(getsizeof, (self.small, self.main, self.meta, self.loads)))
        if self.ghost is not None and self.ghost.tags is not None:
            own += getsizeof(self.ghost.tags) + getsizeof(self.ghost.stamps)
        return own + sum(getsizeof(part) for part in (self.shadows, self.sizing) if part is not None)
