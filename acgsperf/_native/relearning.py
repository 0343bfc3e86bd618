"""Takes what a predictor has learned to another process.

The tables of a predictor have the keys that follow, and hashes of the keys before. The hashes differ in each process.
Therefore the keys before are searched among those that follow others: nearly all keys do.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

ClassCounts = tuple[int, int, bool]


class Learned(NamedTuple):
    """What a predictor has learned. Numbers are places in `keys`.

    Attributes:
        keys: all keys.
        singles: a key, the key that follows it, and how often that has come true, up to 3.
        pairs: the same for two keys.
        classes: by class, the resolved predictions, how many of them were right, and whether it is active.
    """

    keys: list[str]
    singles: list[tuple[int, int, int]]
    pairs: list[tuple[int, int, int, int]]
    classes: list[ClassCounts]


class Tables(Protocol):
    """What is needed of a predictor."""

    def _successors(self) -> list[str]: ...
    def _successor(self, before: str | None, last: str, /) -> tuple[str, int] | None: ...
    def _learn(self, before: str | None, last: str, key: str, count: int, /) -> None: ...
    def _classes(self) -> list[ClassCounts]: ...
    def _set_classes(self, classes: Sequence[ClassCounts], /) -> None: ...


def learned(tables: Tables) -> Learned:
    """Return what a predictor has learned."""
    keys = list(dict.fromkeys(tables._successors()))
    places = {key: place for place, key in enumerate(keys)}
    singles, pairs = [], []
    # A dictionary, because its order is that in which they were found.
    steps: dict[tuple[int, int], None] = {}
    for place, key in enumerate(keys):
        found = tables._successor(None, key)
        if found is not None and found[0] in places:
            following = places[found[0]]
            singles.append((place, following, found[1]))
            steps[place, following] = None
    waiting = list(steps)
    # It grows: what follows two keys is a step of its own.
    for before, last in waiting:
        found = tables._successor(keys[before], keys[last])
        if found is None or found[0] not in places:
            continue
        following = places[found[0]]
        pairs.append((before, last, following, found[1]))
        if (last, following) not in steps:
            steps[last, following] = None
            waiting.append((last, following))
    return Learned(keys, singles, pairs, tables._classes())


def relearn(tables: Tables, saved: Learned) -> None:
    """Let a new predictor continue with what another one has learned."""
    keys = saved.keys
    for last, following, count in saved.singles:
        tables._learn(None, keys[last], keys[following], count)
    for before, last, following, count in saved.pairs:
        tables._learn(keys[before], keys[last], keys[following], count)
    tables._set_classes(saved.classes)
