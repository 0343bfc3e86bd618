"""The type that a coroutine function declares for its results."""

import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from acgsperf._native.entry import Codec
from acgsperf.cache.call_keys import called_function, name_of
from acgsperf.cache.results import Loaded
from acgsperf.cache.values import codec_of

__all__ = ["codec_of_results"]

_log: Final = logging.getLogger("acgsperf.cache")
_AWAITABLE: Final = (Awaitable, Coroutine)


def codec_of_results(function: Callable[..., Any]) -> Codec | None:
    """Return the codec for the results of a coroutine function; None if its annotation names no type that has one."""
    inner = called_function(function)
    try:
        declared = _declared(inner)
        if get_origin(declared) in _AWAITABLE and not inspect.iscoroutinefunction(inner):
            declared = get_args(declared)[-1]
        return codec_of(_without_loaded(declared))
    except NameError as error:
        # The name may exist for type checkers only.
        _log.warning(
            "cached function %s: the annotation of its results cannot be evaluated (NameError: %s); they have no "
            "declared type. Import the name outside `if TYPE_CHECKING`, or pass value_type to cached()",
            *(name_of(inner), error),
        )
        return None
    except Exception:
        # An annotation may be any expression.
        return None


def _declared(function: Any) -> Any:
    """Return the type in the annotation, with its forward references resolved; `Any` if there is none."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        # The other annotations may name what exists for type checkers only.
        annotations = get_annotations(function, format=Format.FORWARDREF)
    else:
        annotations = inspect.get_annotations(function)
    if "return" not in annotations:
        return Any

    def holder() -> None: ...

    holder.__annotations__ = {"return": annotations["return"]}
    return get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)["return"]


def _without_loaded(declared: Any) -> Any:
    """Return the type of the values, for a function that may return them as `Loaded`."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Loaded:
        return arguments[0]
    if isinstance(kind := origin or declared, type) and issubclass(kind, Loaded):
        return Any
    if origin is UnionType or origin is Union:
        return Union[tuple(map(_without_loaded, arguments))]  # noqa: UP007
    return declared
