"""Chooses the compiled modules, or their pure-Python twins if the compiled ones are not there or not wanted."""

import os
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = [
    "IMPLEMENTATION",
    "AdaptiveCache",
    "BoundedCache",
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
    "changed_type",
    "fingerprint",
    "has_long_array",
    "mget",
    "request_key",
    "unseal_many",
    "weigh_bytes",
]


def _warn(reason: ImportError) -> None:
    """Warn about a missing extension, unless the interpreter has none."""
    if sys.implementation.name != "cpython":
        return
    from pathlib import Path

    folder = Path(__file__).parent.parent
    if "subinterpreter" in str(reason):
        remedy = "use the package in the main interpreter"
    elif (folder / "setup.py").exists():
        remedy = f"run `{sys.executable} -m pip install -e {folder}`, or start Python in another folder"
    else:
        remedy = "reinstall acgsperf from a wheel, or with a C compiler"
    warnings.warn(
        f"acgsperf runs its pure-Python twin, which is tens of times slower, because the C extension in {folder} "
        f"could not be imported: {reason}. To fix this, {remedy}. ACGSPERF_NO_EXTENSIONS=1 in the environment chooses "
        "the twin without this warning.",
        RuntimeWarning,
        stacklevel=2,
    )


_READER = "acgsperf._native.envelope"

# All or none, so that IMPLEMENTATION is true of all.
_pure = os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1" or find_spec("acgsperf._native.built_pure") is not None
if not _pure:
    try:
        from acgsperf._core import (
            IMPLEMENTATION,
            AdaptiveCache,
            BoundedCache,
            HashValidator,
            LatencyHistogram,
            LRUCache,
            MethodGuard,
            RecordingCache,
            RequestCounters,
            Timer,
        )
        from acgsperf._native.canonical import canonical, fingerprint, request_key
        from acgsperf._native.hits import HitFinder
        from acgsperf._native.pg_dialogue import Dialogue
        from acgsperf._native.predictor import Predictor
        from acgsperf._native.read_path import ReadPath, ReadQueue, answer
        from acgsperf._native.resp import has_long_array, mget
        from acgsperf._native.weigh import weigh_bytes

        if find_spec(_READER) is None:
            raise ModuleNotFoundError(f"No module named {_READER!r}", name=_READER)
    except ImportError as _error:
        _warn(_error)
        _pure = True

if TYPE_CHECKING:
    # The twins have the same types, so the stubs of the compiled modules describe both.
    from acgsperf._native.envelope import changed_type, unseal_many
else:
    if _pure:
        from acgsperf._native.canonical_py import canonical, fingerprint, request_key
        from acgsperf._native.core_py import (
            IMPLEMENTATION,
            AdaptiveCache,
            BoundedCache,
            HashValidator,
            LatencyHistogram,
            LRUCache,
            MethodGuard,
            RecordingCache,
            RequestCounters,
            Timer,
        )
        from acgsperf._native.hits_py import HitFinder
        from acgsperf._native.pg_dialogue_py import Dialogue
        from acgsperf._native.predictor_py import Predictor
        from acgsperf._native.read_path_py import ReadPath, ReadQueue, answer
        from acgsperf._native.resp_py import has_long_array, mget
        from acgsperf._native.weigh_py import weigh_bytes

    def __getattr__(name: str) -> object:
        """Import the reader of envelopes when a tier needs it: msgspec, which it uses, takes long to import."""
        if name not in ("changed_type", "unseal_many"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        reader = import_module(f"{_READER}_py" if _pure else _READER)
        value = globals()[name] = getattr(reader, name)
        return value
