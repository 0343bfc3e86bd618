"""The surface of the modules that this package replaces: the same names, on the compiled core.

Change an import path, or call `install` once before anything imports the former names.
"""

import logging
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Final

from acgsperf.workbench.benchmark import PerformanceBenchmark

__all__ = ["PerformanceBenchmark", "install"]

_REPLACEMENTS: Final = {
    "services.shared.constitutional.validation": "validation",
    "services.shared.performance.ultra_fast_cache": "ultra_fast_cache",
    "services.shared.database.ultra_fast_connection_pool": "ultra_fast_connection_pool",
    "services.shared.performance.performance_integration_service": "performance_integration_service",
}

_log = logging.getLogger(__name__)


def install() -> None:
    """Put the replacements in the place of the replaced modules: the same module objects, under the former names too.

    Parent packages that exist are imported and kept; those that do not are made. May be called again.
    """
    modules = {name: import_module(f"{__name__}.{own}") for name, own in _REPLACEMENTS.items()}
    for name, module in modules.items():
        if sys.modules.get(name, module) is not module:
            _log.warning("%s was imported before it was replaced: what took names from it keeps the former ones", name)
    # All before any parent is imported, for its own code may import them.
    sys.modules.update(modules)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(_package(parent), child, module)


def _package(name: str) -> ModuleType:
    """A package of this name: the one that can be imported, or a new and empty one."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # It is there, and needs something that is not.
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
    parent, _, child = name.rpartition(".")
    above = _package(parent) if parent else None
    package = sys.modules[name] = module_from_spec(ModuleSpec(name, None, is_package=True))
    if above is not None:
        setattr(above, child, package)
    return package
