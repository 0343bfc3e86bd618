"""One benchmark for each contestant of each case of `acgsperf bench`.

Run `pytest bench`. `--benchmark-json` saves the figures, and `--benchmark-compare` compares two runs.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.workbench.compare import Case, cases, contestants


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise here and not at import, because filling the caches of the larger cases takes seconds."""
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
    # One call per round, and as many rounds as the case has inputs. A call times all its operations.
    benchmark.pedantic(case.contestants[contestant], rounds=case.rounds)
