"""An explicit-state model checker: breadth-first search over hashable states.

`check(model)` visits every state that `model` can reach and returns a `Result`. If a state violates an invariant, the
result holds the shortest trace from the initial state to it: the search is breadth-first, so no shorter trace exists.
"""

import gc
import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """What `check` needs to know of a state machine."""

    def initial(self) -> S:
        """Return the state to start from."""
        ...

    def steps(self, state: S) -> Iterable[tuple[str, S]]:
        """Yield what can happen next, as pairs of a label and the state that follows."""
        ...

    def violation(self, state: S) -> str | None:
        """Return which invariant `state` violates and how, or None."""
        ...

    def describe(self, state: S) -> str:
        """Return one line about `state` for a trace."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    states: int
    steps: int
    seconds: float
    violation: str | None = None
    trace: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = True

    def __str__(self) -> str:
        lines = [f"{self.states:,} states, {self.steps:,} steps, {self.seconds:.1f} s"]
        if not self.complete:
            lines.append("stopped at the limit of states")
        if self.violation:
            width = max(len(label) for label, _ in self.trace)
            lines += [f"{i:3}  {label:{width}}  {after}" for i, (label, after) in enumerate(self.trace)]
            lines.append(f"  => {self.violation}")
        return "\n".join(lines)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Save a third of the time: a state has no cycles, and there are many."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_garbage_collection()
def check(model: Model[S], limit: int = 2_000_000) -> Result:
    """Search the states of `model` breadth-first, until an invariant is violated or nothing is left.

    Args:
        model: The state machine and its invariants.
        limit: Stop after this many states; `Result.complete` is then False.
    """
    began = time.perf_counter()
    initial = model.initial()
    parents: dict[S, S | None] = {initial: None}
    level = [initial]
    steps = 0

    def result(broken: S | None = None, complete: bool = True) -> Result:
        seconds = time.perf_counter() - began
        if broken is None:
            return Result(len(parents), steps, seconds, complete=complete)
        return Result(len(parents), steps, seconds, model.violation(broken), trace(model, parents, broken))

    if model.violation(initial):
        return result(initial)
    while level:
        following: list[S] = []
        for state in level:
            for _, after in model.steps(state):
                steps += 1
                if after not in parents:
                    parents[after] = state
                    if model.violation(after):
                        return result(after)
                    following.append(after)
        if len(parents) > limit:
            return result(complete=False)
        level = following
    return result()


def trace(model: Model[S], parents: dict[S, S | None], state: S) -> list[tuple[str, str]]:
    """Return the labels and descriptions from the initial state to `state`."""
    path = [state]
    while (parent := parents[path[-1]]) is not None:
        path.append(parent)
    path.reverse()
    lines = [("start", model.describe(path[0]))]
    for before, after in pairwise(path):
        label = next(label for label, following in model.steps(before) if following == after)
        lines.append((label, model.describe(after)))
    return lines
