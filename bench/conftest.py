"""A benchmark for every contestant of every case of `acgsperf bench`, which takes them side by side instead."""

import pytest

from acgsperf.workbench.compare import cases, contestants

MODULES, LEFT_OUT = contestants()


def pytest_report_header() -> str:
    return f"not installed, left out: {', '.join(LEFT_OUT) or 'none'}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise here rather than at import: the caches of the larger cases take seconds to fill."""
    metafunc.parametrize(
        ("case", "contestant"),
        [
            pytest.param(case, contestant, id=f"{case.name}-{contestant}")
            for case in cases(MODULES)
            for contestant in case.contestants
        ],
    )
