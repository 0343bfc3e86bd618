"""The protocol as a state machine: what the tiers do, which steps are possible, and the invariants."""

from collections.abc import Iterator

from . import environment, reading, writing
from .state import FOREVER, LAG, LEASE, REFUSED, Cell, G, Process, Record, Rules, Scenario, State, Task

Steps = Iterator[tuple[str, State]]


class Machine:
    """The protocol in one scenario, with the named rules switched off."""

    def __init__(self, scenario: Scenario, *off: str) -> None:
        self.scenario = scenario
        self.rules = Rules(*off)
        self.tiers = scenario.tiers
        self.order = tuple(tier for tier in ((3, 2) if self.rules["L3 first"] else (2, 3)) if tier in self.tiers)
        self.budget = {name: i for i, name in enumerate(scenario.budget)}
        self.names = [name for name, _ in scenario.tasks]
        self.programs = [program for _, program in scenario.tasks]
        self.process_of = [scenario.processes.index(name[0]) for name in self.names]
        # By the id that an operation gives to what it writes.
        self.task_of = {f"{name}{at}": i for i, name in enumerate(self.names) for at in range(len(self.programs[i]))}
        everybody = range(len(scenario.processes))
        self.tasks_of = {p: [i for i, q in enumerate(self.process_of) if q == p] for p in everybody}

    def initial(self) -> State:
        scenario, filled = self.scenario, self.scenario.filled
        first = Cell("entry", "x", 1, 0)
        token2, token3 = ("t2", "t3") if scenario.tagged else (None, None)
        first2 = None if scenario.untagged else token2
        first3 = None if scenario.untagged or not self.rules["tokens in L3"] else token3
        hello = self.rules["hello"] and scenario.recording
        processes = tuple(
            Process(l1=first._replace(token=first2) if name in filled else None, position=int(hello))
            for name in scenario.processes
        )
        return State(
            processes,
            tuple(Task() for _ in scenario.tasks),
            tuple(scenario.budget.values()),
            l2=first._replace(token=first2) if 2 in filled else None,
            l3=first._replace(token=first3) if 3 in filled else None,
            token2=token2,
            token3=token3,
            log=(Record(0, "hello"),) if hello else (),
        )

    # What the tiers do

    def gone(self, expires: int) -> int:
        """Until when a value that expires so is physically there."""
        return min(FOREVER, expires + (G if self.rules["id lives G longer"] else 0))

    def readable(self, state: State, cell: Cell | None, tier: int) -> bool:
        if cell is None or cell.kind != "entry" or cell.expires < state.now:
            return False
        return cell.token is None or cell.token == (state.token2 if tier == 2 else state.token3)

    def put(self, state: State, tier: int, cell: Cell | None) -> State:
        """Set the key of `tier`, and notice if that undoes an acknowledged write."""
        old = state.l2 if tier == 2 else state.l3
        acknowledged = state.acknowledged2 if tier == 2 else state.acknowledged3
        if old is not None and cell is not None and cell.kind != "marker":
            before, after = self.rank(old.version), self.rank(cell.version)
            if old.explicit and before > after and before <= self.rank(acknowledged):
                state = state._replace(broken=f"W1: L{tier} had {old}, acknowledged, and now has the older {cell}")
        return state._replace(l2=cell) if tier == 2 else state._replace(l3=cell)

    def write(self, state: State, tier: int, cell: Cell) -> tuple[State, int | None]:
        """Carry out an explicit write. Return the stamp to exceed if the tier has something newer."""
        old = state.l2 if tier == 2 else state.l3
        if old is not None and old.id != cell.id and old.stamp >= cell.stamp and self.rules["stamps"]:
            return state, old.stamp
        return self.put(state, tier, cell), None

    def forget_tag(self, state: State, tier: int, name: str, refused: bool = False) -> State:
        """Carry out an invalidation of the tag. `refused`: L3 has not done so, and its rows do not answer any more."""
        if tier == 3:
            # The token is replaced: PostgreSQL has to lock something.
            return state._replace(token3=f"t3-{name}")
        token = f"{REFUSED}{name}" if refused and self.rules["refused tag"] else None
        if self.rules["count random"]:
            return state._replace(token2=token, invalidations=None)
        return state._replace(token2=token, invalidations=str(int(state.invalidations or "0") + 1))

    def token(self, state: State, tier: int, name: str) -> tuple[State, str]:
        """Return the token of the tag in a tier, which creates it if it is missing."""
        token = (state.token2 if tier == 2 else state.token3) or f"t{tier}-{name}"
        return (state._replace(token2=token) if tier == 2 else state._replace(token3=token)), token

    def acknowledge(self, state: State, tier: int, version: int) -> State:
        if tier == 2:
            return state._replace(acknowledged2=max(version, state.acknowledged2))
        return state._replace(acknowledged3=max(version, state.acknowledged3))

    # What processes do

    def set_task(self, state: State, i: int, task: Task) -> State:
        return state._replace(tasks=(*state.tasks[:i], task, *state.tasks[i + 1 :]))

    def set_process(self, state: State, p: int, process: Process) -> State:
        return state._replace(processes=(*state.processes[:p], process, *state.processes[p + 1 :]))

    def supersede(self, state: State, p: int, but: int = -1) -> State:
        """Mark what the tasks of a process have in flight: they answer with it and do not keep it."""
        for i in self.tasks_of[p]:
            task = state.tasks[i]
            if i != but and task.phase and task.current:
                state = self.set_task(state, i, task._replace(current=False))
        return state

    def drop(self, state: State, p: int, named: str | None) -> State:
        """Drop the key from L1 of a process, unless it holds the write with this id."""
        process = state.processes[p]
        if process.l1 is None or process.l1.id == named:
            return state
        return self.set_process(state, p, process._replace(l1=None))

    def in_flight(self, state: State, p: int) -> bool:
        """Whether a write of this process is in flight."""
        return any(
            state.tasks[i].phase and self.programs[i][state.tasks[i].at] in ("set", "delete", "invalidate")
            for i in self.tasks_of[p]
        )

    def spend(self, state: State, what: str) -> State | None:
        """Return the state with one less of `what` in the budget, or None if nothing is left of it."""
        i = self.budget.get(what)
        if i is None or not state.budget[i]:
            return None
        budget = state.budget
        return state._replace(budget=(*budget[:i], budget[i] - 1, *budget[i + 1 :]))

    # The invariants

    def rank(self, version: int) -> int:
        """Writers that race are of one rank: whichever wins undoes nothing."""
        return min(version, 1) if self.scenario.racing else version

    def floor(self, state: State) -> int:
        """The newest write that every tier has acknowledged: nothing older may be read from a tier."""
        if self.tiers == (2, 3):
            return self.rank(min(state.acknowledged2, state.acknowledged3))
        return self.rank(state.acknowledged2 if self.tiers == (2,) else state.acknowledged3)

    def answers(self, state: State, process: Process) -> bool:
        """Whether L1 answers from its entry."""
        if process.l1 is None or process.l1.expires < state.now or not process.verified:
            return False
        return not self.rules["lease"] or not self.scenario.recording or state.now <= process.contact + LEASE

    def violation(self, state: State) -> str | None:
        if state.broken:
            return state.broken
        floor = self.floor(state)
        if floor:
            for tier, cell in ((2, state.l2), (3, state.l3)):
                if cell is not None and self.rank(cell.version) < floor and self.readable(state, cell, tier):
                    return f"W1: every tier has acknowledged v{floor}, and L{tier} has {cell}"
        for name, process in zip(self.scenario.processes, state.processes, strict=True):
            if (cell := process.l1) is not None and self.answers(state, process):
                if self.rank(cell.version) < self.rank(process.heard):
                    return f"R1: {name} has the record of v{process.heard}, and its L1 answers {cell}"
                if self.rank(cell.version) < state.floors[0]:
                    return (
                        f"R2: {LAG + 1} ticks ago v{state.floors[0]} was acknowledged, and L1 of {name} answers {cell}"
                    )
        return self.disagreement(state, floor) if self.at_rest(state) else None

    def at_rest(self, state: State) -> bool:
        """Whether everything has ended, and every process is level with the log."""
        if state.late or state.repairs or state.unpublished:
            return False
        if any(task.at < len(program) for task, program in zip(state.tasks, self.programs, strict=True)):
            return False
        end = len(state.log)
        return all(
            p.demoting is None and p.position == end and p.contact == state.now and p.asked < 0 and p.run == state.run
            for p in state.processes
        ) or (not self.scenario.recording)

    def disagreement(self, state: State, floor: int) -> str | None:
        """At rest: whether the tiers and L1s answer with different values, or with something too old."""
        found = {f"L{tier}": cell for tier, cell in ((2, state.l2), (3, state.l3)) if self.readable(state, cell, tier)}
        for name, process in zip(self.scenario.processes, state.processes, strict=True):
            if self.answers(state, process):
                found[f"L1 of {name}"] = process.l1
        for where, cell in found.items():
            if cell is not None and cell.id in state.failed:
                return f"W3: {cell.id} was reported as not carried out, and at rest {where} answers {cell}"
        if state.failed:
            found = {where: cell for where, cell in found.items() if not where.startswith("L1")}
        listed = ", ".join(f"{where} has {cell}" for where, cell in found.items())
        if len({cell.version for cell in found.values() if cell}) > 1:
            return f"convergence: at rest {listed}"
        ordered = self.scenario.ordered
        floor = state.promised if ordered else max(floor, self.rank(state.promised))
        if any((cell.version if ordered else self.rank(cell.version)) < floor for cell in found.values() if cell):
            return f"convergence: v{floor} is acknowledged, and at rest {listed}"
        return None

    # The steps

    def steps(self, state: State) -> Steps:
        yield from self.progress(state)
        yield from environment.steps(self, state)

    def progress(self, state: State) -> Steps:
        """The steps that the protocol takes by itself. If there is none, everything is at rest."""
        for i, task in enumerate(state.tasks):
            program = self.programs[i]
            if task.at < len(program):
                if program[task.at] in ("get", "load", "refresh"):
                    yield from reading.steps(self, state, i, task, program[task.at])
                else:
                    yield from writing.steps(self, state, i, task, program[task.at])
        yield from writing.background(self, state)
        for p in range(len(state.processes)):
            yield from environment.receive(self, state, p)
            yield from environment.demote(self, state, p)

    def describe(self, state: State) -> str:
        parts = [f"source v{state.truth}", *(f"L{n}: {getattr(state, f'l{n}') or '-'}" for n in self.tiers)]
        for name, process in zip(self.scenario.processes, state.processes, strict=True):
            if process.l1 is not None:
                silent = "" if self.answers(state, process) else " (does not answer)"
                parts.append(f"L1 {name}: {process.l1}{silent}")
        if self.scenario.tagged:
            parts.append(f"tokens {state.token2 or '-'} {state.token3 or '-'}")
        if "tick" in self.budget:
            parts.append(f"tick {state.now}")
        return " | ".join(parts)
