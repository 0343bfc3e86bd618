"""Every test of the compiled modules runs on both implementations."""

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Where the package was built without its extensions on purpose, there is one implementation to test.
IMPLEMENTATIONS = ["python"] if os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1" else ["c", "python"]


def imported(name: str, implementation: str) -> ModuleType:
    return importlib.import_module(f"acgsperf.{name}" + {"c": "", "python": "_py"}[implementation])


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return imported("_core", request.param)


@pytest.fixture(scope="session")
def twins() -> list[ModuleType]:
    """All implementations at once, to compare what they say."""
    return [imported("_core", implementation) for implementation in IMPLEMENTATIONS]


@pytest.fixture(scope="session")
def readers() -> list[ModuleType]:
    """Both that read envelopes; the plain one also writes them."""
    names = {"c": "acgsperf.tiers._envelope", "python": "acgsperf.tiers.envelope"}
    return [importlib.import_module(names[implementation]) for implementation in IMPLEMENTATIONS]


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def encoder(request: pytest.FixtureRequest) -> ModuleType:
    return imported("_canonical", request.param)


@pytest.fixture(scope="session")
def encoders() -> list[ModuleType]:
    return [imported("_canonical", implementation) for implementation in IMPLEMENTATIONS]


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


def run_isolated(script: str, *arguments: str) -> None:
    environment = dict(os.environ)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        # Even where an extension would have it switched on.
        environment["PYTHON_GIL"] = "0"
    path = Path(__file__).with_name("isolated") / script
    command = [sys.executable, "-W", "error", str(path), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), f"{script} {arguments}: {done.returncode}\n{done.stderr}"


@pytest.fixture(scope="session")
def isolated() -> Callable[..., None]:
    """Runs a script of isolated/ in a process of its own, which must end well and say nothing."""
    return run_isolated
