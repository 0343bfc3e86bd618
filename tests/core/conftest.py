"""Every test of the core runs on both implementations."""

import importlib
import os
from types import ModuleType

import pytest

# Where the package was built without its extension on purpose, there is one implementation to test.
IMPLEMENTATIONS = ["python"] if os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1" else ["c", "python"]


def imported(implementation: str) -> ModuleType:
    return importlib.import_module({"c": "acgsperf._core", "python": "acgsperf._core_py"}[implementation])


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return imported(request.param)


@pytest.fixture(scope="session")
def twins() -> list[ModuleType]:
    """All implementations at once, to compare what they say."""
    return [imported(implementation) for implementation in IMPLEMENTATIONS]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()
