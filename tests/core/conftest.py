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
from hypothesis import settings

# Where the package was built without its extensions on purpose, there is one implementation to test.
IMPLEMENTATIONS = ["python"] if os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1" else ["c", "python"]


INSTRUMENTED = os.environ.get("ACGSPERF_INSTRUMENTED") == "1"
if INSTRUMENTED:
    # Sanitizers and line tracing make everything several times slower.
    settings.register_profile("instrumented", max_examples=15, stateful_step_count=20, deadline=None)
    settings.load_profile("instrumented")

MODULES = {
    "core": {"c": "acgsperf._core", "python": "acgsperf._native.core_py"},
    "canonical": {"c": "acgsperf._native.canonical", "python": "acgsperf._native.canonical_py"},
    "hits": {"c": "acgsperf._native.hits", "python": "acgsperf._native.hits_py"},
    "pg_dialogue": {"c": "acgsperf._native.pg_dialogue", "python": "acgsperf._native.pg_dialogue_py"},
    "predictor": {"c": "acgsperf._native.predictor", "python": "acgsperf._native.predictor_py"},
    "read_path": {"c": "acgsperf._native.read_path", "python": "acgsperf._native.read_path_py"},
    "resp": {"c": "acgsperf._native.resp", "python": "acgsperf._native.resp_py"},
    "weigh": {"c": "acgsperf._native.weigh", "python": "acgsperf._native.weigh_py"},
    "envelope": {"c": "acgsperf._native.envelope", "python": "acgsperf._native.envelope_py"},
}


# The class of each variant of a cache, and the arguments with which the tests create it.
CACHES = {
    "LRUCache": ("LRUCache", {}),
    "RecordingCache": ("RecordingCache", {}),
    "AdaptiveCache:lru": ("AdaptiveCache", {"policy": "lru"}),
    "AdaptiveCache:s3fifo": ("AdaptiveCache", {"policy": "s3fifo"}),
    "AdaptiveCache": ("AdaptiveCache", {}),
}
IN_ORDER_OF_USE = ("LRUCache", "RecordingCache", "AdaptiveCache:lru")


class Caches:
    """One variant of a cache in one implementation; `create` creates a cache.

    Attributes:
        core: the implementation.
        kind: the class.
        variant: the implementation and the variant, as the scripts in isolated/ expect them.
        in_order: whether the caches evict in the order of use.
    """

    def __init__(self, core: ModuleType, variant: str) -> None:
        name, self._arguments = CACHES[variant]
        self.core = core
        self.kind = getattr(core, name)
        self.variant = f"{core.__name__} {variant}"
        self.in_order = variant in IN_ORDER_OF_USE

    def create(self, *args, **kwargs):
        return self.kind(*args, **self._arguments, **kwargs)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of `caches` on all variants; if it is marked `order_of_use`, on those that evict in that order."""
    if "caches" in metafunc.fixturenames:
        ordered = metafunc.definition.get_closest_marker("order_of_use")
        variants = IN_ORDER_OF_USE if ordered else CACHES
        names = [f"{implementation} {variant}" for implementation in IMPLEMENTATIONS for variant in variants]
        metafunc.parametrize("caches", names, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """If the compiled modules are instrumented, leave out tests of a twin alone: they would find nothing."""
    if not INSTRUMENTED:
        return
    of_twins = [item for item in items if _runs_a_twin_alone(item)]
    config.hook.pytest_deselected(items=of_twins)
    items[:] = [item for item in items if item not in set(of_twins)]


def _runs_a_twin_alone(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(value, str) and value.split(" ")[0] == "python" for value in parameters)


@pytest.fixture(scope="session")
def caches(request: pytest.FixtureRequest) -> Caches:
    implementation, variant = request.param.split()
    return Caches(imported("core", implementation), variant)


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


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def predictors(request: pytest.FixtureRequest) -> ModuleType:
    return imported("predictor", request.param)


def run_isolated(script: str, *arguments: str) -> None:
    environment = dict(os.environ)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        # Even where an extension would have it switched on.
        environment["PYTHON_GIL"] = "0"
    path = Path(__file__).with_name("isolated") / script
    command = [sys.executable, "-W", "error", str(path), *arguments]
    patience = 600 if INSTRUMENTED else 120
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience)
    assert (done.returncode, done.stderr) == (0, ""), f"{script} {arguments}: {done.returncode}\n{done.stderr}"


@pytest.fixture(scope="session")
def isolated() -> Callable[..., None]:
    """Run a script of isolated/ in a process of its own, which must end well and say nothing."""
    return run_isolated
