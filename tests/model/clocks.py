"""How long an entry lives (T1): the times in envelopes are the server's, and no process's wall clock counts.

A writes an entry that lives LIFE ticks to L3. B copies it to L2, reads it from there, and keeps it in L1. The clocks of
the two servers differ, and somebody sets the wall clock of A or B.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

RULES: Final = {
    "server time": "times in envelopes are the server's, not the wall clock of the process that writes or reads",
    "recompute": "an entry that is copied to another tier gets that server's times",
    "monotonic": "L1's deadlines are monotonic",
}

LIFE: Final = 2
L2_OFFSET: Final = 3
STEPS: Final = (-2, 2)


class State(NamedTuple):
    now: int = 0
    walls: tuple[int, int] = (0, 0)  # how far the wall clocks of A and B are off
    sets: int = 1  # how often a wall clock may still be set
    due: int | None = None  # when the entry must stop to answer, in true time
    l3: int | None = None  # when it expires, by the clock that the tier's rule names
    l2: int | None = None
    l1: int | None = None


class Clocks:
    def __init__(self, *off: str) -> None:
        self.rules = {rule: rule not in off for rule in RULES}

    def initial(self) -> State:
        return State()

    def clock(self, state: State, place: str, process: int) -> int:
        """What the process takes for the time when it compares an expiry time of `place`."""
        if place == "L1":
            return state.now + (0 if self.rules["monotonic"] else state.walls[process])
        if not self.rules["server time"]:
            return state.now + state.walls[process]
        return state.now + (L2_OFFSET if place == "L2" else 0)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.due is None:
            expires = self.clock(state, "L3", 0) + LIFE
            yield "A writes the entry to L3", state._replace(due=state.now + LIFE, l3=expires)
        if state.l3 is not None and state.l2 is None and self.answers(state, "L3", state.l3):
            remaining = state.l3 - self.clock(state, "L3", 1)
            expires = self.clock(state, "L2", 1) + remaining if self.rules["recompute"] else state.l3
            yield "B copies it to L2", state._replace(l2=expires)
        if state.l2 is not None and state.l1 is None and self.answers(state, "L2", state.l2):
            remaining = state.l2 - self.clock(state, "L2", 1)
            yield "B reads it from L2 and keeps it in L1", state._replace(l1=self.clock(state, "L1", 1) + remaining)
        if state.now < LIFE + 3:
            yield f"tick {state.now + 1}", state._replace(now=state.now + 1)
        if state.sets:
            for by in STEPS:
                a, b = state.walls
                yield f"A's wall clock is set by {by}", state._replace(walls=(a + by, b), sets=state.sets - 1)
                yield f"B's wall clock is set by {by}", state._replace(walls=(a, b + by), sets=state.sets - 1)

    def answers(self, state: State, place: str, expires: int) -> bool:
        return self.clock(state, place, 1) < expires

    def violation(self, state: State) -> str | None:
        for place, expires in (("L3", state.l3), ("L2", state.l2), ("L1", state.l1)):
            if expires is None or state.due is None:
                continue
            answers = self.answers(state, place, expires)
            if answers != (state.now < state.due):
                what = "answers" if answers else "no longer answers"
                return f"T1: the entry lives until tick {state.due}; in tick {state.now} {place} {what}"
        return None

    def describe(self, state: State) -> str:
        return f"tick {state.now} | wall clocks {state.walls} | expires: L3 {state.l3}, L2 {state.l2}, L1 {state.l1}"
