"""Explicit writes: L3, then L2 with the record, and the repair of what one tier took and another did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import clock, matches
from .state import FOREVER, Cell, G, Record, Repair, Request, State, Task

if TYPE_CHECKING:
    from .protocol import Machine, Steps

TRIES = 3


def steps(m: Machine, state: State, i: int, task: Task, op: str) -> Steps:
    name = f"{m.names[i]} {op}"
    order: list[int] = [tier for tier in ((3, 2) if m.rules["L3 first"] else (2, 3)) if tier in m.tiers]
    match task.phase:
        case "":
            if m.scenario.racing or not writing(m, state):
                yield begin(m, state, i, task, op, name, order)
        case "publish":
            yield from publish(m, state, i, task, name)
        case "done":
            yield end(m, state, i, task, op, name)
        case "unsure2" | "unsure3":
            yield deadline_passes(m, state, i, task, name, order)
        case phase:
            yield from send(m, state, i, task, op, name, order, int(phase[-1]))


def writing(m: Machine, state: State) -> bool:
    """Whether a task holds the lock of writers, in a scenario where writers do not race."""
    return any(
        task.phase and m.programs[j][task.at] in ("set", "delete", "invalidate") for j, task in enumerate(state.tasks)
    )


def begin(m: Machine, state: State, i: int, task: Task, op: str, name: str, order: list[int]) -> tuple[str, State]:
    p = m.process_of[i]
    version, stamp = state.truth + 1, clock(m, state, i)
    state = m.set_process(state, p, state.processes[p]._replace(stamp=stamp))
    if m.rules["mark begin"]:
        state = m.supersede(state, p)
    task = Task(at=task.at, phase=f"write{order[0]}", time=state.now, version=version, stamp=stamp, tries=1)
    if not m.rules["record after write"]:
        state = append(m, state, Record(version, f"{m.names[i]}{task.at}"))
    return f"{name}: the source is v{version} now; stamp {stamp}", m.set_task(state._replace(truth=version), i, task)


def cell_of(m: Machine, state: State, i: int, task: Task, op: str) -> Cell | None:
    name = f"{m.names[i]}{task.at}"
    if op == "invalidate":
        return None
    if op == "delete":
        return Cell("tombstone", name, task.stamp, task.version, gone=m.gone(min(FOREVER, state.now)), explicit=True)
    expires = min(FOREVER, state.now + m.scenario.set_ttl)
    return Cell("entry", name, task.stamp, task.version, expires, m.gone(expires), explicit=True)


def carry_out(m: Machine, state: State, i: int, tier: int, cell: Cell | None, version: int) -> tuple[State, int | None]:
    """What a server does with a write: nothing if it has something newer. L2 appends the record in the same script."""
    if cell is None:
        refused = 3 in m.tiers and not state.tasks[i].took3
        state = m.forget_tag(state, tier, f"{m.names[i]}{version}", refused)
    else:
        state, newer = m.write(state, tier, cell)
        if newer is not None:
            return state, newer
    if (tier == 2 or 2 not in m.tiers) and m.rules["record after write"] and not m.scenario.cluster:
        # What the write leaves in L2 may be evicted, or a reader may not see it.
        forgets = any(what in m.budget for what in ("evict L2", "evict token", "blind L2"))
        counts = state.tasks[i].took3 or 3 not in m.tiers or m.scenario.strict or not forgets
        state = append(m, state, Record(version, cell.id if cell is not None else None, counts))
    return state, None


def append(m: Machine, state: State, record: Record) -> State:
    return state._replace(log=(*state.log, record)) if m.scenario.recording else state


def send(m: Machine, state: State, i: int, task: Task, op: str, name: str, order: list[int], tier: int) -> Steps:
    cell = cell_of(m, state, i, task, op)
    if m.rules["deadline"] and state.now > task.time:
        yield f"{name}: L{tier} refuses, the deadline has passed", go_on(m, state, i, task, order, tier)
        return
    after, newer = carry_out(m, state, i, tier, cell, task.version)
    if newer is None:
        task_after = task._replace(took2=True) if tier == 2 else task._replace(took3=True)
        yield f"{name}: L{tier} takes it", go_on(m, after, i, task_after, order, tier)
    elif not m.rules["try again"]:
        task_after = task._replace(took2=True) if tier == 2 else task._replace(took3=True)
        yield f"{name}: L{tier} has something newer", go_on(m, after, i, task_after, order, tier)
    elif task.tries < TRIES:
        p = m.process_of[i]
        after = m.set_process(after, p, after.processes[p]._replace(stamp=max(newer + 1, after.processes[p].stamp)))
        start = f"write{order[0] if m.rules['from L3'] else tier}"
        again = task._replace(stamp=newer + 1, tries=task.tries + 1, phase=start)
        yield f"{name}: L{tier} has something newer; again with stamp {newer + 1}", m.set_task(after, i, again)
    else:
        yield f"{name}: L{tier} has something newer; gives up", go_on(m, after, i, task, order, tier)
    if m.names[i][0] not in m.scenario.failing:
        return
    if (failed := m.spend(state, f"refuse L{tier}")) is not None:
        yield f"{name}: L{tier} refuses", go_on(m, failed, i, task, order, tier)
    if (failed := m.spend(state, f"lose L{tier}")) is not None:
        lost = failed._replace(late=(*failed.late, Request(i, tier, cell)))
        waiting = task._replace(phase=f"unsure{tier}", unsure=True)
        yield f"{name}: sent to L{tier}, no reply", m.set_task(lost, i, waiting)


def deadline_passes(m: Machine, state: State, i: int, task: Task, name: str, order: list[int]) -> tuple[str, State]:
    tier = int(task.phase[-1])
    if m.rules["deadline"] and m.rules["report at deadline"]:
        state = state._replace(late=tuple(other for other in state.late if (other.task, other.tier) != (i, tier)))
    return f"{name}: no reply from L{tier}, a failure", go_on(m, state, i, task, order, tier)


def go_on(m: Machine, state: State, i: int, task: Task, order: list[int], tier: int) -> State:
    """Go to the next tier, or end the write."""
    at = order.index(tier) + 1
    if at < len(order):
        return m.set_task(state, i, task._replace(phase=f"write{order[at]}"))
    publishing = m.scenario.cluster and (task.took2 or task.took3) and m.rules["record after write"]
    return m.set_task(state, i, task._replace(phase="publish" if publishing else "done"))


def publish(m: Machine, state: State, i: int, task: Task, name: str) -> Steps:
    """In a cluster the record is a call of its own. `Written.published` says whether it succeeded."""
    record = Record(task.version, f"{m.names[i]}{task.at}")
    p = m.process_of[i]
    done = task._replace(phase="done")
    if any(q == p for q, _ in state.unpublished):
        # In order: what waits goes first.
        failed: State | None = state
    else:
        yield f"{name}: publishes", m.set_task(append(m, state, record), i, done)
        failed = m.spend(state, "publish")
    if failed is not None:
        if m.rules["publish again"]:
            failed = failed._replace(unpublished=(*failed.unpublished, (p, record)))
        yield f"{name}: the publication fails", m.set_task(failed, i, done)


def end(m: Machine, state: State, i: int, task: Task, op: str, name: str) -> tuple[str, State]:
    p = m.process_of[i]
    took = {2: task.took2, 3: task.took3}
    failed = [tier for tier in m.tiers if not took[tier]]
    for tier in m.tiers:
        if took[tier]:
            state = m.acknowledge(state, tier, task.version)
    cell = cell_of(m, state, i, task, op)
    if m.rules["mark end"]:
        state = m.supersede(state, p, but=i)
    process = state.processes[p]
    if op == "set" and task.current and (not failed or not m.rules["own L1"]) and cell is not None:
        process = process._replace(l1=cell._replace(explicit=False), verified=True)
    else:
        process = process._replace(l1=None)
    if not failed:
        process = process._replace(heard=max(process.heard, m.rank(task.version)))
    state = m.set_process(state, p, process)
    if failed and m.rules["repair"]:
        if len(failed) < len(m.tiers):
            state = repair(m, state, i, task, failed)
        elif task.unsure and m.rules["undo"]:
            state = repair(m, state, i, task, list(m.tiers), undo=m.rules["undo by id"])
    if len(failed) == len(m.tiers):
        state = state._replace(failed=(*state.failed, f"{m.names[i]}{task.at}"))
    report = "carried out" if not failed else f"failed in {' and '.join(f'L{tier}' for tier in failed)}"
    return f"{name}: returns, {report}", m.set_task(state, i, Task(at=task.at + 1))


def repair(m: Machine, state: State, i: int, task: Task, failed: list[int], undo: bool = False) -> State:
    """Queue an invalidation: L3 first, then L2, because a read may have copied L3's old row to L2 in the meantime."""
    tiers = tuple(sorted(m.tiers if m.rules["repair every tier"] else failed, reverse=True))
    cell = None
    if m.programs[i][task.at] != "invalidate":
        stamp = task.stamp if m.rules["repair stamp"] else -1
        kind = "tombstone" if m.rules["repair invalidates"] else "entry"
        cell = Cell(kind, f"{m.names[i]}{task.at}r", stamp, task.version, explicit=True)
    wanted = Repair(tiers, cell, task.version, f"{m.names[i]}{task.at}" if undo else None)
    return state._replace(repairs=(*state.repairs, wanted))


def repaired(m: Machine, state: State, k: int) -> tuple[str, State]:
    tiers, cell, version, undo = state.repairs[k]
    tier, *others = tiers
    rest = (Repair(tuple(others), cell, version, undo),) if others else ()
    after = state._replace(repairs=state.repairs[:k] + rest + state.repairs[k + 1 :])
    newer = None
    if cell is None:
        after = m.forget_tag(after, tier, f"r{version}")
    else:
        stamp = cell.stamp if cell.stamp >= 0 else max(c.stamp for c in (state.l2, state.l3, cell) if c) + 1
        cell = cell._replace(stamp=stamp, gone=min(FOREVER, state.now + G))
        if undo is None:
            after, newer = m.write(after, tier, cell)
        elif matches(state.l2 if tier == 2 else state.l3, undo):
            after = m.put(after, tier, cell)
    if (tier == 2 or m.tiers == (3,)) and (newer is None or m.rules["repair record"]):
        after = append(m, after, Record(version, cell.id if cell is not None else None))
    if not others and undo is None:
        for done in m.tiers:
            after = m.acknowledge(after, done, version)
    outcome = "" if newer is None else ", which has something newer"
    return f"repair: an invalidation in L{tier}{outcome}", after


def background(m: Machine, state: State) -> Steps:
    """Repairs, retried publications, and writes that a server carries out late."""
    for request in state.late:
        rest = state._replace(late=tuple(other for other in state.late if other is not request))
        task = state.tasks[request.task]
        version = request.cell.version if request.cell is not None else task.version
        after, _ = carry_out(m, rest, request.task, request.tier, request.cell, version)
        still = task.phase == f"unsure{request.tier}"
        if not still and after.broken.startswith("W1"):
            after = after._replace(broken=after.broken.replace("W1", "W3", 1))
        name = m.names[request.task]
        when = "" if still else " LATE"
        yield f"L{request.tier} carries out{when} the write of {name}, {request.cell or 'tag'}", after
    for k in range(len(state.repairs)):
        yield repaired(m, state, k)
    for k, (p, record) in enumerate(state.unpublished):
        if not any(q == p for q, _ in state.unpublished[:k]):
            rest = state._replace(unpublished=state.unpublished[:k] + state.unpublished[k + 1 :])
            yield f"{m.scenario.processes[p]} publishes v{record.version} again", append(m, rest, record)
