"""Explicit writes: L3, then L2 with the record, and the repair of what one tier carried out and another did not.

A write that L3 does not answer at once (`lose L3`, `slow L3`) goes to L2 in the meantime. If L3 carries it out after
all, L2 is written again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import clock, matches
from .state import FOREVER, Cell, G, Record, Repair, Request, State, Task

if TYPE_CHECKING:
    from .protocol import Machine, Steps

TRIES = 3
# What a tier has after these is no older than the write.
SETTLED = ("stored", "removed")


def steps(m: Machine, state: State, i: int, task: Task, op: str) -> Steps:
    name = f"{m.names[i]} {op}"
    match task.phase:
        case "":
            if m.scenario.racing or not writing(m, state):
                yield begin(m, state, i, task, op, name)
        case "publish":
            yield from publish(m, state, i, task, name)
        case "done":
            yield end(m, state, i, task, op, name)
        case "unsure2":
            yield deadline_passes(m, state, i, task, name, 2)
        case "unsure3":
            yield from await_l3(m, state, i, task, op, name)
        case phase:
            yield from send(m, state, i, task, op, name, int(phase[-1]))


def writing(m: Machine, state: State) -> bool:
    """Whether a task holds the lock of writers, in a scenario where writers do not race."""
    return any(
        task.phase and m.programs[j][task.at] in ("set", "delete", "invalidate") for j, task in enumerate(state.tasks)
    )


def begin(m: Machine, state: State, i: int, task: Task, op: str, name: str) -> tuple[str, State]:
    """L1 changes before anything is sent."""
    p = m.process_of[i]
    elsewhere = op == "invalidate" and m.scenario.untagged  # a change of another key
    version, stamp = state.truth + (not elsewhere), clock(m, state, i)
    if m.rules["mark begin"]:
        state = m.supersede(state, p)
    task = Task(at=task.at, phase=f"write{m.order[0]}", time=state.now, version=version, stamp=stamp, tries=1)
    cell = cell_of(m, state, i, task, op)
    # L1's entry has no stamp yet.
    own = cell._replace(explicit=False, stamp=0) if op == "set" and cell is not None else None
    process = state.processes[p]
    process = process._replace(
        stamp=stamp,
        l1=own,
        verified=True,
        begun=process.begun if op == "invalidate" else version,
        begun_tag=version + elsewhere if op == "invalidate" else process.begun_tag,
    )
    state = m.set_process(state, p, process)
    if not m.rules["record after write"]:
        state = append(m, state, Record(version, f"{m.names[i]}{task.at}", p))
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
    out3 = state.tasks[i].out3
    if cell is None:
        state = m.forget_tag(state, tier, f"{m.names[i]}{version}", 3 in m.tiers and out3 != "stored")
    else:
        if m.scenario.tagged and cell.kind == "entry":
            state, token = m.token(state, tier, f"{m.names[i]}{version}")
            cell = cell._replace(token=token)
        state, newer = m.write(state, tier, cell)
        if newer is not None:
            return state, newer
    if (tier == 2 or 2 not in m.tiers) and m.rules["record after write"] and not m.scenario.cluster:
        # What the write leaves in L2 may be evicted, or a reader may not see it.
        forgets = any(what in m.budget for what in ("evict L2", "evict token", "blind L2"))
        counts = out3 in SETTLED or 3 not in m.tiers or m.scenario.strict or not forgets
        state = append(m, state, Record(version, cell.id if cell is not None else None, m.process_of[i], counts))
    return state, None


def append(m: Machine, state: State, record: Record) -> State:
    return state._replace(log=(*state.log, record)) if m.scenario.recording else state


def note(task: Task, tier: int, outcome: str) -> Task:
    """Note the outcome of this try in a tier. That of an earlier try is forgotten."""
    return task._replace(out2=outcome) if tier == 2 else task._replace(out3=outcome)


def is_latest(m: Machine, state: State, i: int, task: Task) -> bool:
    """Whether no later write of the key has begun in this process."""
    return task.version >= state.processes[m.process_of[i]].begun


def is_invalidated(m: Machine, state: State, i: int, task: Task, op: str) -> bool:
    """Whether this process has begun to invalidate a tag of a write, or to clear the cache, after the write."""
    concerned = (op == "set" and m.scenario.tagged) or (op == "delete" and m.scenario.implicit)
    return concerned and task.version < state.processes[m.process_of[i]].begun_tag


def tries_again(m: Machine, state: State, i: int, task: Task) -> bool:
    """Whether a write is tried again if a tier has something newer: not if that is a later write of this process."""
    return not m.rules["own newer"] or is_latest(m, state, i, task)


def send(m: Machine, state: State, i: int, task: Task, op: str, name: str, tier: int) -> Steps:
    cell = cell_of(m, state, i, task, op)
    if m.rules["deadline"] and state.now > task.time:
        refused = note(task, tier, "refused")
        yield f"{name}: L{tier} refuses, the deadline has passed", go_on(m, state, i, refused, tier)
        return
    after, newer = carry_out(m, state, i, tier, cell, task.version)
    if newer is None:
        yield f"{name}: L{tier} takes it", go_on(m, after, i, note(task, tier, "stored"), tier)
    elif not m.rules["try again"]:
        yield f"{name}: L{tier} has something newer", go_on(m, after, i, note(task, tier, "stored"), tier)
    else:
        noted = note(task, tier, "newer")._replace(newer=max(newer, task.newer))
        yield f"{name}: L{tier} has something newer, {newer}", go_on(m, after, i, noted, tier)
    if m.names[i][0] not in m.scenario.failing:
        return
    if (failed := m.spend(state, f"refuse L{tier}")) is not None:
        yield f"{name}: L{tier} refuses", go_on(m, failed, i, note(task, tier, "refused"), tier)
    if op == "set" and newer is None and (failed := m.spend(state, f"cannot keep L{tier}")) is not None:
        yield f"{name}: L{tier} cannot keep it", cannot_keep(m, failed, i, note(task, tier, "removed"), tier)
    for what in ("lose", "slow"):
        if (failed := m.spend(state, f"{what} L{tier}")) is not None:
            waiting = note(task, tier, "")
            request = Request(i, tier, cell, removes=what == "slow" and "cannot keep L3" in m.budget)
            lost = failed._replace(late=(*failed.late, request))
            both = tier == 3 and 2 in m.tiers and m.order[0] == 3
            phase = "write2" if both else f"unsure{tier}"
            waiting = waiting._replace(phase=phase)
            if tier == 3:
                waiting = waiting._replace(pending=both, lost=what == "lose")
            yield f"{name}: sent to L{tier}, no reply yet", m.set_task(lost, i, waiting)


def cannot_keep(m: Machine, state: State, i: int, task: Task, tier: int) -> State:
    """The tier removes the former entry, and has a tombstone with the id and the stamp of the write."""
    cell = Cell("tombstone", f"{m.names[i]}{task.at}", task.stamp, task.version, explicit=True)
    state, _ = carry_out(m, state, i, tier, cell, task.version)
    return go_on(m, state, i, task, tier)


def deadline_passes(m: Machine, state: State, i: int, task: Task, name: str, tier: int) -> tuple[str, State]:
    if m.rules["deadline"] and m.rules["report at deadline"]:
        state = state._replace(late=tuple(other for other in state.late if (other.task, other.tier) != (i, tier)))
    unknown = note(task, tier, "unknown")
    after = settle(m, state, i, unknown) if tier == 3 else go_on(m, state, i, unknown, tier)
    return f"{name}: no reply from L{tier}, a failure", after


def await_l3(m: Machine, state: State, i: int, task: Task, op: str, name: str) -> Steps:
    task = task._replace(pending=False)
    if task.lost:
        yield deadline_passes(m, state, i, task, name, 3)
    elif task.out3:
        again = task.out3 in SETTLED if m.rules["again after removed"] else task.out3 == "stored"
        rule = "invalidate again" if op == "invalidate" else "L2 again"
        # If L2 did not answer, it is repaired.
        if again and m.rules[rule] and task.out2 in SETTLED:
            after = m.set_task(state, i, task._replace(phase="write2", again=True))
            yield f"{name}: L3 has answered, {task.out3}; L2 again", after
        else:
            yield f"{name}: L3 has answered, {task.out3}", settle(m, state, i, task)


def go_on(m: Machine, state: State, i: int, task: Task, tier: int) -> State:
    """Go to the next tier, or end this try."""
    if task.pending and tier == 2:
        # L2 may be waited for as well: its own deadline passes first.
        return m.set_task(state, i, task._replace(phase="unsure3"))
    at = m.order.index(tier) + 1
    newer = (task.out2 if tier == 2 else task.out3) == "newer"
    starts_again = newer and tries_again(m, state, i, task)
    if at < len(m.order) and not starts_again and not task.again:
        return m.set_task(state, i, task._replace(phase=f"write{m.order[at]}"))
    return settle(m, state, i, task)


def settle(m: Machine, state: State, i: int, task: Task) -> State:
    """Try again with a greater stamp if a tier has something newer, or end the write."""
    if not tries_again(m, state, i, task):
        # A later write of this process is there already.
        task = task._replace(
            out2="stored" if task.out2 == "newer" else task.out2, out3="stored" if task.out3 == "newer" else task.out3
        )
    if "newer" in (task.out2, task.out3) and task.tries < TRIES and m.rules["try again"]:
        p = m.process_of[i]
        process = state.processes[p]
        stamp = max(task.newer + 1, process.stamp + 1 if process.stamp > task.stamp else 0)
        state = m.set_process(state, p, process._replace(stamp=max(stamp, process.stamp)))
        first = m.order[0] if m.rules["from L3"] or task.out3 == "newer" or 3 not in m.tiers else 2
        again = task._replace(stamp=stamp, tries=task.tries + 1, phase=f"write{first}", again=False, newer=0)
        return m.set_task(state, i, again)
    done = "stored" in (task.out2, task.out3)
    publishing = m.scenario.cluster and done and m.rules["record after write"]
    return m.set_task(state, i, task._replace(phase="publish" if publishing else "done"))


def publish(m: Machine, state: State, i: int, task: Task, name: str) -> Steps:
    """In a cluster the record is a call of its own. `Written.published` says whether it succeeded."""
    p = m.process_of[i]
    record = Record(task.version, f"{m.names[i]}{task.at}", p)
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
    out = {2: task.out2, 3: task.out3}
    failed = [tier for tier in m.tiers if out[tier] != "stored"]
    elsewhere = op == "invalidate" and m.scenario.untagged
    for tier in m.tiers:
        if out[tier] in SETTLED and not elsewhere:
            state = m.acknowledge(state, tier, task.version)
    if m.rules["mark end"]:
        state = m.supersede(state, p, but=i)
    process = state.processes[p]
    invalidated = op != "invalidate" and is_invalidated(m, state, i, task, op)
    if failed and op == "set" and m.rules["own L1"] and is_latest(m, state, i, task) and not invalidated:
        process = process._replace(l1=None)
    if invalidated and m.rules["overlap repair"]:
        process = process._replace(l1=None)
    if not failed and not elsewhere:
        process = process._replace(heard=max(process.heard, m.rank(task.version)))
        state = state._replace(promised=max(state.promised, task.version))
    state = m.set_process(state, p, process)
    state = repair_if_needed(m, state, i, task, op, failed)
    if len(failed) == len(m.tiers) and not any(out[tier] in SETTLED for tier in m.tiers):
        state = state._replace(failed=(*state.failed, f"{m.names[i]}{task.at}"))
    report = "carried out" if not failed else f"failed in {' and '.join(f'L{tier}' for tier in failed)}"
    return f"{name}: returns, {report}", m.set_task(state, i, Task(at=task.at + 1))


def repair_if_needed(m: Machine, state: State, i: int, task: Task, op: str, failed: list[int]) -> State:
    outcomes = {task.out2 if tier == 2 else task.out3 for tier in m.tiers}
    everywhere = list(m.tiers)
    if op == "invalidate":
        return repair(m, state, i, task, everywhere) if failed and m.rules["repair"] else state
    if is_invalidated(m, state, i, task, op) and m.rules["overlap repair"]:
        # The write may have reached a tier after the invalidation, which has begun after it.
        state = repair(m, state, i, task, everywhere, above=1)
    elif outcomes & set(SETTLED) and outcomes - set(SETTLED) and m.rules["repair"]:
        state = repair(m, state, i, task, failed)
    if not outcomes & set(SETTLED) and "unknown" in outcomes and m.rules["undo"]:
        state = repair(m, state, i, task, everywhere, undo=m.rules["undo by id"])
    return state


def repair(
    m: Machine, state: State, i: int, task: Task, failed: list[int], undo: bool = False, above: int = 0
) -> State:
    """Queue an invalidation: L3 first, then L2, because a read may have copied L3's old row to L2 in the meantime."""
    tiers = tuple(sorted(m.tiers if m.rules["repair every tier"] else failed, reverse=True))
    cell, p = None, m.process_of[i]
    if m.programs[i][task.at] != "invalidate":
        stamp = task.stamp + above if m.rules["repair stamp"] else -1
        kind = "tombstone" if m.rules["repair invalidates"] else "entry"
        cell = Cell(kind, f"{m.names[i]}{task.at}r", stamp, task.version, explicit=True)
    wanted = Repair(p, tiers, cell, task.version, f"{m.names[i]}{task.at}" if undo else None)
    queued = state.repairs
    if undo and not m.rules["undo each"]:
        # One undo a key: the earlier one is lost unless it is in flight.
        queued = tuple(it for it in queued if not (it.process == p and it.undo and len(it.tiers) == len(m.tiers)))
    return state._replace(repairs=(*queued, wanted))


def repaired(m: Machine, state: State, k: int) -> tuple[str, State]:
    p, tiers, cell, version, undo = state.repairs[k]
    tier, *others = tiers
    after, newer = state, None
    if cell is None:
        after = m.forget_tag(after, tier, f"r{version}")
    else:
        stamp = cell.stamp if cell.stamp >= 0 else max(c.stamp for c in (state.l2, state.l3, cell) if c) + 1
        cell = cell._replace(stamp=stamp, gone=min(FOREVER, state.now + G))
        if undo is None:
            after, newer = m.write(after, tier, cell)
        elif (old := state.l2 if tier == 2 else state.l3) is not None and matches(old, undo):
            # It takes the place of what it removes, with its stamp.
            after = m.put(after, tier, cell._replace(stamp=old.stamp))
    # What L3 has that is newer supersedes what L2 has that is older. It may be on its way to L2, with that stamp.
    left = cell if cell is None or newer is None else cell._replace(stamp=max(cell.stamp, newer - 1))
    rest = (Repair(p, tuple(others), left, version, undo),) if others else ()
    after = after._replace(repairs=state.repairs[:k] + rest + state.repairs[k + 1 :])
    if not others and (newer is None or m.rules["repair record"]):
        after = recorded(m, after, p, cell, version, undo)
    if not others and undo is None:
        for done in m.tiers:
            after = m.acknowledge(after, done, version)
    outcome = "" if newer is None else ", which has something newer"
    return f"repair: an invalidation in L{tier}{outcome}", after


def recorded(m: Machine, state: State, p: int, cell: Cell | None, version: int, undo: str | None) -> State:
    """Tell everybody of a repair, this process too: its own records are not applied to it."""
    named = cell.id if cell is not None else None
    if undo is not None and not m.rules["undo record"] and m.scenario.cluster:
        # On a single server the tier publishes a record of its own as well.
        named = undo
    state = append(m, state, Record(version, named, p, counts=undo is None))
    if m.rules["repair own L1"]:
        state = m.supersede(state, p)
        state = m.drop(state, p, named)
    return state


def background(m: Machine, state: State) -> Steps:
    """Repairs, retried publications, and writes that a server carries out late."""
    for request in state.late:
        rest = state._replace(late=tuple(other for other in state.late if other is not request))
        yield from carry_out_late(m, state, rest, request)
    for k in range(len(state.repairs)):
        yield repaired(m, state, k)
    for k, (p, record) in enumerate(state.unpublished):
        if not any(q == p for q, _ in state.unpublished[:k]):
            rest = state._replace(unpublished=state.unpublished[:k] + state.unpublished[k + 1 :])
            yield f"{m.scenario.processes[p]} publishes v{record.version} again", append(m, rest, record)


def carry_out_late(m: Machine, state: State, rest: State, request: Request) -> Steps:
    task = state.tasks[request.task]
    version = request.cell.version if request.cell is not None else task.version
    name = m.names[request.task]
    outcomes = ["stored"]
    if request.removes and m.spend(rest, "cannot keep L3") is not None:
        outcomes.append("removed")
    for outcome in outcomes:
        after, cell = rest, request.cell
        if outcome == "removed" and cell is not None:
            after = m.spend(rest, "cannot keep L3") or rest
            cell = cell._replace(kind="tombstone", expires=FOREVER)
        after, newer = carry_out(m, after, request.task, request.tier, cell, version)
        still = task.phase == f"unsure{request.tier}" or (request.tier == 3 and task.pending)
        if not still and after.broken.startswith("W1"):
            after = after._replace(broken=after.broken.replace("W1", "W3", 1))
        if still and not task.lost and request.tier == 3:
            noted = note(task, 3, outcome if newer is None else "newer")
            after = m.set_task(after, request.task, noted._replace(newer=newer or task.newer))
        when = "" if still else " LATE"
        yield f"L{request.tier} carries out{when} the write of {name}, {cell or 'tag'} ({outcome})", after
