"""A model of the protocol that keeps the cache right between processes, and a checker that searches all its states.

How to use it:

- `python -m pytest tests/model -s` checks every scenario and prints, for each rule that is switched off, the shortest
  trace to the violation. `-m soak` runs the larger scenarios.
- To try a change of the protocol, change the step (`reading.py`, `writing.py`, `environment.py`), make it a rule in
  `state.RULES`, and name in `scenarios.SWITCHES` the scenario that needs it. A rule without such a scenario is an
  error, unless `scenarios.REDUNDANT` lists it.

| file | what it has |
|---|---|
| `checker.py` | breadth-first search over hashable states; knows nothing of caches |
| `state.py` | the state, the rules, what a scenario is |
| `protocol.py` | the machine: the tiers and the invariants W1, W3, R1, R2 and convergence at rest |
| `reading.py` | L1, L2, OBSERVE, L3, the loader, STORE, the copy from L3 to L2 |
| `writing.py` | explicit writes, L1 of the writer, requests carried out late, repairs, publications |
| `environment.py` | records, demotions, evictions, the log, restarts, ticks |
| `scenarios.py` | the scenarios, and what each rule prevents |
| `postgres_log.py` | PostgreSQL as a backplane: the listener's position |
| `clocks.py` | T1: wall clocks do not matter |

W2 is built in: a write returns with what each tier answered. Without "try again" or "own L1" the report and the tiers
differ, and the model sees W1 or W3 violated.

What the model found beyond the rules it was made from. Each is a rule here, with its trace:

- "older row": it is not enough that a tombstone in L2 ends the walk. OBSERVE can also find an *entry* that is newer
  than L3's row, because L3 refused that write or because the entry came between GET and OBSERVE. L3's row answers
  only if its stamp is at least the one observed, whatever the kind. The rule of the tombstone is then a special
  case.
- "demote level": a tombstone that Redis evicts does not stop a demotion, and a process can have processed the log
  within G without this record. The script of the demotion compares the last position of the log with the one that
  the process had when L1 evicted the entry. Then the limit of G and the check that the key does not exist are
  redundant for W1, and the demotion may get the tokens that are there now. In a cluster the log is on another node:
  there a demotion can undo a write (see `LIMITS`).
- "demote verified": after a gap the process is level with the log, and its entries may be old. An entry that waits
  for its verification is not demoted.
- "repair every tier": a repair of the tier that failed is not enough. If L3 failed and L2 has lost the new entry, a
  read copies L3's old row to L2 and to L1s before L3 is repaired. The repair invalidates in L3, then in L2.
- "repair record": it publishes its record even if L2 answers that it has something newer.
- "undo", "undo by id": if no tier surely took a write and an outcome is unknown, one tier may have it. The
  repair is by id (invalidate only where the tier has the id of that write). By stamp it can remove a newer write of a
  process whose clock is behind.
- "count random": Redis can evict the count of invalidations as well. A count from 0 on then compares nothing with
  nothing. It must be a random value that a reader creates if it is missing.
- "refused tag": an invalidation that L3 refused leaves nothing in L2 that stops the copy of L3's row. A token in L2
  that says so brings tags level with keys, which have a tombstone.
- "generation" includes the count of invalidations: after a restart from a snapshot the old count is valid again.
- "one snapshot" (PostgreSQL): rows and next position come from one statement or one snapshot. If the position is
  read later, a transaction that commits in between is lost.
- "mark begin" is redundant: what ends after the write is superseded when the write ends, and what ends before is not
  kept ("mark during").

What it found in the protocol as it was built:

- "mark during": L1 changes before the write is sent and not again when it ends. A load that finds the old entry in a
  tier during the write, and ends before the write does, puts it back into L1, and no record comes: a process does
  not apply its own.
- "repair own L1": for the same reason a repair has to drop the key from L1 of its own process, which may have read
  the old value from the tier that failed.
- "own newer": of two writes of a process, both go to both tiers, and the stamps decide. If a tier has the later one,
  the earlier one is not tried again with a greater stamp: L1 has the later one.
- "overlap repair": an invalidation has no stamp. If a process invalidates a tag while it writes an entry with that tag,
  the write may reach a tier after the invalidation, although its value is older. The entry is removed with a greater
  stamp, and from L1.
- "refused answers", "invalidate again": if L3 does not answer an invalidation at once, L2 is invalidated first, and the
  record is out. A reader that finds L3's row now must not take it as an answer, even if it does not copy it: L1
  would keep it, and no other record comes.
- "again after removed": L2 is written again also if L3 could not keep the entry.
- "undo each": two writes of a key of unknown outcome are both undone, not only the later one.
- "undo record": if the record of an undo had the id that is undone, L1s that have it would keep it. On a single
  server the tier's own record hides this.
- "demote run": after a restart from a snapshot the last position of the log can be the one that a process knows,
  although records after it are lost. A demotion compares the server's run, too.
- If L3 answers a repair that it has something newer, the removal in L2 gets a stamp just below that: L2 may have lost
  the newer entry, and accepted the failed write of a process whose clock is behind. Otherwise L2 would keep that write
  while L3 has the other. With the same stamp as the newer entry, the removal would stop it on its way to L2.
- What a first try has left needs no repair of its own if the next try fails: the repair of the write that was in its
  way removes it.

What the model does not show: `scenarios.LIMITS`, locks, T2, soft invalidations, entries with several tags, batches, the
queue of repairs that overflows (everything is cleared then), a process that dies with repairs in its queue (that is
"repair" switched off), requests of one process to one tier that pass each other, PostgreSQL's `clear` (its token grows,
a sweep follows), loads that answer with an unverified entry, and stamps that processes take from the clocks of
*different* servers: all processes must take them from one. Nor does it show tiers without stamps, where an earlier
write of a process gives way to a later one.
"""
