"""What may be awaited, and need not be."""

import inspect
from typing import Any

__all__ = ["settled"]


async def settled(value: Any) -> Any:
    """The value, awaited where it can be: callers put clients and pools of their own in the place of real ones."""
    return await value if inspect.isawaitable(value) else value
