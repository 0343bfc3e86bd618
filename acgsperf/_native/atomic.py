"""How the pure-Python twins stay consistent without a lock: every change of a shared object is one atomic step.

CPython runs other code on a thread (a signal handler, a finalizer, another thread) when a function is called, when a
jump goes backwards and, up to 3.11, when a container is allocated. An `atomic` function does nothing of the kind
between its first and its last access to the object, and drops no reference of the user's. So nothing runs in the middle
of it. `tests/core/test_atomic.py` proves it from the bytecode.

A lock would not work. A lock that is not reentrant blocks a finalizer that uses the object whose change it interrupts.
With a reentrant lock, that finalizer sees a half-changed object. Either lock stays held while a finalizer or an
`__eq__` waits for another thread, and that thread may be waiting for the lock.

An interpreter that runs threads in parallel (CPython without the GIL), or switches between any two instructions (PyPy),
needs a lock nevertheless. It is one lock for all objects, so that two objects that use each other cannot deadlock.

A trace or profile function written in Python, such as a debugger's, runs between any two lines or calls. An operation
is not atomic if that function uses the same object, or lets another thread use it. It may then raise a KeyError.
"""

import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Final, NoReturn, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

NEEDS_LOCK: Final = sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)()
_LOCK: Final = threading.RLock()


def _locked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _LOCK:
            return function(*args, **kwargs)

    return call


def exclusive(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that must not run at the same time as an atomic one of another thread."""
    return _locked(function) if NEEDS_LOCK else function


def atomic(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that nothing can interrupt between its first and its last access to an object.

    In between it calls nothing, loops nowhere, allocates no container, and drops no last reference to anything of the
    user's: the caller still holds what it replaces.
    """
    function.__dict__["atomic"] = True
    return exclusive(function)


_FINISHED: Final[set[type]] = set()


class Immutable(type):
    """The type of classes whose attributes cannot be set or deleted after `finish`."""

    def __setattr__(cls, name: str, value: object) -> None:
        cls._check(name)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        cls._check(name)
        super().__delattr__(name)

    def _check(cls, name: str) -> None:
        if cls in _FINISHED:
            raise TypeError(f"cannot set {name!r} attribute of immutable type '{qualified(cls)}'")


class FinalType(metaclass=Immutable):
    """Refuses subclasses of its subclasses, and pickling, as the compiled types do."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        if FinalType not in cls.__bases__:
            raise TypeError(f"type '{qualified(cls.__mro__[1])}' is not an acceptable base type")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")


def qualified(kind: type) -> str:
    """The name of a type in the messages of compiled code: without the module if that is `builtins`."""
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def finish(kind: Immutable, module: str) -> None:
    """Give a class the module of its twin, and signatures without annotations; nothing can change it from now on."""
    kind.__module__ = module
    for attribute in vars(kind).values():
        # What a static method, a class method or a decorator holds.
        function = getattr(attribute, "__func__", attribute)
        while isinstance(function, FunctionType):
            function.__annotations__ = {}
            function = getattr(function, "__wrapped__", None)
    _FINISHED.add(kind)
