"""Measures the hit ratios of a trace by size and policy. It runs the real caches, and computes Belady's optimum."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from acgsperf._native.predicting import SHARE
from acgsperf.dispatch import AdaptiveCache, LRUCache, Predictor, request_key
from acgsperf.workbench.traces import Request
from acgsperf.workbench.usage import UsageError, listed, shown

if TYPE_CHECKING:
    from acgsperf._native.types import Policy

__all__ = [
    "COLUMNS",
    "DEFAULT_SIZES",
    "POLICIES",
    "PREDICTION",
    "Result",
    "Simulation",
    "dense",
    "hits_of",
    "optimum",
    "policies",
    "predicted",
    "sizes",
]

POLICIES: Final = ("lru", "s3fifo", "adaptive", "belady")
# What a policy is called together with prediction.
PREDICTION: Final = "+prediction"
COLUMNS: Final = (*(name for policy in POLICIES[:3] for name in (policy, policy + PREDICTION)), "belady")
DEFAULT_SIZES: Final = "1%,2%,5%,10%,20%"
_K = TypeVar("_K")
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
        policy: one of `COLUMNS`.
        hit_ratios: one for each seed; a single one if the policy has no seed.
        wasted: for each of them the useless fetches in relation to the requests; empty without prediction.
    """

    trace: str
    size: int
    policy: str
    hit_ratios: tuple[float, ...]
    wasted: tuple[float, ...] = ()

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
    cache: LRUCache[_K, bool] | AdaptiveCache[_K, bool], keys: Sequence[_K], advanced: Callable[[int], object]
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


def predicted(
    cache: LRUCache[str, bool] | AdaptiveCache[str, bool], keys: Sequence[str], advanced: Callable[[int], object]
) -> tuple[int, int]:
    """Do as `hits_of` does, and fetch the keys that are predicted. Return the hits and the useless fetches.

    Values that were fetched wait outside the cache for their first use, at most `SHARE` of its size. The cache is
    smaller by as many entries.
    """
    size = cache.maxsize
    if SHARE * size < 1:
        return hits_of(cache, keys, advanced), 0
    predictor = Predictor(int(SHARE * size))
    get, store, take, following = cache.get, cache.set, predictor.take, predictor.next
    reserved = first_uses = 0
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE]
        for position, key in enumerate(piece, start + 1):
            if get(key) is None:
                first_use = take(key) is not None
                first_uses += first_use
                store(key, True)
                for wanted in following(key, cache, position, first_use):
                    predictor.store(wanted, True)
                if predictor.reserved != reserved:
                    reserved = predictor.reserved
                    cache.resize(size - reserved)
        advanced(len(piece))
    return cache.stats().hits + first_uses, predictor.stats().wasted


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
        prediction: whether to run each policy but Belady's once more with prediction.

    Attributes:
        steps: the number of requests of all runs.
    """

    def __init__(
        self,
        name: str,
        keys: "array[int]",
        sizes: Sequence[int],
        policies: Sequence[str],
        seeds: int,
        prediction: bool = False,
    ) -> None:
        self.name = name
        self._keys = keys
        added = {policy + PREDICTION for policy in policies if policy != "belady"} if prediction else set()
        columns = [column for column in COLUMNS if column in added or column in policies]
        self._runs = [
            (size, column, range(seeds if column.removesuffix(PREDICTION) in _SEEDED else 1))
            for size in sizes
            for column in columns
        ]
        self.steps: Final = len(keys) * sum(len(run_seeds) for _, _, run_seeds in self._runs)

    def run(self, advanced: Callable[[int], object] = lambda done: None) -> list[Result]:
        """Return a result for each size and policy.

        Args:
            advanced: called with the number of requests that were done since its last call.
        """
        following = next_uses(self._keys) if any(policy == "belady" for _, policy, _ in self._runs) else array("q")
        results = []
        for size, column, seeds in self._runs:
            runs = [self._run(size, column, seed, following, advanced) for seed in seeds]
            ratios = tuple(hits / len(self._keys) for hits, _ in runs)
            wasted = tuple(useless / len(self._keys) for _, useless in runs)
            results.append(Result(self.name, size, column, ratios, wasted if column.endswith(PREDICTION) else ()))
        return results

    def _run(
        self, size: int, column: str, seed: int, following: "array[int]", advanced: Callable[[int], object]
    ) -> tuple[int, int]:
        """Return the hits and the useless fetches."""
        if column == "belady":
            return optimum(self._keys, following, size, advanced), 0
        if column.endswith(PREDICTION):
            return predicted(_cache(column.removesuffix(PREDICTION), size, seed), self._texts, advanced)
        return hits_of(_cache(column, size, seed), self._keys, advanced), 0

    @cached_property
    def _texts(self) -> list[str]:
        """The keys as a predictor needs them."""
        texts = [str(number) for number in range(max(self._keys) + 1)]
        return [texts[key] for key in self._keys]


def _cache(policy: str, size: int, seed: int) -> LRUCache[Any, bool] | AdaptiveCache[Any, bool]:
    return LRUCache(size) if policy == "lru" else AdaptiveCache(size, policy=cast("Policy", policy), seed=seed)
