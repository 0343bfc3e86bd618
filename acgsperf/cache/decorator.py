"""The keys of cached functions."""

import inspect
import uuid
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from acgsperf.fingerprint import fingerprint

__all__ = ["key_maker"]


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
