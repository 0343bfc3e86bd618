"""A benchmark for every contestant of every case of `acgsperf bench`, which takes them side by side instead.

Run with `pytest bench`; `--benchmark-json` keeps the figures, `--benchmark-compare` sets two runs side by side.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.workbench.compare import Case, cases, contestants


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise here rather than at import: the caches of the larger cases take seconds to fill."""
    modules, _ = contestants()
    metafunc.parametrize(
        ("case", "contestant"),
        [
            pytest.param(case, contestant, id=f"{case.name}-{contestant}")
            for case in cases(modules)
            for contestant in case.contestants
        ],
    )


def test_core(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    benchmark.group = case.name
    benchmark.extra_info["operations"] = case.operations
    # The clock runs for all the operations of a call: as many rounds as the case has inputs for, and one call in each.
    benchmark.pedantic(case.contestants[contestant], rounds=case.rounds)
