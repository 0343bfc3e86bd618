"""Measures the hit ratios of a trace by size and policy. It runs the real caches, and computes Belady's optimum."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, cast

from acgsperf.dispatch import AdaptiveCache, LRUCache, request_key
from acgsperf.workbench.traces import Request
from acgsperf.workbench.usage import UsageError, listed, shown

if TYPE_CHECKING:
    from acgsperf._native.types import Policy

__all__ = ["DEFAULT_SIZES", "POLICIES", "Result", "Simulation", "dense", "hits_of", "optimum", "policies", "sizes"]

POLICIES: Final = ("lru", "s3fifo", "adaptive", "belady")
DEFAULT_SIZES: Final = "1%,2%,5%,10%,20%"
_SEEDED: Final = frozenset({"adaptive", "s3fifo"})
_UNITS: Final = {"": 1, "k": 1_000, "m": 1_000_000}
_PIECE: Final = 50_000
# Later than any request.
_NEVER: Final = 2**62


@dataclass(frozen=True, slots=True)
class Result:
    """The hit ratios of one policy with one size.

    Attributes:
        trace: the name of the trace.
        size: the number of entries.
        policy: one of `POLICIES`.
        hit_ratios: one for each seed; a single one if the policy has no seed.
    """

    trace: str
    size: int
    policy: str
    hit_ratios: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean hit ratio of all seeds."""
        return sum(self.hit_ratios) / len(self.hit_ratios)

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes and the mean as JSON-like values."""
        return asdict(self) | {"mean": self.mean}


def dense(requests: Iterable[Request]) -> "array[int]":
    """Number the keys from 0 in order of appearance, and return the number of the key of each request."""
    numbers: dict[str, int] = {}
    return array("q", (numbers.setdefault(request_key(request), len(numbers)) for request in requests))


def sizes(text: str, distinct: int) -> list[int]:
    """Parse sizes that are separated by commas: `500,1k,2k`, or shares of the distinct keys: `5%`."""
    found = {_size(part.strip().lower(), distinct) for part in text.split(",")}
    return sorted(found)


def _size(text: str, distinct: int) -> int:
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            size = max(1, round(share * distinct)) if 0 < share <= 1 else 0
        else:
            unit = text[-1:] if text[-1:] in _UNITS else ""
            size = round(float(text.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if not 1 <= size <= 2**30:
        raise UsageError(f"--sizes must be numbers like 500, 2k or 5%, got {shown(text)}")
    return size


def policies(text: str) -> list[str]:
    """Parse names of policies that are separated by commas."""
    names = [name.strip() for name in text.lower().split(",")]
    for name in names:
        if name not in POLICIES:
            raise UsageError(f"--policies must be of {listed(list(POLICIES))}, got {shown(name)}")
    return [name for name in POLICIES if name in names]


def hits_of(
    cache: LRUCache[int, bool] | AdaptiveCache[int, bool], keys: Sequence[int], advanced: Callable[[int], object]
) -> int:
    """Read every key from a cache, store each key that it misses, and return the number of hits."""
    get, store = cache.get, cache.set
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE]
        for key in piece:
            if get(key) is None:
                store(key, True)
        advanced(len(piece))
    return cache.stats().hits


def next_uses(keys: Sequence[int]) -> "array[int]":
    """Return for each request the position of the next request for the same key; `_NEVER` if there is none."""
    following = array("q", bytes(8 * len(keys)))
    seen: dict[int, int] = {}
    for position in range(len(keys) - 1, -1, -1):
        following[position] = seen.get(keys[position], _NEVER)
        seen[keys[position]] = position
    return following


def optimum(keys: Sequence[int], following: Sequence[int], size: int, advanced: Callable[[int], object]) -> int:
    """Return the hits of a cache that evicts the key whose next use is farthest away.

    No cache that loads on demand has more (Belady, "A study of replacement algorithms for a virtual-storage computer",
    IBM Systems Journal 5(2), 1966). O(n log n).
    """
    next_use: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = 0
    for start in range(0, len(keys), _PIECE):
        stop = min(start + _PIECE, len(keys))
        for position in range(start, stop):
            key, following_use = keys[position], following[position]
            if key in next_use:
                hits += 1
            elif len(next_use) >= size:
                while True:
                    use, victim = heappop(heap)
                    # Otherwise the key was used again, and the heap has a newer item for it.
                    if next_use.get(victim) == -use:
                        break
                del next_use[victim]
            next_use[key] = following_use
            heappush(heap, (-following_use, key))
        advanced(stop - start)
    return hits


class Simulation:
    """Runs a trace through caches of several sizes and policies.

    Args:
        name: the name of the trace.
        keys: the requests, as `dense` returns them.
        sizes: numbers of entries.
        policies: names of `POLICIES`.
        seeds: how many random samples of keys to try, if the policy uses a sample.

    Attributes:
        steps: the number of requests of all runs.
    """

    def __init__(
        self, name: str, keys: "array[int]", sizes: Sequence[int], policies: Sequence[str], seeds: int
    ) -> None:
        self.name = name
        self._keys = keys
        self._runs = [(size, policy, range(seeds if policy in _SEEDED else 1)) for size in sizes for policy in policies]
        self.steps: Final = len(keys) * sum(len(run_seeds) for _, _, run_seeds in self._runs)

    def run(self, advanced: Callable[[int], object] = lambda done: None) -> list[Result]:
        """Return a result for each size and policy.

        Args:
            advanced: called with the number of requests that were done since its last call.
        """
        following = next_uses(self._keys) if any(policy == "belady" for _, policy, _ in self._runs) else array("q")
        results = []
        for size, policy, run_seeds in self._runs:
            ratios = []
            for seed in run_seeds:
                if policy == "belady":
                    hits = optimum(self._keys, following, size, advanced)
                else:
                    hits = hits_of(_cache(policy, size, seed), self._keys, advanced)
                ratios.append(hits / len(self._keys))
            results.append(Result(self.name, size, policy, tuple(ratios)))
        return results


def _cache(policy: str, size: int, seed: int) -> LRUCache[int, bool] | AdaptiveCache[int, bool]:
    return LRUCache(size) if policy == "lru" else AdaptiveCache(size, policy=cast("Policy", policy), seed=seed)
