"""`PerformanceBenchmark`, and its re-export."""

import asyncio

import pytest

import acgsperf.compat
from acgsperf.compat.validation import CONSTITUTIONAL_HASH, UltraFastConstitutionalValidator
from acgsperf.workbench.benchmark import PerformanceBenchmark


def test_compat_re_exports_the_class():
    assert acgsperf.compat.PerformanceBenchmark is PerformanceBenchmark


async def test_calls_and_awaitables_are_measured_and_return_their_results():
    benchmark = PerformanceBenchmark()
    assert benchmark.get_statistics() == {}
    assert benchmark.measure(divmod, 7, 2) == (3, 1)
    assert benchmark.measure(dict, a=1) == {"a": 1}
    validator = UltraFastConstitutionalValidator()
    for _ in range(98):
        assert await benchmark.measure_async(validator.async_validate_hash(CONSTITUTIONAL_HASH))
    statistics = benchmark.get_statistics()
    assert list(statistics) == ["count", "min_ms", "max_ms", "mean_ms", "median_ms", "p95_ms", "p99_ms"]
    assert statistics["count"] == 100
    ordered = [statistics[name] for name in ["min_ms", "median_ms", "p95_ms", "p99_ms", "max_ms"]]
    assert ordered == sorted(ordered)
    assert statistics["min_ms"] <= statistics["mean_ms"] <= statistics["max_ms"]
    benchmark.reset()
    assert benchmark.get_statistics() == {}


async def test_a_failing_call_is_measured_too():
    benchmark = PerformanceBenchmark()
    await benchmark.measure_async(asyncio.sleep(0.02))
    assert 19 < benchmark.get_statistics()["max_ms"] < 2_000
    with pytest.raises(ZeroDivisionError):
        benchmark.measure(lambda: 1 / 0)
    assert benchmark.get_statistics()["count"] == 2
