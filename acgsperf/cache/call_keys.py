"""The key of a call: the function's name, the object that it belongs to, and the fingerprint of the arguments."""

import functools
import inspect
import uuid
import weakref
from collections.abc import Callable, Mapping
from types import CodeType, MethodType
from typing import Any, Final, NamedTuple

from acgsperf.fingerprint import fingerprint

__all__ = [
    "CallKey",
    "CallKeys",
    "Execution",
    "called_function",
    "execution_of",
    "is_coroutine_function",
    "is_same_class",
    "is_same_definition",
    "name_of",
    "takes_class",
]

_PLAIN: Final = (str, int, float, bytes, list, dict, tuple, type(None))
_OWNER_NAMES: Final = ("self", "cls")


class CallKey(NamedTuple):
    """The key of a call.

    Attributes:
        key: the key.
        local: whether no other process can make the same key, because it belongs to an instance of this process.
        of_class: the class whose name is part of the key; None for none.
    """

    key: str
    local: bool
    of_class: type | None = None


class _Call(NamedTuple):
    """The function that a callable calls, and what it passes in any case.

    Attributes:
        function: a function.
        owner: the object to which it is bound, if there is one.
        args, kwargs: arguments that are always passed.
    """

    function: Callable[..., Any]
    owner: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def is_coroutine_function(function: object) -> bool:
    """Return whether a call of an object returns a coroutine."""
    of_class = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(of_class)


def called_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a callable calls."""
    return _resolved(function).function


def name_of(function: Callable[..., Any]) -> str:
    """Return the module and the qualified name of a callable; those of its class if it is an object."""
    inner = _resolved(function).function
    return f"{inner.__module__}.{inner.__qualname__}"


def takes_class(function: Callable[..., Any]) -> bool:
    """Return whether a function of a class body has a first parameter `cls`."""
    if not inspect.isfunction(function):
        return False
    scope = function.__qualname__.rpartition(".")[0]
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return names[:1] == ("cls",) and scope != "" and not scope.endswith("<locals>")


def is_same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether one `def` was executed twice, and both functions refer to the same objects."""
    return _definition(_resolved(one).function) == _definition(_resolved(other).function)


class Execution(NamedTuple):
    """The run of a module, or of a cell of a notebook, that defined a function.

    Attributes:
        namespace: the global variables of the function; None if the function is local to another one.
        spec: the spec of its module. `importlib.reload` makes a new one.
        cell: the file of a function of `__main__`. Each version of a cell has a file of its own.
    """

    namespace: dict[str, Any] | None
    spec: Any
    cell: str | None

    def is_followed_by(self, later: "Execution") -> bool:
        """Return whether a later run replaced what this run defined: a reload, or a changed cell."""
        if self.namespace is None or self.namespace is not later.namespace:
            return False
        return self.spec is not later.spec or self.cell != later.cell or self.cell == "<stdin>"


def execution_of(function: Callable[..., Any]) -> Execution:
    """Return the run that defined a function. Call it when the function is decorated."""
    inner: Any = inspect.unwrap(called_function(function))
    if not inspect.isfunction(inner) or "<locals>" in inner.__qualname__:
        return Execution(None, None, None)
    namespace = inner.__globals__
    cell = inner.__code__.co_filename if namespace.get("__name__") == "__main__" else None
    return Execution(namespace, namespace.get("__spec__"), cell)


def is_same_class(one: type, other: type) -> bool:
    """Return whether one class body was executed twice, and both classes have the same attributes."""
    if one is other:
        return True
    first, second = _attributes(one), _attributes(other)
    return (
        first.keys() == second.keys()
        and len(one.__bases__) == len(other.__bases__)
        and all(map(is_same_class, one.__bases__, other.__bases__))
        and all(_is_same_attribute(value, second[name]) for name, value in first.items())
    )


def _attributes(kind: type) -> dict[str, Any]:
    """Return the attributes of a class but for those that Python or a decorator adds to describe it."""
    return {
        name: value
        for name, value in vars(kind).items()
        if inspect.isfunction(value) or not (name.startswith("__") and name.endswith("__"))
    }


def _is_same_attribute(one: Any, other: Any) -> bool:
    if isinstance(one, property) and isinstance(other, property):
        return all(map(_is_same_attribute, (one.fget, one.fset, one.fdel), (other.fget, other.fset, other.fdel)))
    # The function of a `classmethod`, a `staticmethod` and a `CachedFunction`.
    one, other = (getattr(value, "__wrapped__", value) for value in (one, other))
    if inspect.isfunction(one) and inspect.isfunction(other):
        return is_same_definition(one, other)
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except Exception:
        return False


def _definition(function: Any) -> tuple[Any, ...]:
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return (id(function),)
    cells = tuple(id(cell.cell_contents) if _is_filled(cell) else None for cell in function.__closure__ or ())
    kwdefaults = function.__kwdefaults__ or {}
    wrapped = getattr(function, "__wrapped__", None)
    return code, cells, tuple(map(id, function.__defaults__ or ())), tuple(map(id, kwdefaults.values())), id(wrapped)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _resolved(function: Any) -> _Call:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    if isinstance(function, MethodType):
        return _Call(function.__func__, function.__self__, args, kwargs)
    if not inspect.isfunction(function):
        return _Call(type(function).__call__, function, args, kwargs)
    return _Call(function, None, args, kwargs)


class CallKeys:
    """Makes the keys of the calls of one function.

    Calls that bind the same arguments have the same key, whether they pass them by position or by name. An owner is
    the object of a method: instances that are equal share a key, in this process only, because there is no way to tell
    whether they would be equal in another. A class counts by its name.

    Args:
        function: a callable.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        call = _resolved(function)
        # Not that of a wrapped function: the wrapper may pass other arguments to it.
        self._signature = inspect.signature(call.function, follow_wrapped=False)
        self._name: Final = name_of(function)
        self._revision: str | None = None
        self._fixed = call
        parameters = list(self._signature.parameters)
        self._first: Final = parameters[0] if parameters else None
        self._owners: Final = _Owners()

    def share(self, other: "CallKeys | None") -> None:
        """Make the same keys as another function from now on; with None, those that every process makes."""
        self._revision = None if other is None else other._revision

    def separate(self) -> None:
        """Make keys from now on that nobody has made before. No other process can make them."""
        self._revision = uuid.uuid4().hex

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_method: bool) -> CallKey:
        """Return the key of a call.

        Args:
            args, kwargs: the arguments, with the owner.
            is_method: whether the first argument is the owner.

        Raises:
            TypeError: if the arguments do not fit the function, or cannot be told apart.
        """
        fixed = self._fixed
        if fixed.owner is not None:
            args = (fixed.owner, *fixed.args, *args)
        else:
            args = (*fixed.args, *args)
            is_method = is_method or self._looks_like_a_method(args)
        bound = self._signature.bind(*args, **{**fixed.kwargs, **kwargs})
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        local, of_class = self._revision is not None, None
        if fixed.owner is not None or is_method:
            owner, name = args[0], str(self._first)
            first = arguments.get(name)
            if isinstance(first, tuple) and first is not owner:
                # The function takes `*args`, which begins with the owner.
                arguments[name] = first[1:]
                name = "*"
            of_class = owner if isinstance(owner, type) else None
            local = local or of_class is None
            arguments[name] = self._owners.token(owner, self._name)
        try:
            name = self._name if self._revision is None else f"{self._name}#{self._revision}"
            return CallKey(f"{name}:{fingerprint(arguments)}", local, of_class)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}; pass `key` to cached() to make the key of {self._name} yourself") from None

    def _looks_like_a_method(self, args: tuple[Any, ...]) -> bool:
        """Return whether this is a method that was called with its owner as an ordinary argument."""
        return self._first in _OWNER_NAMES and bool(args) and not isinstance(args[0], _PLAIN)


class _Owners:
    """Names for the objects to which methods are bound. An object that is deleted loses its name."""

    def __init__(self) -> None:
        self._by_value: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        # For those that are not hashable: by identity, with a reference that removes them.
        self._by_identity: dict[int, tuple[weakref.ref[Any], str]] = {}

    def token(self, owner: Any, function: str) -> str:
        if isinstance(owner, type):
            return f"{owner.__module__}.{owner.__qualname__}"
        try:
            hash(owner)
        except TypeError:
            return self._token_of_unhashable(owner, function)
        try:
            return self._by_value.get(owner) or self._by_value.setdefault(owner, uuid.uuid4().hex)
        except TypeError:
            raise _cannot_tell_apart(owner, function) from None

    def _token_of_unhashable(self, owner: Any, function: str) -> str:
        identity = id(owner)
        known = self._by_identity.get(identity)
        if known is not None and known[0]() is owner:
            return known[1]
        by_identity = self._by_identity

        def remove(reference: weakref.ref[Any]) -> None:
            # Another object may have the same identity by now.
            if (entry := by_identity.get(identity)) is not None and entry[0] is reference:
                del by_identity[identity]

        try:
            reference = weakref.ref(owner, remove)
        except TypeError:
            raise _cannot_tell_apart(owner, function) from None
        token = uuid.uuid4().hex
        by_identity[identity] = reference, token
        return token


def _cannot_tell_apart(owner: object, function: str) -> TypeError:
    return TypeError(
        f"{function} belongs to a {type(owner).__name__}, which has no weak references, so cached() cannot tell its "
        "instances apart: pass `key` to cached(), or add '__weakref__' to __slots__"
    )
