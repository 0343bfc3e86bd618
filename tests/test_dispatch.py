"""Which twins run, and what an import of the package brings with it."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

import acgsperf
from acgsperf import dispatch

NAMES = [
    "Dialogue",
    "HashValidator",
    "HitFinder",
    "LRUCache",
    "LatencyHistogram",
    "MethodGuard",
    "Predictor",
    "ReadPath",
    "ReadQueue",
    "RecordingCache",
    "RequestCounters",
    "Timer",
    "answer",
    "canonical",
    "fingerprint",
    "has_long_array",
    "mget",
    "unseal_many",
]
_MODULES = [
    "acgsperf._native.canonical",
    "acgsperf._native.envelope",
    "acgsperf._native.hits",
    "acgsperf._native.pg_dialogue",
    "acgsperf._native.predictor",
    "acgsperf._native.read_path",
    "acgsperf._native.resp",
]
COMPILED = ["acgsperf._core", "acgsperf._native.caches", *_MODULES]
TWINS = sorted(["acgsperf._native.core_py", *(f"{name}_py" for name in _MODULES)])


def said(code, **environment):
    """What a fresh interpreter prints as JSON."""
    clean = {name: value for name, value in os.environ.items() if name != "ACGSPERF_NO_EXTENSIONS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import json, sys\n{code}"],
        check=True,
        capture_output=True,
        timeout=60,
        env=clean | environment,
    )
    return json.loads(done.stdout)


WHERE = f"""
import acgsperf
from acgsperf import dispatch
modules = {{getattr(dispatch, name).__module__ for name in {NAMES!r}}}
print(json.dumps([acgsperf.IMPLEMENTATION, *sorted(modules)]))
"""


def test_the_environment_forces_the_twins():
    assert said(WHERE, ACGSPERF_NO_EXTENSIONS="1") == ["python", *TWINS]


WARNINGS = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import acgsperf
from acgsperf import dispatch
modules = {{getattr(dispatch, name).__module__ for name in {NAMES!r}}}
texts = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
print(json.dumps([sorted(modules), texts]))
"""


@pytest.mark.parametrize("missing", COMPILED)
def test_a_missing_extension_falls_back_to_all_twins_with_a_warning(missing):
    modules, (text,) = said(f"sys.modules[{missing!r}] = None\n{WARNINGS}")
    assert modules == TWINS
    assert missing in text
    assert "pip install -e" in text


def test_where_the_environment_chooses_the_twins_nothing_warns():
    assert said(f"sys.modules['acgsperf._core'] = None\n{WARNINGS}", ACGSPERF_NO_EXTENSIONS="1") == [TWINS, []]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="subinterpreters with a GIL of their own need Python 3.13")
def test_an_isolated_subinterpreter_runs_the_twins_and_the_warning_says_why(tmp_path):
    answer = tmp_path / "answer"
    inner = f"""
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import acgsperf
cache = acgsperf.LRUCache(2)
cache["a"] = 1
with open({str(answer)!r}, "w") as file:
    json.dump([acgsperf.IMPLEMENTATION, cache["a"], *(str(warning.message) for warning in caught)], file)
"""
    code = f"""
import _interpreters
path = "import sys; sys.path[:] = " + repr(sys.path)
failure = _interpreters.exec(_interpreters.create("isolated"), path + {inner!r})
print(json.dumps(failure and failure.formatted), flush=True)
# The end of a subinterpreter is none of this test's business.
import os
os._exit(0)
"""
    assert said(code) is None
    implementation, value, text = json.loads(answer.read_text())
    assert (implementation, value) == ("python", 1)
    assert "does not support loading in subinterpreters" in text
    assert "use the package in the main interpreter" in text


@pytest.mark.skipif(os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1", reason="built without its extensions on purpose")
@pytest.mark.parametrize("value", ["", "0"])
def test_otherwise_the_compiled_modules_run(value):
    assert said(WHERE, ACGSPERF_NO_EXTENSIONS=value) == ["c", *COMPILED]


def test_the_implementation_is_that_of_the_classes_and_functions():
    modules = {"c": COMPILED, "python": TWINS}[acgsperf.IMPLEMENTATION]
    assert {getattr(dispatch, name).__module__ for name in NAMES} == set(modules)


def test_all_is_sorted_complete_and_there():
    assert acgsperf.__all__ == sorted(acgsperf.__all__, key=lambda name: (not name.isupper(), name))
    # What is imported when it is first asked for is there from now on.
    values = {name: getattr(acgsperf, name) for name in acgsperf.__all__}
    own = {"TYPE_CHECKING", "import_module"}
    public = {name for name, value in vars(acgsperf).items() if not name.startswith("_") and not _is_module(value)}
    assert public - own == set(values)
    internal = {"Dialogue", "HitFinder", "MethodGuard", "Predictor", "ReadPath", "ReadQueue", "RecordingCache"}
    internal |= {"RequestCounters", "answer", "changed_type", "has_long_array", "mget", "unseal_many"}
    assert set(dispatch.__all__) - internal <= public


def test_the_version_is_that_of_the_distribution():
    assert acgsperf.__version__ == importlib.metadata.version("acgsperf")


def _is_module(value):
    return isinstance(value, type(sys))


def test_an_import_brings_neither_servers_nor_the_command_line():
    loaded = said("import acgsperf\nprint(json.dumps(sorted(sys.modules)))")
    unwanted = {"asyncpg", "redis", "typer", "rich", "acgsperf.workbench", "acgsperf.cli"}
    # Each takes as long to import as the rest of the package.
    unwanted |= {"asyncio", "importlib.metadata", "msgspec"}
    # These take a fourth of the time, and a program that uses only the core needs none of them.
    unwanted |= {"hashlib", "acgsperf.addresses", "acgsperf.settings", "acgsperf.validator"}
    assert unwanted.isdisjoint(loaded)
