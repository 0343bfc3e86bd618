"""Drop-in replacements for four ACGS-2 modules: the same names, on the compiled core.

To use them, change an import path, or call `install` once before anything imports the former names.
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
    """Register the replacements under the former module names.

    Call it before anything imports the former names. The modules are the same objects under both names. Parent packages
    that exist are imported and kept; missing ones are created. You may call it again.
    """
    modules = {name: import_module(f"{__name__}.{own}") for name, own in _REPLACEMENTS.items()}
    for name, module in modules.items():
        if sys.modules.get(name, module) is not module:
            _log.warning("%s was imported before install(); modules that imported from it keep the old objects", name)
    # Before any parent package is imported, because its code may import the replaced modules.
    sys.modules.update(modules)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(_package(parent), child, module)


def _package(name: str) -> ModuleType:
    """Return the package with this name: import it, or create an empty one if it does not exist."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # The package exists, and something that it imports does not.
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
    parent, _, child = name.rpartition(".")
    above = _package(parent) if parent else None
    package = sys.modules[name] = module_from_spec(ModuleSpec(name, None, is_package=True))
    if above is not None:
        setattr(above, child, package)
    return package
