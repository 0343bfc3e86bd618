"""Awaits a value if it is awaitable."""

import inspect
from typing import Any

__all__ = ["maybe_await"]


async def maybe_await(value: Any) -> Any:
    """Return the value, awaited if it is awaitable.

    Callers replace clients and pools by their own, whose methods may be coroutine functions or ordinary functions.
    """
    return await value if inspect.isawaitable(value) else value
