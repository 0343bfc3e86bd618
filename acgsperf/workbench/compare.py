"""`acgsperf bench`: compares the core with dict and other libraries, in one run, as ratios.

The contestants of a case run alternately, and the fastest round of each counts. On a shared machine absolute times
drift, but ratios within a run are stable. Times include the loop.
"""

import functools
import importlib
import itertools
import json
import platform
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from rich.console import Console
from xxhash import xxh3_128_hexdigest

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.workbench.tables import print_table

Action = Callable[[], object]
_DISTRIBUTIONS: Final = {
    "acgsperf._native.canonical": "acgsperf",
    "acgsperf._native.canonical_py": "acgsperf",
    "acgsperf._core": "acgsperf",
    "acgsperf._native.core_py": "acgsperf",
    "cachebox": "cachebox",
    "cachetools": "cachetools",
    "ddsketch": "ddsketch",
    "hdrh.histogram": "hdrhistogram",
    "lru": "lru-dict",
    "moka_py": "moka-py",
    "msgspec.json": "msgspec",
    "prometheus_client": "prometheus-client",
    "theine": "theine",
}
_OURS: Final = "acgsperf"
_TWIN: Final = "acgsperf, pure Python"
_TTL_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Result:
    """The figure of one contestant in a case; `bound` is the limit that the project sets for its own classes."""

    case: str
    contestant: str
    figure: float
    unit: str
    ratio: float | None
    bound: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All results of a run, with the machine, the versions, and the libraries that are not installed."""

    machine: str
    versions: dict[str, str]
    left_out: list[str]
    results: list[Result] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return the comparison as JSON-like values."""
        return asdict(self)

    def _cells(self, result: Result) -> tuple[str, ...]:
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        met = "" if result.met is None else "yes" if result.met else "no"
        return result.contestant, f"{result.figure:.4g} {result.unit}", ratio, result.bound, met

    def _by_case(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        for case, results in itertools.groupby(self.results, lambda result: result.case):
            yield case, [self._cells(result) for result in results]

    @property
    def _caption(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        left_out = f" Not installed: {', '.join(self.left_out)}." if self.left_out else ""
        return f"{self.machine}. {versions}.{left_out}"

    def print(self, console: Console) -> None:
        """Print a table with a section for each case."""
        rows: list[str | tuple[str, ...]] = []
        for case, results in self._by_case():
            rows.append(case)
            for contestant, *others in results:
                rows.append((f"  {contestant}", *(cell.replace("; ", "\n") for cell in others)))
        print_table(console, _COLUMNS, rows, caption=self._caption, right=("Takes", "Ratio"))

    def as_markdown(self) -> str:
        """Return the page of results: a table for each case."""
        lines = [self._caption]
        for case, rows in self._by_case():
            lines += ["", f"## {case[0].upper()}{case[1:]}", ""]
            table = [_COLUMNS, ("---", "---:", "---:", "---", "---"), *rows]
            lines += [f"| {' | '.join(row)} |" for row in table]
        return "\n".join(lines)


_COLUMNS: Final = ("Contestant", "Takes", "Ratio", "At most", "Met")


@dataclass(frozen=True, slots=True)
class Bound:
    """At most `factor` times the time of `reference`."""

    reference: str
    factor: float

    def __str__(self) -> str:
        return f"{self.factor:g} x {self.reference}"


@dataclass(frozen=True, slots=True)
class Case:
    """An operation, and who runs it: each call of a contestant runs it `operations` times. Ratios are to the first."""

    name: str
    operations: int
    contestants: dict[str, Action]
    bounds: tuple[Bound, ...] = ()
    rounds: int = 9

    def run(self, quick: bool) -> Iterator[Result]:
        best = dict.fromkeys(self.contestants, float("inf"))
        for _ in range(2 if quick else self.rounds):
            for name, action in self.contestants.items():
                started = time.perf_counter_ns()
                action()
                best[name] = min(best[name], (time.perf_counter_ns() - started) / self.operations)
        reference = next(iter(best.values()))
        for name, figure in best.items():
            bounds = [bound for bound in self.bounds if bound.reference in best] if name == _OURS else []
            met = all(figure <= bound.factor * best[bound.reference] for bound in bounds) if bounds else None
            yield Result(self.name, name, figure, "ns", figure / reference, "; ".join(map(str, bounds)), met)


def compare(*, quick: bool = False) -> Comparison:
    """Run every case.

    Args:
        quick: few rounds of small cases, to check that everything runs.
    """
    modules, left_out = contestants()
    versions = {"Python": platform.python_version()}
    for name in modules:
        distribution = _DISTRIBUTIONS[name]
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            versions[distribution] = "unknown"
    comparison = Comparison(_machine(), versions, left_out)
    for case in cases(modules, quick=quick):
        comparison.results.extend(case.run(quick))
    comparison.results.extend(_memory(modules, 1_000 if quick else 100_000))
    comparison.results.extend(_histogram_error(modules))
    return comparison


def cases(modules: dict[str, ModuleType], *, quick: bool = False) -> Iterator[Case]:
    """Return the cases that are timed, each with the contestants that are installed.

    Args:
        modules: from `contestants`.
        quick: smaller caches.
    """
    yield from _cache_cases(modules, quick)
    yield from _validator_cases(modules)
    yield from _histogram_cases(modules)
    yield from _fingerprint_cases(modules)


def contestants() -> tuple[dict[str, ModuleType], list[str]]:
    """Return the modules that are compared, by name, and the distributions that are not installed."""
    modules, left_out = {}, []
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            modules[name] = importlib.import_module(name)
        except ImportError:
            left_out.append(f"{distribution} ({name})" if distribution == _OURS else distribution)
    return modules, left_out


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as cpuinfo:
            model = next(line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{platform.system()} on {model}"


def _present(
    modules: dict[str, ModuleType], makers: dict[str, tuple[str, Callable[[ModuleType], Any]]]
) -> dict[str, Any]:
    """Return the contestants whose modules are installed, by name."""
    return {name: make(modules[module]) for name, (module, make) in makers.items() if module in modules}


def _each(call: Callable[[Any], object], arguments: Sequence[object]) -> Action:
    def action() -> None:
        for argument in arguments:
            call(argument)

    return _with_its_own_code(action)


def _each_pair(call: Callable[[Any, Any], object], arguments: Sequence[object]) -> Action:
    def action() -> None:
        for argument in arguments:
            call(argument, 1.5)

    return _with_its_own_code(action)


def _with_its_own_code(action: Action) -> Action:
    """Give a function its own code object: the interpreter specializes calls in it, so they must not share one."""
    assert isinstance(action, FunctionType)
    action.__code__ = action.__code__.replace()
    return action


def _caches(
    modules: dict[str, ModuleType], size: int
) -> dict[str, tuple[Callable[[Any], object], Callable[[Any, Any], object]]]:
    """`get` and `set` of every cache, with `size` entries at most, and a TTL if the cache supports it."""

    def of_mapping(cache: Any) -> tuple[Any, Any]:
        return cache.get, cache.__setitem__

    def of_set(cache: Any) -> tuple[Any, Any]:
        return cache.get, cache.set

    def theine(module: ModuleType) -> tuple[Any, Any]:
        from datetime import timedelta

        cache: Any = module.Cache(size)
        ttl = timedelta(seconds=_TTL_S)
        return cache.get, lambda key, value: cache.set(key, value, ttl)

    return {"dict": of_mapping({})} | _present(
        modules,
        {
            _OURS: ("acgsperf._core", lambda module: of_set(module.LRUCache(size, _TTL_S))),
            _TWIN: ("acgsperf._native.core_py", lambda module: of_set(module.LRUCache(size, _TTL_S))),
            "cachetools.TTLCache": ("cachetools", lambda module: of_mapping(module.TTLCache(size, _TTL_S))),
            "cachebox.TTLCache": ("cachebox", lambda module: of_mapping(module.TTLCache(size, _TTL_S))),
            "lru-dict (no TTL)": ("lru", lambda module: of_mapping(module.LRU(size))),
            "theine": ("theine", theine),
            "moka-py": ("moka_py", lambda module: of_set(module.Moka(size, ttl=_TTL_S))),
        },
    )


def _cache_cases(modules: dict[str, ModuleType], quick: bool) -> Iterator[Case]:
    large = 1_000 if quick else 100_000
    source = random.Random(1)
    for name, size, bounds, repeat, rounds in (
        ("get, 1,000 hot keys", 1_000, (Bound("dict", 1.4), Bound("cachebox.TTLCache", 0.5)), 20, 60),
        (f"get, random order over {large:,}", large, (Bound("dict", 1.7),), 1, 9),
    ):
        keys = [f"key:{i}" for i in range(size)]
        caches = _caches(modules, size)
        for _, store in caches.values():
            for key in keys:
                store(key, 1.5)
        source.shuffle(keys)
        asked = keys * repeat
        gets = {contestant: _each(get, asked) for contestant, (get, _) in caches.items()}
        memoised = functools.lru_cache(size)(lambda key: 1.5)
        for key in keys:
            memoised(key)
        gets["functools.lru_cache (no TTL)"] = _each(memoised, asked)
        yield Case(name, len(asked), gets, bounds, rounds)
    yield Case(
        f"set, {large:,} existing entries",
        large,
        {contestant: _each_pair(store, keys) for contestant, (_, store) in caches.items()},
        (Bound("dict", 1.3),),
    )
    fresh = iter(range(10**9))
    with_ttl = {
        contestant: store
        for contestant, (_, store) in caches.items()
        if contestant != "dict" and "no TTL" not in contestant
    }

    def inserting(store: Callable[[Any, Any], object]) -> Action:
        # New keys, made before the clock starts; the same number for every contestant.
        batches = [[f"new:{next(fresh)}" for _ in range(large // 2)] for _ in range(2 if quick else 5)]
        return lambda: _each_pair(store, batches.pop())()

    yield Case(
        "insert into a full cache",
        large // 2,
        {contestant: inserting(store) for contestant, store in with_ttl.items()},
        tuple(Bound(contestant, 1.0) for contestant in with_ttl if not contestant.startswith(_OURS)),
        5,
    )


def _validator_cases(modules: dict[str, ModuleType]) -> Iterator[Case]:
    # The hash of a request is another string object than the constant.
    valid = ["".join(CONSTITUTIONAL_HASH) for _ in range(1_000)]
    invalid = [f"{i:016x}" for i in range(1_000)]
    validators = _present(
        modules,
        {
            _OURS: ("acgsperf._core", lambda module: module.HashValidator()),
            _TWIN: ("acgsperf._native.core_py", lambda module: module.HashValidator()),
        },
    )
    for name, values in (("validate, valid", valid), ("validate, invalid", invalid)):
        calls = {"len(s)": _each(len, values * 20)}
        calls |= {contestant: _each(validator.validate, values * 20) for contestant, validator in validators.items()}
        yield Case(name, len(values) * 20, calls, (Bound("len(s)", 1.4),), 60)
    mixed = random.Random(1).sample(valid + invalid, 2_000) * 5
    batches: dict[str, Action] = {"[x == hash for x in s]": lambda: [value == CONSTITUTIONAL_HASH for value in mixed]}
    batches |= {
        contestant: functools.partial(validator.validate_many, mixed) for contestant, validator in validators.items()
    }
    yield Case("validate_many, 10,000 mixed", len(mixed), batches, (Bound("[x == hash for x in s]", 0.4),), 100)


def _histogram_cases(modules: dict[str, ModuleType]) -> Iterator[Case]:
    values = [int(10 ** random.Random(i).uniform(3, 9)) for i in range(1_000)] * 10
    texts = [str(value) for value in values]

    def prometheus(module: ModuleType) -> Any:
        return module.Histogram("replayed_seconds", "a latency", registry=module.CollectorRegistry()).observe

    recorders = _present(
        modules,
        {
            _OURS: ("acgsperf._core", lambda module: module.LatencyHistogram().record),
            _TWIN: ("acgsperf._native.core_py", lambda module: module.LatencyHistogram().record),
            "hdrh": ("hdrh.histogram", lambda module: module.HdrHistogram(1, 3_600_000_000_000, 3).record_value),
            "ddsketch": ("ddsketch", lambda module: module.DDSketch(0.001).add),
            "prometheus_client": ("prometheus_client", prometheus),
        },
    )
    calls = {"len(s)": _each(len, texts)} | {name: _each(record, values) for name, record in recorders.items()}
    others = tuple(Bound(name, 0.05) for name in ("hdrh", "ddsketch", "prometheus_client"))
    yield Case("record", len(values), calls, (Bound("len(s)", 1.4), *others), 30)


def _fingerprint_cases(modules: dict[str, ModuleType]) -> Iterator[Case]:
    flat = [{"user": i, "type": "api_call", "id": f"request {i}"} for i in range(1_000)]
    nested = [
        {
            f"field {i}": {"name": f"naïve {i}", "tags": ["a", None, True], "rate": 1.5 * i}
            if i % 4 == 0
            else i * 1_000
            for i in range(20)
        }
        for _ in range(50)
    ]

    def msgspec(module: ModuleType) -> Any:
        encode = module.Encoder(order="deterministic").encode
        return lambda request: xxh3_128_hexdigest(encode(request))

    # The usual alternative: JSON. Its keys are always text, so it cannot distinguish "1" from 1 there.
    functions = {
        "json + xxh3": lambda request: xxh3_128_hexdigest(json.dumps(request, sort_keys=True).encode()),
        **_present(
            modules,
            {
                _OURS: ("acgsperf._native.canonical", lambda module: module.fingerprint),
                _TWIN: ("acgsperf._native.canonical_py", lambda module: module.fingerprint),
                "msgspec.json + xxh3": ("msgspec.json", msgspec),
            },
        ),
    }
    bounds = Bound("json + xxh3", 0.2), Bound("msgspec.json + xxh3", 1.0)
    for name, requests in (("fingerprint, 3 fields", flat), ("fingerprint, 20 fields, nested", nested)):
        calls = {contestant: _each(function, requests) for contestant, function in functions.items()}
        yield Case(name, len(requests), calls, bounds, 30)


def _memory(modules: dict[str, ModuleType], entries: int) -> Iterator[Result]:
    for name, cache in {
        "dict": {},
        "OrderedDict": OrderedDict(),
        **_present(modules, {_OURS: ("acgsperf._core", lambda module: module.LRUCache(entries, _TTL_S))}),
    }.items():
        for i in range(entries):
            cache[f"key:{i}"] = i
        per_entry = sys.getsizeof(cache) / entries
        ours = name == _OURS
        bound, met = ("72 bytes", per_entry <= 72) if ours else ("", None)
        yield Result(f"memory of one entry in {entries:,}", name, per_entry, "bytes", None, bound, met)


def _histogram_error(modules: dict[str, ModuleType]) -> Iterator[Result]:
    if "acgsperf._core" not in modules:
        return
    histogram = modules["acgsperf._core"].LatencyHistogram()
    source = random.Random(1)
    values = sorted(int(10 ** source.uniform(2, 12)) for _ in range(10_000))
    histogram.record_many(values)
    error = 0.0
    for i in range(1, 10_000):
        exact = values[max(1, int(i / 100 / 100 * len(values) + 0.5)) - 1]
        error = max(error, abs(histogram.percentile(i / 100) - exact) / exact)
    yield Result("error of percentiles, 3 figures", _OURS, 100 * error, "%", None, "0.1 %", error <= 0.001)
