"""The objects of this process that count, for exporters: when one ends, and when the process forks.

Caches, tiers, pools and so on know this module, and not `acgsperf.metrics`, which knows all of them.
"""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, Final
from weakref import WeakValueDictionary

__all__ = ["note", "objects", "read_at_end"]

_EXPORTERS: Final = "acgsperf.metrics.process"
# By their ids, because an object of the user may not be hashable.
objects: Final[WeakValueDictionary[int, object]] = WeakValueDictionary()
# `acgsperf.metrics` sets it. Called with an object that has ended, such as a closed pool.
read_last: Callable[[Any], object] | None = None


def note(*counting: object) -> None:
    """Remember objects that count: in a forked child, only what they count after the fork is exported.

    Args:
        counting: the objects. None is ignored, and so is an object that cannot have weak references.
    """
    for each in counting:
        if each is not None:
            with suppress(TypeError):
                objects[id(each)] = each


@contextmanager
def read_at_end(counting: object) -> Generator[None]:
    """Let exporters read an object for the last time at the end of the block, in which it is closed."""
    try:
        yield
    finally:
        if read_last is not None:
            read_last(counting)


def _call_at_fork(name: str) -> None:
    # Imported late: an object may exist before, and an exporter may be created in the child only.
    if objects or _EXPORTERS in sys.modules:
        getattr(import_module(_EXPORTERS), name)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=partial(_call_at_fork, "before"),
        after_in_parent=partial(_call_at_fork, "after_in_parent"),
        after_in_child=partial(_call_at_fork, "after_in_child"),
    )
