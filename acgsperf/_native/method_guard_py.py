"""`MethodGuard` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

from typing import Self

from acgsperf._native.atomic import FinalType


class MethodGuard(FinalType):
    """Tells whether a class still has the method that it has now."""

    __slots__ = ("_method", "_name", "_owner")

    _owner: type
    _name: str
    _method: object

    def __new__(cls, owner: type, name: str) -> Self:
        for value, kind in ((owner, type), (name, str)):
            if not isinstance(value, kind):
                raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        self = super().__new__(cls)
        self._owner, self._name, self._method = owner, name, getattr(owner, name)
        return self

    def holds(self, instance: object, /) -> bool:
        """Return whether `instance` is of exactly this class, and the class still has the method."""
        return type(instance) is self._owner and getattr(self._owner, self._name, None) is self._method
