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


MODULES = {
    "core": {"c": "acgsperf._core", "python": "acgsperf._native.core_py"},
    "canonical": {"c": "acgsperf._native.canonical", "python": "acgsperf._native.canonical_py"},
    "envelope": {"c": "acgsperf._native.envelope", "python": "acgsperf._native.envelope_py"},
}


def imported(name: str, implementation: str) -> ModuleType:
    return importlib.import_module(MODULES[name][implementation])


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return imported("core", request.param)


@pytest.fixture(scope="session")
def twins() -> list[ModuleType]:
    """All implementations at once, to compare what they say."""
    return [imported("core", implementation) for implementation in IMPLEMENTATIONS]


@pytest.fixture(scope="session")
def readers() -> list[ModuleType]:
    """Both modules that read envelopes."""
    return [imported("envelope", implementation) for implementation in IMPLEMENTATIONS]


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def encoder(request: pytest.FixtureRequest) -> ModuleType:
    return imported("canonical", request.param)


@pytest.fixture(scope="session")
def encoders() -> list[ModuleType]:
    return [imported("canonical", implementation) for implementation in IMPLEMENTATIONS]


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
    """Run a script of isolated/ in a process of its own, which must end well and say nothing."""
    return run_isolated
