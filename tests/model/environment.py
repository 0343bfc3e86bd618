"""Records that arrive, demotions, and what the environment does: evictions, a trimmed log, restarts, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .state import FOREVER, Cell, G, Process, Record, State

if TYPE_CHECKING:
    from .protocol import Machine, Steps


def receive(m: Machine, state: State, p: int) -> Steps:
    """A process reads its next record; if it is level with the log, the backplane extends L1's lease."""
    if not m.scenario.recording:
        return
    process, name, end = state.processes[p], m.scenario.processes[p], len(state.log)
    last = process.position - 1
    if m.rules["gap"] and last >= 0 and last < state.trimmed:
        # The new position is again a record of its own, which cannot be missed.
        after = m.supersede(state, p) if m.rules["mark gap"] else state
        log = (*state.log, Record(0, "hello")) if m.rules["hello"] else state.log
        process = process._replace(position=len(log), contact=state.now, verified=process.l1 is None)
        yield f"{name} notices a gap in the log", m.set_process(after._replace(log=log), p, process)
        return
    position = max(process.position, state.trimmed)
    if position == end:
        if process.contact < state.now or process.position < position:
            process = process._replace(contact=state.now, position=position)
            yield f"{name} is level with the log", m.set_process(state, p, process)
        return
    record = state.log[position]
    position += 1
    contact = state.now if position == end else process.contact
    process = process._replace(position=position, contact=contact)
    after = state
    if record.version:
        if m.rules["mark record"]:
            # Not the write itself, if it is this process's own.
            after = m.supersede(after, p, but=m.task_of.get(record.id or "", -1))
        l1 = process.l1
        if l1 is not None and l1.id != record.id and m.rules["drop"]:
            l1 = None
        process = process._replace(l1=l1, heard=max(process.heard, m.rank(record.version) if record.counts else 0))
    yield f"{name} receives the record of v{record.version}", m.set_process(after, p, process)


def demote(m: Machine, state: State, p: int) -> Steps:
    """L2 carries out a demotion: it stores what L1 has evicted, if it has nothing under the key."""
    process, name = state.processes[p], m.scenario.processes[p]
    cell = process.demoting
    if cell is None:
        return
    after = m.set_process(state, p, process._replace(demoting=None, demoting_from=0, demoting_until=0))
    if m.rules["demote if absent"] and state.l2 is not None:
        yield f"{name} demotes {cell}: L2 has {state.l2} already", after
    elif m.rules["demote within G"] and state.now > process.demoting_until:
        yield f"{name} demotes {cell}: too late", after
    elif m.rules["demote level"] and process.demoting_from != len(state.log):
        yield f"{name} demotes {cell}: the log has gone on", after
    else:
        if not m.rules["demote tokens"]:
            token = state.token2 or f"t2-{name}d"
            after, cell = after._replace(token2=token), cell._replace(token=token)
        yield f"{name} demotes {cell}", m.put(after, 2, cell)


def steps(m: Machine, state: State) -> Steps:
    if state.l2 is not None and (after := m.spend(state, "evict L2")) is not None:
        yield f"L2 evicts {state.l2}", after._replace(l2=None)
    if state.token2 is not None and (after := m.spend(state, "evict token")) is not None:
        yield "L2 evicts the token", after._replace(token2=None)
    if state.invalidations is not None and (after := m.spend(state, "evict count")) is not None:
        yield "L2 evicts the count of invalidations", after._replace(invalidations=None)
    if state.l3 is not None and (after := m.spend(state, "remove L3")) is not None:
        yield f"L3 loses {state.l3}", after._replace(l3=None)
    for p, process in enumerate(state.processes):
        yield from evict(m, state, p, process)
    yield from disturb_log(m, state)
    yield from restart(m, state)
    if (after := m.spend(state, "tick")) is not None:
        yield f"tick {state.now + 1}", tick(m, after)


def evict(m: Machine, state: State, p: int, process: Process) -> Steps:
    cell, name = process.l1, m.scenario.processes[p]
    if cell is None:
        return
    if (after := m.spend(state, "evict L1")) is not None:
        yield f"L1 of {name} evicts {cell}", m.set_process(after, p, process._replace(l1=None, verified=True))
    verified = process.verified or not m.rules["demote verified"]
    if process.demoting is None and verified and (after := m.spend(state, "demote")) is not None:
        process = process._replace(
            l1=None, demoting=cell, demoting_from=process.position, demoting_until=min(FOREVER, process.contact + G)
        )
        yield f"L1 of {name} evicts {cell}, to demote it", m.set_process(after, p, process)


def disturb_log(m: Machine, state: State) -> Steps:
    if state.trimmed < len(state.log):
        if (after := m.spend(state, "trim")) is not None:
            yield "the log is trimmed by one record", after._replace(trimmed=state.trimmed + 1)
        if (after := m.spend(state, "replace")) is not None:
            yield "the log is replaced by an empty one", after._replace(trimmed=len(state.log))


def restart(m: Machine, state: State) -> Steps:
    """L2's server is restarted from a snapshot: what it had then is there again."""
    if state.snapshot is None:
        if (after := m.spend(state, "snapshot")) is not None:
            yield "L2 is saved", after._replace(snapshot=(state.l2, state.token2, state.invalidations))
        return
    if (after := m.spend(state, "restart")) is None:
        return
    l2, token2, invalidations = state.snapshot
    if m.rules["generation"]:
        token2, invalidations = "t2-new", "c-new"
    l2 = None if l2 is None else Cell(*l2)._replace(explicit=False)
    after = after._replace(l2=l2, token2=token2, invalidations=invalidations, trimmed=len(state.log))
    yield "L2's server is restarted from the snapshot", after


def tick(m: Machine, state: State) -> State:
    now = state.now + 1
    l2 = state.l2 if state.l2 is not None and state.l2.gone >= now else None
    l3 = state.l3 if state.l3 is not None and state.l3.gone >= now else None
    return state._replace(now=now, l2=l2, l3=l3, floors=(*state.floors[1:], m.floor(state)))
