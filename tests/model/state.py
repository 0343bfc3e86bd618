"""The state of the cache as the model sees it: one key, its tag, the tiers, the processes and what they have in flight.

Time is counted in ticks. G is one tick. What is made in tick n lives through tick n + G, and a conditional store is
carried out through tick n + G. A scenario without ticks explores every order of events within G.
"""

from typing import Final, NamedTuple

# In ticks. The model explores every order of events within a tick.
G: Final = 1
LEASE: Final = 1
# How long other processes may answer with what a write has replaced: a tick that has begun, and the lease.
LAG: Final = 1
FOREVER: Final = 99
# Stands for "the tier has nothing under this key", where a rule that is switched off compares it.
NOTHING: Final = "nothing"
# Stands for "the tier could not be read", where a store takes that for a miss because the rule is switched off.
UNREAD: Final = "unread"
# The id of a record that a restart has lost.
LOST: Final = "lost"
# A token that starts so says that L3 has refused to invalidate the tag.
REFUSED: Final = "refused-"


class Cell(NamedTuple):
    """What a tier or an L1 has under the key."""

    kind: str  # entry, tombstone or marker
    id: str
    stamp: int
    # An entry: the version of the source it was made from. A tombstone: the version of the write that left it.
    version: int
    expires: int = FOREVER  # a value through this tick
    gone: int = FOREVER  # physically there through this tick
    token: str | None = None
    explicit: bool = False  # left by a set or delete, not by a load

    def __str__(self) -> str:
        return f"{'v' if self.kind == 'entry' else self.kind[0] + ' v'}{self.version}({self.id} at {self.stamp})"


class Process(NamedTuple):
    l1: Cell | None = None
    verified: bool = True  # False after a gap: L1's entry is kept and not answered
    heard: int = 0  # the newest write whose record this process has received, or that it has carried out itself
    position: int = 0  # how many records of the log it has processed
    contact: int = 0  # the tick in which it was last level with the log
    stamp: int = 0  # the last stamp it gave to a write
    begun: int = 0  # the version of its write of the key that has begun last
    begun_tag: int = 0  # of its invalidation of the tag
    run: int = 0  # the run of the server whose log it follows
    asked: int = -1  # the tick in which it has sent XREAD, if the reply is still on its way
    found: int = 0  # what that XREAD has found: a position in the log
    empty: bool = False  # and nothing behind it
    demoting: Cell | None = None  # evicted from L1, on its way to L2
    demoting_from: int = 0  # the position in the log when it was evicted
    demoting_until: int = 0  # L2 does not carry the demotion out after this tick
    demoting_run: int = 0


class Task(NamedTuple):
    """A task of a process: which of its operations it has reached, and what it remembers of it."""

    at: int = 0
    phase: str = ""  # empty: between two operations
    time: int = 0
    current: bool = True  # False: a write has superseded what this task reads or loads
    need: int = 0  # the newest write that every tier had acknowledged when the operation began
    # Reading: what was observed in L2 and L3 (None: the tier could not be read), and the value read or loaded.
    seen2: str | None = None
    stamp2: int = 0
    seen3: str | None = None
    stamp3: int = 0
    token2: str | None = None
    token3: str | None = None
    invalidations: str | None = None
    held: Cell | None = None
    answered: bool = False  # a tier has answered
    # Writing. Outcomes: stored, removed, newer, refused, unknown; empty: not known yet.
    version: int = 0
    stamp: int = 0
    tries: int = 0
    out2: str = ""
    out3: str = ""
    newer: int = 0  # the stamp of what a tier has, if that is newer
    pending: bool = False  # sent to L3, which has not answered; L2 is written in the meantime
    lost: bool = False  # L3's answer will not arrive
    again: bool = False  # L2 is written again


class Record(NamedTuple):
    version: int
    id: str | None
    writer: int = -1  # the process that has written; it does not apply its own records
    # False: L3 has refused the write, and L2 may lose it. Then R1 is not promised.
    counts: bool = True


class Request(NamedTuple):
    """A write whose sender no longer knows what becomes of it."""

    task: int
    tier: int
    cell: Cell | None  # None: invalidates the tag
    removes: bool = False  # the tier may be unable to keep the entry


class Repair(NamedTuple):
    process: int
    tiers: tuple[int, ...]  # in this order
    cell: Cell | None
    version: int
    undo: str | None = None  # only where a tier has this id


class State(NamedTuple):
    processes: tuple[Process, ...]
    tasks: tuple[Task, ...]
    budget: tuple[int, ...]  # what the environment may still do, in the order of `Scenario.budget`
    now: int = 0
    truth: int = 0  # the version of the source
    l2: Cell | None = None
    l3: Cell | None = None
    token2: str | None = None
    token3: str | None = None
    invalidations: str | None = None  # L2's count of invalidations
    log: tuple[Record, ...] = ()
    trimmed: int = 0  # how many records of the log are gone
    late: tuple[Request, ...] = ()
    repairs: tuple[Repair, ...] = ()
    unpublished: tuple[tuple[int, Record], ...] = ()  # records that wait for a retry, with their process
    snapshot: tuple[Cell | None, str | None, str | None, int] | None = None
    run: int = 0  # of L2's server
    acknowledged2: int = 0  # the newest write that L2 has acknowledged
    acknowledged3: int = 0
    promised: int = 0  # the newest write that was reported as carried out by every tier
    floors: tuple[int, ...] = (0,) * (LAG + 1)  # what was acknowledged everywhere at the end of the ticks before
    # The ids of writes that no tier surely took. L1s may differ by what was loaded before and after them.
    failed: tuple[str, ...] = ()
    broken: str = ""  # the invariant that a step has violated


# Every rule of the protocol that the model can switch off.
RULES: Final = {
    # Observing, storing, copying
    "conditional": "what was loaded is stored only if the id is still the one observed",
    "copy conditional": "a row of L3 is copied to L2 only if the id is still the one observed",
    "marker": "whoever finds nothing in L2 leaves a marker; nothing is never compared",
    "observe first": "the tiers are observed before the loader runs",
    "observe before L3": "L2 is observed before L3 is read",
    "observe L3 for refresh": "an entry due for refresh: L3's id is observed before the loader runs",
    "unreadable": "nothing is stored in a tier that could not be read",
    "store limit": "a load or copy is stored only until G after the observation",
    "id lives G longer": "an entry's or tombstone's id lives G longer than its value",
    "inherit stamp": "a stored load inherits the stamp that was observed",
    "copy keeps stamp": "a copy from L3 keeps its row's id and stamp",
    "tombstone ends the walk": "L3's row does not answer if L2's tombstone has a greater stamp",
    "serve unverified": "an unverified entry of L1 is served only if no tier answers",
    "drop unverified": "a read that finds nothing drops L1's unverified entry, unless a write or load came between",
    "older row": "L3's row does not answer if anything that OBSERVE found in L2 has a greater stamp",
    # Demotions
    "demote if absent": "a demotion stores only if the key does not exist",
    "demote within G": "a demotion stores only if the process has processed the log within G",
    "demote level": "a demotion stores only if the process has processed the whole log, compared in L2's script",
    "demote verified": "an entry that waits for its verification after a gap is not demoted",
    "demote in flight": "an entry is not demoted while a write of its key is in flight in this process",
    "demote run": "a demotion compares the run of the server, too",
    # Explicit writes
    "L3 first": "an explicit write goes to L3, then to L2",
    "stamps": "the greater stamp wins",
    "try again": "a tier that answers 'newer' makes the writer start again with a greater stamp",
    "from L3": "the writer starts again from L3, not from the tier that answered 'newer'",
    "deadline": "a server does not carry out a write after its deadline",
    "report at deadline": "a failure of unknown outcome is reported when the deadline has passed and not before",
    "repair": "what one tier took and another did not is repaired",
    "undo": "a write that no tier surely took is undone where a tier has its id",
    "repair stamp": "a repair has the failed write's stamp",
    "repair invalidates": "a repair invalidates and does not store",
    "undo by id": "such a write is undone only where its id is found, and not by its stamp",
    "repair every tier": "a repair invalidates in L3, then in L2, whichever of them failed",
    "repair record": "a repair publishes its record even if L2 has something newer",
    "own L1": "the writer's L1 gives the value up if a tier did not carry the write out",
    "L2 again": "L2 is written again if L3 carries out a write after L2",
    "again after removed": "that is so if L3 cannot keep the entry, too",
    "invalidate again": "L2 is invalidated again if L3 carries out an invalidation after L2",
    "own newer": "a tier that has a later write of the same process is no reason to try again",
    "overlap repair": "a write during which its tag was invalidated is removed with a greater stamp, from L1, too",
    "undo each": "a write that is to be undone does not take the place of an earlier one in the queue",
    "undo record": "the record of an undo does not have the id that is undone",
    "repair own L1": "a repair drops the key from L1 of its own process, and supersedes what is in flight there",
    # In-flight marking
    "mark begin": "a write supersedes what is in flight in its process when it begins",
    "mark during": "what a load finds in a tier during a write of its process is not kept in L1",
    "mark end": "a write supersedes what is in flight in its process when it ends",
    "mark record": "a record supersedes what is in flight in the process that receives it",
    "mark gap": "a gap supersedes what is in flight",
    # Backplane
    "drop": "a record drops the key from L1 unless L1 holds that very id",
    "record after write": "the record follows the write",
    "publish again": "a publication that failed is retried",
    "gap": "a process whose last position is gone from the log notices the gap",
    "hello": "a process appends a record of its own and starts there",
    "lease": "L1 does not answer when its lease has passed",
    "lease from sending": "the lease begins when XREAD is sent, not when its reply arrives",
    "check after reading": "the last position is looked for after the records are read",
    "another run": "a connection to another run of the server is a gap",
    # Tags
    "token first": "a load creates the missing token when it begins; storing never creates one",
    "count": "a copy of a tagged row is stored only if the count of invalidations is the same as when L2 was read",
    "count random": "the count is a random value that readers create if it is missing, not a number from 0 on",
    "refused tag": "an invalidation that L3 refused leaves a token in L2 that says so; L3's rows are not copied then",
    "refused answers": "nor do they answer",
    "count of loads": "a load whose tags were not known compares the count of invalidations",
    "copy compares namespace": "a copy compares the token of the namespace",
    "tokens in L3": "tokens exist in L3 too, and are compared there",
    # Restarts
    "generation": "a server restarted from a snapshot gets a new token and a new count",
}


class Rules:
    """`rules["marker"]` is False if the scenario has switched that rule off."""

    def __init__(self, *off: str) -> None:
        if unknown := set(off) - set(RULES):
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        self.off = frozenset(off)

    def __getitem__(self, rule: str) -> bool:
        return rule not in self.off


class Scenario(NamedTuple):
    """Which processes run what, and what the environment may do.

    `tasks` names tasks by their process: `B` and `B'` are two tasks of process B. Operations: get, load, refresh (a
    load although L2 has a fresh entry), set, delete, invalidate.

    `budget` says how often the environment may do something:
    evict L2, evict token, evict count: L2 loses the key's cell, the tag's token, the count of invalidations;
    blind L2, blind L3: the tier does not answer a read; refuse L2, refuse L3: it refuses a write;
    cannot keep L2, cannot keep L3: it cannot keep an entry, and removes the former one;
    lose L2, lose L3: its reply to a write is lost, or the request is carried out late;
    slow L3: it answers a write after L2 has been written;
    demote, evict L1: L1 evicts its entry, with or without a demotion;
    trim, replace: the log loses its oldest record, or all;
    publish: a publication fails; snapshot: L2 is saved, and later restarted from it; tick: time passes.
    """

    name: str
    tasks: tuple[tuple[str, tuple[str, ...]], ...]
    budget: dict[str, int]
    processes: str = "AB"
    tiers: tuple[int, ...] = (2, 3)
    # What is there at the start: 2, 3 and the names of processes.
    filled: tuple[object, ...] = ()
    # How far the clock of a process is off, in stamps.
    skew: dict[str, int] = {}  # noqa: RUF012
    racing: bool = False  # two writers without a lock: one of the two wins
    ordered: bool = False  # although they race, the one that has begun later has won when everything is at rest
    tagged: bool = False
    untagged: bool = False  # but what is there at the start has no tag
    unknown: bool = False  # loads do not know the tag before they end
    implicit: bool = False  # the tag is that of the namespace: every entry has it
    slow_reads: bool = False  # XREAD, the check of the position and the arrival of the reply are steps
    cluster: bool = False  # the record is published after L2's write, not with it
    failing: str = "AB"  # the processes whose writes may fail
    recording: bool = True  # False: no backplane
    set_ttl: int = FOREVER  # of explicit writes, in ticks; 0: until the end of this tick
    strict: bool = False  # demands R1 of writes that L3 has refused as well, even if L2 may lose what they left
