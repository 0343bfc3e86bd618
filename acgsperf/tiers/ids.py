"""Ids of writes and loads, by which processes recognize what they have written."""

import os
from random import Random
from typing import Final

__all__ = ["new_id"]

# Not the generator of `random`: an application that seeds it in each worker would make the same ids in all of them.
_random: Final = Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_id() -> bytes:
    """Return 8 random bytes. They tell writes apart and are no secret."""
    return _random.getrandbits(64).to_bytes(8, "big")
