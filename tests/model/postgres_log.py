"""PostgreSQL as a backplane: whether a listener can miss a row that commits late.

Transactions take numbers when they begin to write and commit in any order. A listener hears NOTIFY and then reads the
rows from its position on. At rest it must have seen every row that was committed after it took its first position.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

RULES: Final = {
    "xmin position": "the position is the oldest transaction in progress, not the greatest number committed",
    "listen first": "LISTEN comes before the first position is taken",
    "one snapshot": "the rows and the next position come from one snapshot, not from two statements",
    "duplicates": "rows that were read before are dropped by their id",
}


class Listener(NamedTuple):
    listening: bool = False
    position: int | None = None
    notified: bool = False
    seen: tuple[int, ...] = ()
    applied: tuple[int, ...] = ()
    halfway: bool = False  # the rows are read, the next position is not


class State(NamedTuple):
    # The state of each transaction, and its number once it has one: idle, open or committed.
    transactions: tuple[tuple[str, int], ...]
    next: int = 1
    # Committed before the listener took its position: it need not see them.
    before: tuple[int, ...] = ()
    listener: Listener = Listener()


class PostgresLog:
    def __init__(self, transactions: int, *off: str) -> None:
        self.count = transactions
        self.rules = {rule: rule not in off for rule in RULES}

    def initial(self) -> State:
        return State((("idle", 0),) * self.count)

    def first_position(self, state: State) -> int:
        """`pg_snapshot_xmin(pg_current_snapshot())`, or the number after the greatest that is committed."""
        numbers = [number for status, number in state.transactions if status == "open"]
        if self.rules["xmin position"] and numbers:
            return min(numbers)
        committed = [number for status, number in state.transactions if status == "committed"]
        return state.next if self.rules["xmin position"] else max(committed, default=0) + 1

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        listener = state.listener
        for i, (status, number) in enumerate(state.transactions):
            before, after = state.transactions[:i], state.transactions[i + 1 :]
            if status == "idle":
                begun = (*before, ("open", state.next), *after)
                opened = state._replace(transactions=begun, next=state.next + 1)
                yield f"transaction {i} takes number {state.next}", opened
            elif status == "open":
                ended = state._replace(transactions=(*before, ("committed", number), *after))
                if listener.listening:
                    ended = ended._replace(listener=listener._replace(notified=True))
                yield f"transaction {i}, number {number}, commits", ended
        if not listener.listening and (self.rules["listen first"] or listener.position is not None):
            yield "the listener sends LISTEN", state._replace(listener=listener._replace(listening=True))
        if listener.position is None and (listener.listening or not self.rules["listen first"]):
            position = self.first_position(state)
            committed = tuple(number for status, number in state.transactions if status == "committed")
            started = state._replace(before=committed, listener=listener._replace(position=position))
            yield f"the listener starts at {position}", started
        if listener.halfway:
            moved = listener._replace(halfway=False, position=self.first_position(state))
            yield "the listener takes its next position", state._replace(listener=moved)
        elif listener.notified and listener.position is not None:
            yield "the listener reads", self.read(state, listener)

    def read(self, state: State, listener: Listener) -> State:
        rows = sorted(
            number
            for status, number in state.transactions
            if status == "committed" and listener.position is not None and number >= listener.position
        )
        fresh = tuple(row for row in rows if row not in listener.seen or not self.rules["duplicates"])
        return state._replace(
            listener=listener._replace(
                position=self.first_position(state) if self.rules["one snapshot"] else listener.position,
                halfway=not self.rules["one snapshot"],
                notified=False,
                seen=tuple(sorted({*listener.seen, *rows})),
                applied=tuple(sorted((*listener.applied, *fresh))),
            )
        )

    def violation(self, state: State) -> str | None:
        listener = state.listener
        if len(set(listener.applied)) < len(listener.applied):
            return f"a row is applied twice: {listener.applied}"
        if listener.notified or listener.halfway or not listener.listening:
            return None
        if any(status != "committed" for status, _ in state.transactions):
            return None
        missed = {number for _, number in state.transactions} - {*state.before, *listener.seen}
        return f"R2: at rest the listener has missed row {min(missed)}" if missed and listener.position else None

    def describe(self, state: State) -> str:
        numbers = ", ".join(f"{status} {number or ''}".strip() for status, number in state.transactions)
        return f"transactions: {numbers} | position {state.listener.position} | read {state.listener.seen}"
