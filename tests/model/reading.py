"""A read or a load: L1, L2, OBSERVE, L3, the loader, STORE in every tier that was observed, L1.

L1's answer is not a step: the invariants look at what L1 would answer in every state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .state import FOREVER, NOTHING, REFUSED, UNREAD, Cell, G, State, Task

if TYPE_CHECKING:
    from .protocol import Machine, Steps


def steps(m: Machine, state: State, i: int, task: Task, op: str) -> Steps:
    name = f"{m.names[i]} {op}"
    match task.phase:
        case "":
            yield from begin(m, state, i, task, op, name)
        case "observe":
            yield from observe(m, state, i, task, name)
        case "l3":
            yield from read_l3(m, state, i, task, op, name)
        case "load":
            yield f"{name}: the loader reads the source", loaded(m, state, i, task)
        case "copy":
            yield copy(m, state, i, task, name)
        case "store3":
            yield store3(m, state, i, task, name)
        case "store2":
            yield store2(m, state, i, task, name)
        case "keep":
            yield keep(m, state, i, task, name)


def begin(m: Machine, state: State, i: int, task: Task, op: str, name: str) -> Steps:
    if m.answers(state, state.processes[m.process_of[i]]) and op != "refresh":
        yield f"{name}: L1 answers", m.set_task(state, i, Task(at=task.at + 1))
        return
    task = task._replace(need=m.floor(state), time=state.now)
    if 2 not in m.tiers:
        yield from read_l3(m, state, i, task._replace(phase="l3"), op, name)
        return
    if (failed := m.spend(state, "blind L2")) is not None:
        yield f"{name}: L2 does not answer", unreadable(m, failed, i, task)
    cell = state.l2
    if m.readable(state, cell, 2) and cell is not None:
        if op == "refresh":
            task = task._replace(seen2=cell.id, stamp2=cell.stamp, token2=state.token2, phase=behind(m))
            yield f"{name}: L2 has {cell}, due for refresh", m.set_task(state, i, task)
        else:
            yield f"{name}: L2 answers {cell}", m.set_task(state, i, task._replace(phase="keep", held=cell))
        return
    task = task._replace(phase="observe", answered=True)
    if not m.rules["observe first"]:
        task = task._replace(held=load(m, state, i, task))
    elif not m.rules["observe before L3"] and 3 in m.tiers:
        task = task._replace(phase="l3", seen2=None)
    yield f"{name}: L2 has {cell or 'nothing'}, a miss", m.set_task(state, i, task)


def behind(m: Machine) -> str:
    return "l3" if 3 in m.tiers else "load"


def unreadable(m: Machine, state: State, i: int, task: Task) -> State:
    seen2 = None if m.rules["unreadable"] else UNREAD
    return m.set_task(state, i, task._replace(phase=behind(m), seen2=seen2))


def observe(m: Machine, state: State, i: int, task: Task, name: str) -> Steps:
    if (failed := m.spend(state, "blind L2")) is not None:
        yield f"{name}: OBSERVE fails", unreadable(m, failed, i, task)
    cell = state.l2
    if cell is None and m.rules["marker"]:
        cell = Cell("marker", f"m-{m.names[i]}{task.at}", 0, 0, gone=min(FOREVER, state.now + G))
        state = state._replace(l2=cell)
    if m.scenario.tagged:
        if state.invalidations is None and m.rules["count random"]:
            state = state._replace(invalidations=f"c-{m.names[i]}{task.at}")
        task = task._replace(invalidations=state.invalidations)
    if m.scenario.tagged and m.rules["token first"] and not m.scenario.unknown:
        state, token = m.token(state, 2, f"{m.names[i]}{task.at}")
        task = task._replace(token2=token)
    # A row that was read before L2 was observed is held already, if that rule is switched off.
    phase = "copy" if task.held is not None and m.rules["observe first"] else behind(m)
    seen, stamp = (cell.id, cell.stamp) if cell is not None else (NOTHING, 0)
    task = task._replace(phase=phase, seen2=seen, stamp2=stamp, time=state.now)
    yield f"{name}: OBSERVE in L2: {cell or 'nothing'}", m.set_task(state, i, task)


def read_l3(m: Machine, state: State, i: int, task: Task, op: str, name: str) -> Steps:
    without_row = "load" if op != "get" else "keep"
    if (failed := m.spend(state, "blind L3")) is not None:
        seen3 = None if m.rules["unreadable"] else UNREAD
        yield f"{name}: L3 does not answer", m.set_task(failed, i, task._replace(phase=without_row, seen3=seen3))
    row = state.l3
    task = task._replace(answered=True)
    if m.scenario.tagged and m.rules["tokens in L3"] and m.rules["token first"]:
        token = state.token3 or f"t3-{m.names[i]}{task.at}"
        state, task = state._replace(token3=token), task._replace(token3=token)
    if op != "refresh" and row is not None and m.readable(state, row, 3) and not ends_here(m, state, task, row):
        early = not m.rules["observe before L3"] and task.seen2 is None and 2 in m.tiers
        copying = 2 in m.tiers and task.seen2 is not None
        task = task._replace(held=row, phase="observe" if early else "copy" if copying else "keep")
        yield f"{name}: L3 answers {row}", m.set_task(state, i, task)
        return
    if not m.rules["observe L3 for refresh"] and op == "refresh" and task.held is None:
        task = task._replace(phase="load")
        yield f"{name}: L3 is not observed", m.set_task(state, i, task)
        return
    seen, stamp = (row.id, row.stamp) if row is not None else (NOTHING, 0)
    phase = "store3" if task.held is not None and op == "refresh" else without_row
    since = state.now if task.seen2 is None else task.time
    task = task._replace(seen3=seen, stamp3=stamp, phase=phase, time=since)
    yield f"{name}: L3 has {row or 'nothing'}, a miss", m.set_task(state, i, task)


def ends_here(m: Machine, state: State, task: Task, row: Cell) -> bool:
    """Whether L2 knows of something newer than `row`, so that the row does not answer."""
    if m.rules["refused answers"] and task.token2 is not None and task.token2.startswith(REFUSED):
        return True
    if task.seen2 is None or row.stamp >= task.stamp2:
        return False
    # In the model an id tells what kind of cell was observed.
    tombstone = state.l2 is not None and state.l2.id == task.seen2 and state.l2.kind == "tombstone"
    return m.rules["older row"] or (tombstone and m.rules["tombstone ends the walk"])


def load(m: Machine, state: State, i: int, task: Task) -> Cell:
    return Cell("entry", f"{m.names[i]}{task.at}", 0, state.truth)


def loaded(m: Machine, state: State, i: int, task: Task) -> State:
    held = task.held or load(m, state, i, task)
    if not m.rules["observe L3 for refresh"] and task.seen3 is None and 3 in m.tiers and task.seen2 is not None:
        return m.set_task(state, i, task._replace(held=held, phase="l3"))
    phase = "store3" if task.seen3 is not None else "store2" if task.seen2 is not None else "keep"
    return m.set_task(state, i, task._replace(held=held, phase=phase))


def in_time(m: Machine, state: State, task: Task) -> bool:
    return not m.rules["store limit"] or state.now <= task.time + G


def clock(m: Machine, state: State, i: int) -> int:
    """The stamp that an explicit write of this process would get now. True time advances by 10 with each version."""
    p = m.process_of[i]
    return max(state.processes[p].stamp + 1, 10 * (1 + state.truth) + m.scenario.skew.get(m.scenario.processes[p], 0))


def matches(cell: Cell | None, seen: str | None) -> bool:
    return seen == UNREAD or (cell.id if cell is not None else NOTHING) == seen


def copy(m: Machine, state: State, i: int, task: Task, name: str) -> tuple[str, State]:
    row = task.held
    assert row is not None
    tagged = row.token is not None or m.scenario.tagged
    same_count = not tagged or not m.rules["count"] or state.invalidations == task.invalidations
    if m.scenario.implicit:
        same_count = not m.rules["copy compares namespace"] or state.token2 == task.token2
    refused = state.token2 is not None and state.token2.startswith(REFUSED)
    same_count = same_count and not (tagged and refused)
    after = m.set_task(state, i, task._replace(phase="keep"))
    if m.rules["copy conditional"] and not (matches(state.l2, task.seen2) and in_time(m, state, task) and same_count):
        return f"{name}: the copy to L2 is superseded", after
    if tagged:
        token = state.token2 or f"t2-{name}"
        after, row = after._replace(token2=token), row._replace(token=token)
    if not m.rules["copy keeps stamp"]:
        row = row._replace(stamp=clock(m, state, i), id=f"{m.names[i]}{task.at}")
    after = m.set_task(after, i, task._replace(phase="keep", held=row))
    return f"{name}: copies {row} to L2", m.put(after, 2, row._replace(explicit=False))


def store3(m: Machine, state: State, i: int, task: Task, name: str) -> tuple[str, State]:
    after = m.set_task(state, i, task._replace(phase="store2" if task.seen2 is not None else "keep"))
    if m.rules["conditional"] and not (matches(state.l3, task.seen3) and in_time(m, state, task)):
        return f"{name}: the store in L3 is superseded", after
    assert task.held is not None
    token = task.token3
    if m.scenario.tagged and m.rules["tokens in L3"] and not m.rules["token first"]:
        token = state.token3 or f"t3-{name}"
        after = after._replace(token3=token)
    stamp = task.stamp3 if m.rules["inherit stamp"] else clock(m, state, i)
    row = task.held._replace(token=token, stamp=stamp)
    return f"{name}: stores {row} in L3", m.put(after, 3, row)


def store2(m: Machine, state: State, i: int, task: Task, name: str) -> tuple[str, State]:
    after = m.set_task(state, i, task._replace(phase="keep"))
    if m.rules["conditional"] and not (matches(state.l2, task.seen2) and in_time(m, state, task)):
        return f"{name}: the store in L2 is superseded", after
    assert task.held is not None
    if m.scenario.unknown and m.rules["count of loads"] and state.invalidations != task.invalidations:
        return f"{name}: the store in L2 is superseded by an invalidation", after
    token = task.token2
    if m.scenario.unknown or (m.scenario.tagged and not m.rules["token first"]):
        token = state.token2 or f"t2-{name}"
        after = after._replace(token2=token)
    stamp = task.stamp2 if m.rules["inherit stamp"] else clock(m, state, i)
    cell = task.held._replace(token=token, stamp=stamp)
    after = m.set_task(after, i, task._replace(phase="keep", held=cell))
    return f"{name}: stores {cell} in L2", m.put(after, 2, cell)


def keep(m: Machine, state: State, i: int, task: Task, name: str) -> tuple[str, State]:
    """The last step: the caller gets its answer, and L1 keeps it unless a write has superseded it."""
    held = task.held
    after = m.set_task(state, i, Task(at=task.at + 1))
    p = m.process_of[i]
    if held is None:
        return missed(m, after, p, task, name)
    if m.rank(held.version) < task.need:
        broken = f"W1: every tier had acknowledged v{task.need} before {name} began, and it answers {held}"
        return f"{name}: answers {held}", after._replace(broken=broken)
    during = m.in_flight(after, p) and (m.rules["mark during"] or m.programs[i][task.at] != "load")
    if not task.current or during:
        return f"{name}: answers {held}; L1 does not keep it", after
    process = after.processes[p]._replace(l1=held._replace(explicit=False), verified=True)
    return f"{name}: answers {held}; L1 keeps it", m.set_process(after, p, process)


def missed(m: Machine, state: State, p: int, task: Task, name: str) -> tuple[str, State]:
    """No tier has an entry. If none has answered, an unverified entry of L1 is served within its own ttl."""
    process = state.processes[p]
    cell = process.l1
    if cell is None or m.answers(state, process) or cell.expires < state.now:
        return f"{name}: a miss", state
    if task.answered and m.rules["serve unverified"]:
        if task.current and m.rules["drop unverified"] and not m.in_flight(state, p):
            state = m.set_process(state, p, process._replace(l1=None))
        return f"{name}: a miss; L1 drops its unverified entry", state
    if task.answered and m.rank(cell.version) < task.need:
        state = state._replace(broken=f"W1: every tier had acknowledged v{task.need}, and {name} answers {cell}")
    return f"{name}: L1's unverified entry answers, {cell}", state
