"""`AdaptiveCache` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from sys import getsizeof
from typing import Any, Final, Self

from acgsperf._native.arguments import checked_bool, checked_policy, checked_seed
from acgsperf._native.atomic import FinalType, atomic
from acgsperf._native.bounded_py import BoundedCache
from acgsperf._native.lru_table_py import Entry, Table
from acgsperf._native.policy_py import Policy
from acgsperf._native.sizing_stats import FACTORS, sizing_stats
from acgsperf._native.stats import CacheStats, PolicyStats, policy_stats
from acgsperf._native.types import EvictionReason

_LAST: Final = 2**63


class Guard:
    """Lets one caller at a time use the policy of a cache, without a lock.

    An operation of the policy has many steps. Between any two of them, other code may run and use the same cache:
    another thread, a signal handler or a finalizer. If the policy is in use, a report waits in a queue, and a question
    gets a default answer. The cache stays correct, but may evict a worse entry. If a signal handler raises in the
    middle of an operation, the policy is created again from the entries of the cache.
    """

    __slots__ = ("_busy", "_pending", "_policy", "adaptive", "seed", "setting", "since_ns", "sizes", "table")

    def __init__(self, table: Table, setting: int, adaptive: bool, seed: int, sizes: bool) -> None:
        self.table = table
        self.setting = setting
        self.adaptive = adaptive
        self.seed = seed
        self.sizes = sizes
        self.since_ns = 0
        self._busy = False
        self._pending: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._policy: Policy | None = None

    @atomic
    def enter(self) -> bool:
        """Return whether the caller may use the policy. If so, it must call `leave` afterwards."""
        if self._busy:
            return False
        self._busy = True
        return True

    def leave(self) -> None:
        """Let other callers use the policy."""
        self._busy = False

    def _started(self) -> Policy:
        """Return a new policy for the entries of the cache."""
        policy = Policy(self.setting, self.adaptive, self.seed, self.sizes)
        policy.resize(*self.bounds())
        self._pending.clear()
        for entry in self.table.entries():
            if entry.token is not None:
                policy.insert(entry.token, entry.hash, 0, entry.weight)
        return policy

    def bounds(self) -> tuple[int, int]:
        """Return the largest number of entries, 0 if it is not known yet, and the largest load."""
        maxsize, maxweight = self.table.maxsize, self.table.maxweight
        # If the weight is limited, the number of entries that fit is not known before the cache is full.
        return (0, maxweight) if maxweight else (maxsize, maxsize)

    def earlier(self) -> tuple[int, int]:
        """Return the requests and the misses of the cache so far."""
        counters = self.table.counts()[0]
        return counters[0] + counters[1], counters[1]

    def __sizeof__(self) -> int:
        policy = self._policy
        return object.__sizeof__(self) + (0 if policy is None else getsizeof(policy))

    def report(self, name: str, *args: Any) -> None:
        """Call a method of the policy now, or later if the policy is in use."""
        self._pending.append((name, args))
        self.ask(None, None)

    def ask(self, default: Any, question: Callable[[Policy], Any] | None) -> Any:
        """Return the policy's answer after all reports; the default if the policy is in use."""
        while self.enter():
            try:
                policy = self._policy
                self._policy = None
                if policy is None:
                    policy = self._started()
                while self._pending:
                    name, args = self._pending.popleft()
                    getattr(policy, name)(*args)
                answer = default if question is None else question(policy)
                self._policy = policy
            finally:
                self.leave()
            if question is not None or not self._pending:
                return answer
        return default


class AdaptiveCache(BoundedCache, FinalType):
    """A mapping of bounded size that learns which entries to evict, and removes expired ones."""

    __slots__ = ("_guard",)

    _guard: Guard | None

    # Not __init__: calling that a second time must not change the object.
    def __new__(
        cls,
        maxsize: int | None = None,
        ttl: float | None = None,
        *,
        policy: str = "adaptive",
        maxweight: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        clock: Callable[[], float] | None = None,
        on_evict: Callable[[Any, Any, EvictionReason], object] | None = None,
        seed: int | None = None,
        sizing: bool = False,
    ) -> Self:
        setting = checked_policy(policy)
        checked_bool("sizing", sizing)
        self = cls._create(maxsize, ttl, maxweight, weigher, clock, on_evict, setting is not None)
        self._guard = None
        if setting is not None:
            self._guard = Guard(self._table, setting, policy == "adaptive", checked_seed(seed), sizing)
        return self

    def _used(self, entry: Entry) -> None:
        if self._guard is not None:
            self._guard.report("hit", entry.token, entry.hash)

    def _missed(self, key_hash: int) -> int:
        guard = self._guard
        if guard is None:
            return 0

        def miss(policy: Policy) -> int:
            meta = policy.miss(key_hash)
            if not policy.timed:
                policy.timed = True
                guard.since_ns = time.monotonic_ns()
            return meta

        meta: int = guard.ask(0, miss)
        return meta

    def _victim(self) -> Entry | None:
        if self._guard is None:
            return self._table.oldest()

        def victim(policy: Policy) -> Entry | None:
            while (token := policy.victim()) is not None:
                entry = self._table.of_token(token)
                if entry is not None:
                    return entry
                policy.remove(token, False)
            return None

        found: Entry | None = self._guard.ask(None, victim)
        return found or self._table.oldest()

    def _spared(self, entry: Entry) -> None:
        if self._guard is not None:
            self._guard.report("spare", entry.token)

    def _removed(self, entry: Entry, for_room: bool) -> None:
        if self._guard is not None:
            self._guard.report("remove", entry.token, for_room)

    def _inserted(self, entry: Entry, meta: int) -> None:
        if self._guard is not None:
            self._guard.report("insert", entry.token, entry.hash, meta, entry.weight)

    def _restored(self, entry: Entry, meta: int) -> None:
        if self._guard is not None:
            self._guard.report("restore", entry.token, entry.hash, meta, entry.weight)

    def _policy_state(self) -> tuple[int | None, dict[Any, int]]:
        if self._guard is None:
            return None, {}
        state: tuple[int, dict[Any, int]] = self._guard.ask((self._guard.setting, {}), Policy.saved)
        return state

    def _kind(self) -> str:
        policy = "lru" if self._guard is None else "adaptive" if self._guard.adaptive else "s3fifo"
        return f"{type(self).__name__} ({policy})"

    def _resume(self, setting: int, /) -> None:
        if self._guard is not None:
            # A question, because a report is dropped if the policy is created only now.
            self._guard.ask(None, lambda policy: policy.resume(setting))

    def _reweighed(self, entry: Entry) -> None:
        if self._guard is not None:
            self._guard.report("reweigh", entry.token, entry.weight)

    def _resized(self) -> None:
        if self._guard is not None:
            self._guard.report("resize", *self._guard.bounds(), self._guard.earlier())

    def _filled(self) -> None:
        guard = self._guard
        if guard is None:
            return

        def estimate(policy: Policy) -> None:
            size = guard.table.size
            if size >= 2 * policy.size or 2 * size <= policy.size:
                policy.resize(size, guard.table.maxweight, guard.earlier())

        guard.ask(None, estimate)

    def _cleared(self) -> None:
        if self._guard is not None:
            self._guard.report("clear")

    def _entries(self) -> list[Entry]:
        entries = self._table.entries()
        if self._guard is None:
            return entries
        tokens: list[Any] = self._guard.ask([], Policy.order)
        places = {token: place for place, token in enumerate(tokens)}
        return sorted(entries, key=lambda entry: places.get(entry.token, _LAST))

    def _policy_stats(self, hits: int, misses: int) -> PolicyStats | None:
        guard = self._guard
        if guard is None or not guard.adaptive:
            return None
        now_ns = time.monotonic_ns()

        def stats(policy: Policy) -> PolicyStats:
            seconds = (now_ns - guard.since_ns) / 1e9 if policy.timed else 0.0
            if policy.shadows is None:
                return policy_stats(policy.setting, seconds, policy.switches, 0, 0, (), hits, misses)
            shadows = policy.shadows
            return policy_stats(
                policy.setting, seconds, policy.switches, shadows.samples, shadows.missed, shadows.misses, hits, misses
            )

        answer: PolicyStats | None = guard.ask(None, stats)
        return answer

    def stats(self) -> CacheStats:
        """Return the counters since creation or `reset_stats`, and the size now."""
        found = super().stats()
        guard = self._guard
        if guard is None or not guard.sizes:
            return found

        def add_sizing(policy: Policy) -> CacheStats:
            if policy.sizing is None:
                return found
            tallies = [policy.sizing.tally(scale) for scale in range(len(FACTORS))]
            requests, misses = found.hits + found.misses - policy.earlier[0], found.misses - policy.earlier[1]
            return replace(found, sizing=sizing_stats(tallies, policy.size, requests, misses, found.mean_weight))

        answer: CacheStats = guard.ask(found, add_sizing)
        return answer

    def reset_stats(self) -> None:
        """Set the counters to zero."""
        super().reset_stats()
        if self._guard is not None:
            self._guard.report("reset_counters")

    def __sizeof__(self) -> int:
        own = super().__sizeof__()
        return own if self._guard is None else own + getsizeof(self._guard)
