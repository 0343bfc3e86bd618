"""Records that arrive, demotions, and what the environment does: evictions, a trimmed log, restarts, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .state import FOREVER, LOST, Cell, G, Process, Record, State

if TYPE_CHECKING:
    from .protocol import Machine, Steps


def receive(m: Machine, state: State, p: int) -> Steps:
    """A process reads its next record; if it is level with the log, the backplane extends L1's lease."""
    if not m.scenario.recording:
        return
    process, name, end = state.processes[p], m.scenario.processes[p], len(state.log)
    if m.scenario.slow_reads and process.run == state.run:
        yield from receive_slowly(m, state, p, process, name)
        return
    if has_gap(m, state, process):
        yield notice_gap(m, state, p)
        return
    position = max(process.position, state.trimmed)
    if position == end:
        if process.contact < state.now or process.position < position or process.run != state.run:
            process = process._replace(contact=state.now, position=position, run=state.run)
            yield f"{name} is level with the log", m.set_process(state, p, process)
        return
    contact = state.now if position + 1 == end else process.contact
    yield apply(m, state, p, process, position, contact)


def has_gap(m: Machine, state: State, process: Process) -> bool:
    """Whether the last position is gone from the log, or the server is another one."""
    if process.run != state.run and m.rules["another run"]:
        return True
    last = process.position - 1
    gone = last >= 0 and (last < state.trimmed or state.log[last].id == LOST)
    return gone and m.rules["gap"]


def apply(m: Machine, state: State, p: int, process: Process, at: int, contact: int) -> tuple[str, State]:
    """Apply a record of the log, unless it is the process's own."""
    record, name = state.log[at], m.scenario.processes[p]
    process = process._replace(position=at + 1, contact=contact, run=state.run)
    after = state
    if record.version and record.writer != p:
        if m.rules["mark record"]:
            after = m.supersede(after, p)
        l1 = process.l1
        if l1 is not None and l1.id != record.id and m.rules["drop"]:
            l1 = None
        process = process._replace(l1=l1, heard=max(process.heard, m.rank(record.version) if record.counts else 0))
    return f"{name} receives the record of v{record.version}", m.set_process(after, p, process)


def receive_slowly(m: Machine, state: State, p: int, process: Process, name: str) -> Steps:
    """XREAD finds records, the server looks for the last position, and the reply arrives: with time in between."""
    end = len(state.log)
    position = max(process.position, state.trimmed)
    gap = has_gap(m, state, process)
    if process.asked < 0:
        if gap and not m.rules["check after reading"]:
            yield notice_gap(m, state, p)
        elif gap or position < end or process.contact < state.now:
            # Without the rule the check is passed here, and the records are read when the reply arrives.
            found = position if m.rules["check after reading"] else -1
            asking = process._replace(asked=state.now, found=found, empty=position == end)
            yield f"{name}: XREAD, sent in tick {state.now}", m.set_process(state, p, asking)
        return
    if gap and m.rules["check after reading"]:
        yield notice_gap(m, state, p)
        return
    at = process.found if process.found >= 0 else position
    began = process.asked if m.rules["lease from sending"] else state.now
    received = process._replace(asked=-1, found=0, empty=False)
    if process.empty or at == end:
        level = received._replace(contact=max(began, process.contact), position=at)
        yield f"{name}: no record", m.set_process(state, p, level)
    if at < end:
        yield apply(m, state, p, received, at, max(began, process.contact) if at + 1 == end else process.contact)


def notice_gap(m: Machine, state: State, p: int) -> tuple[str, State]:
    # The new position is again a record of its own, which cannot be missed.
    process, name = state.processes[p], m.scenario.processes[p]
    after = m.supersede(state, p) if m.rules["mark gap"] else state
    log = (*state.log, Record(0, "hello")) if m.rules["hello"] else state.log
    process = process._replace(
        position=len(log), contact=state.now, verified=process.l1 is None, run=state.run, asked=-1, found=0, empty=False
    )
    return f"{name} notices a gap in the log", m.set_process(after._replace(log=log), p, process)


def demote(m: Machine, state: State, p: int) -> Steps:
    """L2 carries out a demotion: it stores what L1 has evicted, if it has nothing under the key."""
    process, name = state.processes[p], m.scenario.processes[p]
    cell = process.demoting
    if cell is None:
        return
    after = m.set_process(state, p, process._replace(demoting=None, demoting_from=0, demoting_until=0, demoting_run=0))
    if m.rules["demote if absent"] and state.l2 is not None:
        yield f"{name} demotes {cell}: L2 has {state.l2} already", after
    elif m.rules["demote within G"] and state.now > process.demoting_until:
        yield f"{name} demotes {cell}: too late", after
    elif m.rules["demote run"] and process.demoting_run != state.run:
        yield f"{name} demotes {cell}: the server is another one", after
    elif m.rules["demote level"] and process.demoting_from != end_of_log(state):
        yield f"{name} demotes {cell}: the log has gone on", after
    else:
        if m.scenario.tagged:
            # A demotion gets the tokens that are there now.
            token = state.token2 or f"t2-{name}d"
            after, cell = after._replace(token2=token), cell._replace(token=token)
        yield f"{name} demotes {cell}", m.put(after, 2, cell)


def end_of_log(state: State) -> int:
    """The last position, as the server knows it."""
    return max((at + 1 for at, record in enumerate(state.log) if record.id != LOST), default=0)


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
    if m.rules["demote in flight"] and m.in_flight(state, p):
        verified = False
    if process.demoting is None and verified and (after := m.spend(state, "demote")) is not None:
        process = process._replace(
            l1=None,
            demoting=cell,
            demoting_from=process.position,
            demoting_until=min(FOREVER, process.contact + G),
            demoting_run=process.run,
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
            yield "L2 is saved", after._replace(snapshot=(state.l2, state.token2, state.invalidations, len(state.log)))
        return
    if (after := m.spend(state, "restart")) is None:
        return
    l2, token2, invalidations, length = state.snapshot
    # Records that came after are gone. A process whose last position is older cannot tell from it.
    log = tuple(record if at < length else Record(0, LOST) for at, record in enumerate(state.log))
    if m.rules["generation"]:
        token2, invalidations = "t2-new", "c-new"
    l2 = None if l2 is None else Cell(*l2)._replace(explicit=False)
    after = after._replace(l2=l2, token2=token2, invalidations=invalidations, log=log, run=state.run + 1)
    yield "L2's server is restarted from the snapshot", after


def tick(m: Machine, state: State) -> State:
    now = state.now + 1
    l2 = state.l2 if state.l2 is not None and state.l2.gone >= now else None
    l3 = state.l3 if state.l3 is not None and state.l3.gone >= now else None
    return state._replace(now=now, l2=l2, l3=l3, floors=(*state.floors[1:], m.floor(state)))
