"""The keys of cached functions."""

import inspect
import uuid
from collections.abc import Callable
from types import CellType, CodeType
from typing import Any, Final
from weakref import WeakKeyDictionary

from acgsperf.fingerprint import fingerprint

__all__ = ["Closures", "key_maker"]

_EMPTY: Final = object()


def key_maker(function: Callable[..., Any]) -> Callable[..., str]:
    """A function that makes the key of a call: the function's name and the fingerprint of its arguments.

    Calls that bind the same arguments have the same key, however they are written. A method's `self` counts as what
    it is equal to in this process, for nobody can say what it would be in another; a class counts by its name.

    Raises:
        TypeError: when `function` is not a coroutine function. The key of a call raises it for arguments that are not
            JSON-like, and for a `self` that cannot be hashed or weakly referenced.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"only coroutine functions can be cached, not {function!r}")
    signature = inspect.signature(function)
    name: Final = f"{function.__module__}.{function.__qualname__}"
    first = next(iter(signature.parameters), None)
    owner: Final = first if first in ("self", "cls") else None
    instances: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def key_of(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if owner is not None:
            held = arguments[owner]
            if isinstance(held, type):
                arguments[owner] = f"{held.__module__}.{held.__qualname__}"
            else:
                arguments[owner] = instances.setdefault(held, uuid.uuid4().hex)
        return f"{name}:{fingerprint(arguments)}"

    return key_of


class Closures:
    """The functions that are cached under their names: two that differ in their closures alone would share results."""

    def __init__(self) -> None:
        # By name as well, for what a decorator has made of functions has one code for them all.
        self._closures: WeakKeyDictionary[CodeType, dict[str, list[object]]] = WeakKeyDictionary()

    def check(self, function: Callable[..., Any]) -> None:
        """Note a function.

        Raises:
            ValueError: when there is another of the same name and code, with other variables.
        """
        held = [_contents(cell) for cell in function.__closure__ or ()]
        name = f"{function.__module__}.{function.__qualname__}"
        known = self._closures.setdefault(function.__code__, {}).setdefault(name, held)
        if any(one is not other for one, other in zip(known, held, strict=True)):
            raise ValueError(
                f"{function.__qualname__} is cached already, with other variables around it: `key` must tell them apart"
            )


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        # Not assigned yet: the function itself, for example.
        return _EMPTY
