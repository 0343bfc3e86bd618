"""Run with `pytest bench`; `--benchmark-json` keeps the figures, `--benchmark-compare` sets two runs side by side."""

from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.workbench.compare import Case


def test_core(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    benchmark.group = case.name
    benchmark.extra_info["operations"] = case.operations
    # The clock runs for all the operations of a call: as many rounds as the case has inputs for, and one call in each.
    benchmark.pedantic(case.contestants[contestant], rounds=case.rounds)
