"""The rules: which reads are older than an acknowledged write, and what else a history must not contain.

All functions are pure. The rules:

- **Stale read.** A write supersedes every older version of its key. A read that begins more than the allowed lag after
  a write was acknowledged by every tier must not return a superseded version. A miss is always allowed.
- **Wrong None.** `get_or_load` returns None only if the source had no value after the newest write that it had to know.
  This counts as a stale read.
- **Own write.** The process that made an acknowledged write has no lag: its next read must know it.
- **Race.** Two writers that write a key at the same time without a lock may end in either order. So a write supersedes
  a version that was set explicitly only if that `set` had returned before the write began. A loaded version gets no
  such excuse: its loader read the source before the newer write raised it.
- **Disagreement.** At rest, all places that have a key have the same version of it, and none is superseded. There is
  one excuse: no lower tier carried out any of the writes between the versions, and the greater version was loaded
  since. Nothing tells the places with the smaller version, and the writer knows that it has changed the source alone.
- **Expired read.** A read that begins more than the allowed lag after the last copy of its version has expired.
- **Unknown read.** A read of a version that nobody had stored.
- **Problem.** The log is not complete, or an operation raised an error.
- **Lost write.** If a primary is killed and a replica takes over, asynchronous replication loses acknowledged writes:
  those that the replica had not received. They are counted apart, and no other rule treats them as acknowledged. A
  write may be lost if it had begun when the primary was killed, and was acknowledged after the last time at which the
  primary was not ahead of what the replica has received. In a cluster, only writes of keys that this primary had count.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from .history import RUNNER, History, Load, Read, Write

__all__ = [
    "Disagreement",
    "StaleRead",
    "disagreements",
    "expired_reads",
    "lost_writes",
    "problems",
    "stale_reads",
    "unknown_reads",
    "unreplicated_writes",
    "without_lost",
]


@dataclass(frozen=True, slots=True)
class StaleRead:
    """A read of a superseded version.

    Attributes:
        read: the read.
        newer: the first acknowledged write that superseded what was read.
    """

    read: Read
    newer: Write

    @property
    def age_s(self) -> float:
        """How long the newer write had been acknowledged when the read began."""
        return (self.read.start - self.newer.end) / 1e9


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A key whose places do not agree at rest.

    Attributes:
        key: the key.
        places: the version in each place that has the key.
        newest: the newest acknowledged write.
    """

    key: str
    places: dict[str, int]
    newest: Write | None

    def __str__(self) -> str:
        places = ", ".join(f"{place} {version}" for place, version in sorted(self.places.items()))
        newest = "nothing" if self.newest is None else f"{self.newest.op} {self.newest.version}"
        return f"{self.key}: {places}; newest acknowledged write: {newest}"


class _Superseded:
    """What superseded each version of one key.

    Args:
        writes: all writes of the key.
        process: counts only the writes that this process had acknowledged; None for all processes.
    """

    def __init__(self, writes: Sequence[Write], process: int | None = None) -> None:
        self._set = {write.version: write for write in writes if write.op.startswith("set")}
        self._acked = sorted(
            (write for write in writes if write.acked and process in (None, write.process)),
            key=lambda write: write.version,
        )
        self._without_value = [write for write in writes if not write.exists]
        self._versions = [write.version for write in self._acked]
        # For each position the write that was acknowledged first, of this one and all newer ones.
        self._first = list(self._acked)
        for at in range(len(self._first) - 2, -1, -1):
            self._first[at] = min(self._first[at], self._first[at + 1], key=lambda write: write.end)

    @property
    def newest(self) -> Write | None:
        """The newest acknowledged write."""
        return self._acked[-1] if self._acked else None

    def by(self, version: int) -> Write | None:
        """Return the first acknowledged write that superseded a version."""
        at = bisect_right(self._versions, version)
        if at == len(self._acked):
            return None
        own = self._set.get(version)
        if own is None or own.end < self._first[at].start:
            return self._first[at]
        # The writers have raced: only what began after the end of the `set` is certainly newer.
        later = [write for write in self._acked[at:] if own.end < write.start]
        return min(later, key=lambda write: write.end, default=None)

    def by_value(self, read: Read) -> Write | None:
        """Return the first acknowledged write after the last version without a value that a read can have found."""
        last = max((write.version for write in self._without_value if write.start <= read.end), default=0)
        newer = self._acked[bisect_right(self._versions, last) :]
        return min(newer, key=lambda write: write.end, default=None)


def _writes(history: History) -> dict[str, list[Write]]:
    writes: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        writes[write.key].append(write)
    return writes


def stale_reads(history: History, *, own: bool = False) -> list[StaleRead]:
    """Return the reads of a version that had been superseded when they began, the oldest first.

    Args:
        history: the history.
        own: whether only the writes of the process that reads count.
    """
    writes = _writes(history)
    superseded: dict[tuple[str, int | None], _Superseded] = {}
    newer_than: dict[tuple[str, int | None, int], Write | None] = {}
    found = []
    for read in history.reads:
        writer = (read.key, read.process if own else None)
        if writer not in superseded:
            superseded[writer] = _Superseded(writes[read.key], writer[1])
        newer = None
        if read.version is not None:
            at = (*writer, read.version)
            if at not in newer_than:
                newer_than[at] = superseded[writer].by(read.version)
            newer = newer_than[at]
        elif read.op.startswith("get_or_load"):
            newer = superseded[writer].by_value(read)
        if newer is not None and read.start > newer.end:
            found.append(StaleRead(read, newer))
    return sorted(found, key=lambda stale: stale.age_s, reverse=True)


def unreplicated_writes(history: History, *, lost: bool = False) -> list[Write]:
    """Return the acknowledged writes that a replica which took over may not have received.

    Args:
        history: the history.
        lost: only those that no other tier has.
    """
    failovers = [failover for failover in history.failovers if failover.loses or not lost]
    return [
        write
        for write in history.writes
        if write.acked
        and any(
            one.replicated <= write.end and write.start <= one.start and (one.keys is None or write.key in one.keys)
            for one in failovers
        )
    ]


def lost_writes(history: History) -> list[Write]:
    """Return the acknowledged writes that asynchronous replication may have lost."""
    return unreplicated_writes(history, lost=True)


def without_lost(history: History) -> History:
    """Return a history in which the lost writes are not acknowledged."""
    lost = set(map(id, lost_writes(history)))
    writes = [
        replace(write, acked=False, detail="lost by replication") if id(write) in lost else write
        for write in history.writes
    ]
    return replace(history, writes=writes)


def disagreements(history: History, lost: Sequence[Write] = ()) -> list[Disagreement]:
    """Return the keys of which two places at rest have different versions, or one has a superseded version.

    Args:
        history: the history.
        lost: writes that replication has lost. If no later write of a key was acknowledged, its places may still
            have what the lost write has left there, or what it had replaced.
    """
    writes = _writes(history)
    last_lost = {write.key: write.version for write in sorted(lost, key=lambda write: write.version)}
    carried_out: dict[str, set[int]] = defaultdict(set)
    for write in history.writes:
        if not write.nowhere:
            carried_out[write.key].add(write.version)
    loaded = {(event.key, event.version) for event in history.changes if isinstance(event, Load)}
    superseded = {key: _Superseded(writes[key]) for key in {read.key for read in history.reads if read.at_rest}}
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for read in history.reads:
        if read.at_rest and read.version is not None:
            where = read.op.removeprefix("rest ")
            places[read.key][where if read.process == RUNNER else f"{where} of {read.process}"] = read.version
    return [
        Disagreement(key, found, superseded[key].newest)
        for key, found in sorted(places.items())
        if (
            len(set(found.values())) > 1
            and last_lost.get(key, 0) <= _version(superseded[key].newest)
            and not _of_loads_alone(key, set(found.values()), carried_out[key], loaded)
        )
        or any(superseded[key].by(version) for version in found.values())
    ]


def _of_loads_alone(key: str, versions: set[int], carried_out: set[int], loaded: set[tuple[str, int]]) -> bool:
    """Return whether the source has changed from one version to the next, and the cache could not be told."""
    oldest = min(versions)
    between = range(oldest + 1, max(versions) + 1)
    return carried_out.isdisjoint(between) and all((key, version) in loaded for version in versions - {oldest})


def _version(write: Write | None) -> int:
    return 0 if write is None else write.version


def _sources(history: History) -> dict[tuple[str, int], list[Write | Load]]:
    """What stored each version of each key."""
    sources: dict[tuple[str, int], list[Write | Load]] = defaultdict(list)
    for event in history.changes:
        if not event.negative if isinstance(event, Load) else event.op.startswith("set"):
            sources[event.key, event.version].append(event)
    return sources


def unknown_reads(history: History) -> list[Read]:
    """Return the reads of a version that nobody had begun to store when the read ended."""
    sources = _sources(history)
    return [
        read
        for read in history.reads
        if read.version is not None
        and not any(source.start <= read.end for source in sources.get((read.key, read.version), ()))
    ]


def expired_reads(history: History, *, lag_s: float = 0.0, stale_ttl_s: float = 0.0) -> list[Read]:
    """Return the reads that began more than `lag_s` after the last copy of their version had expired.

    Args:
        lag_s: how long it may take from a loader's return to the expiration that counts from the storing.
        stale_ttl_s: how long `get_or_load` may serve an expired value.
    """
    ends: dict[tuple[str, int], float] = {}
    for at, sources in _sources(history).items():
        ends[at] = max(float("inf") if source.ttl is None else source.end + source.ttl * 1e9 for source in sources)
    found = []
    for read in history.reads:
        # A tier may hold expired entries; those who read it through the cache must not get them.
        if read.version is not None and read.op not in ("rest l2", "rest l3"):
            extra_s = lag_s + (stale_ttl_s if read.op.startswith("get_or_load") else 0)
            if read.start > ends.get((read.key, read.version), float("inf")) + extra_s * 1e9:
                found.append(read)
    return found


def problems(history: History) -> list[str]:
    """Return what makes the history incomplete, so that its other verdicts mean little."""
    found = [f"{name} has a line that cannot be read" for name in history.torn]
    logged = Counter(event.process for event in history.changes)
    logged.update(read.process for read in history.reads)
    finished = {last.process: last for last in history.finished}
    for process in history.processes:
        last = finished.get(process)
        if last is None:
            found.append(f"process {process} has not finished its log")
        elif last.events != logged[process]:
            found.append(f"the log of process {process} has {logged[process]} events, but it wrote {last.events}")
        elif not logged[process]:
            found.append(f"process {process} has done nothing")
        if last is not None:
            found += [f"process {process}: {count} x {error}" for error, count in last.errors.items()]
    raised: dict[str, Counter[int]] = defaultdict(Counter)
    for write in history.writes:
        raised[write.key][write.version] += 1
    for key, version in history.versions.items():
        missing = [number for number in range(1, version + 1) if raised[key][number] != 1]
        if missing or len(raised[key]) > version:
            found.append(
                f"{key}: not exactly one write raised it to each of the versions {missing[:5]}, up to {version}"
            )
    return found
