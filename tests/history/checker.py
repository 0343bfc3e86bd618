"""Decides over a history: which reads are older than an acknowledged write, and what else must not be.

All functions are pure. The rules:

- **Stale read.** A write supersedes every older version of its key. A read that begins more than the allowed lag after
  a write was acknowledged by every tier must not return a superseded version. A miss is always allowed.
- **Race.** Two writers that write a key at the same time without a lock may end in either order. So a write supersedes
  a version that was set explicitly only if that `set` had returned before the write began. A loaded version gets no
  such excuse: its loader read the source before the newer write raised it.
- **Disagreement.** At rest, all places that have a key have the same version of it, and none is superseded.
- **Expired read.** A read that begins more than the allowed lag after the last copy of its version has expired.
- **Unknown read.** A read of a version that nobody had stored.
- **Problem.** The log is not complete, or an operation raised an error.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .history import RUNNER, Fault, History, Load, Read, Write

__all__ = ["Disagreement", "Report", "StaleRead", "check", "expired_reads", "problems", "stale_reads", "unknown_reads"]

LAGS_S: Final = (0.0, 0.1, 1.0)
_WITNESSES_COMPARED: Final = 300
_WITNESS_LINES: Final = 14


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
    """What superseded each version of one key."""

    def __init__(self, writes: Iterable[Write]) -> None:
        writes = list(writes)
        self._set = {write.version: write for write in writes if write.op.startswith("set")}
        self._acked = sorted((write for write in writes if write.acked), key=lambda write: write.version)
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


def _superseded(history: History) -> dict[str, _Superseded]:
    writes: dict[str, list[Write]] = {key: [] for key in history.versions}
    for read in history.reads:
        writes.setdefault(read.key, [])
    for write in history.writes:
        writes.setdefault(write.key, []).append(write)
    return {key: _Superseded(found) for key, found in writes.items()}


def stale_reads(history: History, *, lag_s: float = 0.0) -> list[StaleRead]:
    """Return the reads of a version that had been superseded for more than `lag_s`, the oldest first."""
    superseded = _superseded(history)
    memo: dict[tuple[str, int], Write | None] = {}
    found = []
    for read in history.reads:
        if read.version is not None:
            at = (read.key, read.version)
            if at not in memo:
                memo[at] = superseded[read.key].by(read.version)
            newer = memo[at]
            if newer is not None and read.start > newer.end + lag_s * 1e9:
                found.append(StaleRead(read, newer))
    return sorted(found, key=lambda stale: stale.age_s, reverse=True)


def disagreements(history: History) -> list[Disagreement]:
    """Return the keys of which two places at rest have different versions, or one has a superseded version."""
    superseded = _superseded(history)
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for read in history.reads:
        if read.at_rest and read.version is not None:
            where = read.op.removeprefix("rest ")
            places[read.key][where if read.process == RUNNER else f"{where} of {read.process}"] = read.version
    return [
        Disagreement(key, found, superseded[key].newest)
        for key, found in sorted(places.items())
        if len(set(found.values())) > 1 or any(superseded[key].by(version) for version in found.values())
    ]


def _sources(history: History) -> dict[tuple[str, int], list[Write | Load]]:
    """What stored each version of each key."""
    sources: dict[tuple[str, int], list[Write | Load]] = defaultdict(list)
    for event in (*history.writes, *history.loads):
        if isinstance(event, Load) or event.op.startswith("set"):
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
    logged = Counter(event.process for event in (*history.writes, *history.loads, *history.reads))
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


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict over a history.

    Attributes:
        history: the history.
        lag_s: the allowed lag.
        superseded: all reads of a superseded version, those within the lag, too; the oldest first.
        disagreements: see `disagreements`.
        expired: see `expired_reads`.
        unknown: see `unknown_reads`.
        problems: see `problems`.
        title: what was run.
    """

    history: History
    lag_s: float
    superseded: list[StaleRead]
    disagreements: list[Disagreement]
    expired: list[Read]
    unknown: list[Read]
    problems: list[str]
    title: str = ""
    stats: Counter[str] = field(default_factory=Counter)

    @property
    def stale(self) -> list[StaleRead]:
        """The reads of a version that had been superseded for longer than the allowed lag; the oldest first."""
        return self.stale_after(self.lag_s)

    def stale_after(self, lag_s: float) -> list[StaleRead]:
        """Return what `stale` would be with another lag."""
        return [stale for stale in self.superseded if stale.age_s > lag_s]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not (self.stale or self.disagreements or self.expired or self.unknown or self.problems)

    def __str__(self) -> str:
        history = self.history
        found = [read for read in history.reads if read.version is not None and not read.at_rest]
        reads = [read for read in history.reads if not read.at_rest]
        acked = sum(write.acked for write in history.writes)
        lines = [
            f"{self.title}: {'ok' if self.ok else 'NOT OK'}",
            f"  processes        {len(history.processes)}",
            f"  reads            {len(reads):,}, of which {len(found):,} found a value",
            f"  writes           {len(history.writes):,}, of which {acked:,} were acknowledged everywhere",
            f"  loads            {len(history.loads):,}",
            f"  stale reads      {len(self.stale):,} later than {self.lag_s:g} s after the acknowledgement"
            + "".join(f"; {len(self.stale_after(lag)):,} later than {lag:g} s" for lag in LAGS_S if lag != self.lag_s),
            f"  worst staleness  {max(0.0, self.superseded[0].age_s if self.superseded else 0.0):.3f} s",
            f"  at rest          {len(self.disagreements)} of {len(history.versions)} keys disagree",
            f"  expired reads    {len(self.expired):,}",
            f"  unknown reads    {len(self.unknown):,}",
        ]
        faults = Counter(fault.name for fault in history.faults)
        if faults:
            lines.append("  faults           " + ", ".join(f"{count} x {name}" for name, count in faults.items()))
        if self.stats:
            lines.append("  the caches       " + ", ".join(f"{name} {count:,}" for name, count in self.stats.items()))
        lines += [f"  problem          {problem}" for problem in self.problems[:10]]
        lines += [f"  disagreement     {disagreement}" for disagreement in self.disagreements[:5]]
        witness = self.witness()
        if witness:
            lines += ["", *witness]
        return "\n".join(lines)

    def witness(self) -> list[str]:
        """Return the story of the stale read that takes the fewest events to tell, a line for each event."""
        stale = self.stale
        if not stale:
            return []
        # From the newer write to the read: what is short here has a short story.
        shortest = sorted(stale, key=lambda stale: stale.read.end - stale.newer.start)[:_WITNESSES_COMPARED]
        by_key: dict[str, list[Write | Load]] = defaultdict(list)
        for event in (*self.history.writes, *self.history.loads):
            by_key[event.key].append(event)
        first_reads: dict[tuple[int, str, int | None], Read] = {}
        for read in self.history.reads:
            first_reads.setdefault((read.process, read.key, read.version), read)
        stories = [
            _story(
                one,
                first_reads[one.read.process, one.read.key, one.read.version],
                by_key[one.read.key],
                self.history.faults,
            )
            for one in shortest
        ]
        at = min(range(len(stories)), key=lambda at: (len(stories[at]), shortest[at].read.end - stories[at][0].start))
        return _told(shortest[at], stories[at])


def check(history: History, *, lag_s: float = 1.0, stale_ttl_s: float = 0.0, title: str = "history") -> Report:
    """Judge a history.

    Args:
        history: the history.
        lag_s: how long after its acknowledgement a write may be unknown to other processes.
        stale_ttl_s: how long `get_or_load` may serve an expired value.
        title: the first words of the report.
    """
    stats: Counter[str] = Counter()
    for last in history.finished:
        stats.update(last.stats)
    return Report(
        history,
        lag_s,
        stale_reads(history),
        disagreements(history),
        expired_reads(history, lag_s=lag_s, stale_ttl_s=stale_ttl_s),
        unknown_reads(history),
        problems(history),
        title,
        stats,
    )


def _story(
    stale: StaleRead, first_read: Read, events: Sequence[Write | Load], faults: Sequence[Fault]
) -> list[Write | Load | Fault | Read]:
    """What happened to the key from the last time that the old version was stored until it was read.

    Args:
        stale: the read.
        first_read: of the same version by the same process.
        events: all of the key.
        faults: all of the history.
    """
    read = stale.read
    stored = [
        event
        for event in events
        if event.version == read.version
        and event.start <= read.end
        and (isinstance(event, Load) or event.op[:3] == "set")
    ]
    begin = min(max((event.start for event in stored), default=stale.newer.start), stale.newer.start)
    story: list[Write | Load | Fault | Read] = [
        *(event for event in events if begin <= event.start <= read.end),
        *(fault for fault in faults if fault.end >= begin and fault.start <= read.end),
        *([first_read] if begin <= first_read.start and first_read != read else []),
        read,
    ]
    return sorted(story, key=lambda event: event.start)


def _told(stale: StaleRead, story: Sequence[Write | Load | Fault | Read]) -> list[str]:
    first = story[0].start
    read, newer = stale.read, stale.newer
    title = (
        f"process {read.process} read version {read.version} of {read.key} {stale.age_s:.3f} s after version"
        f" {newer.version} was acknowledged ({newer.op} in process {newer.process}):"
    )
    lines = [title, "        from ms        to ms  process"]
    shown = list(story)
    skipped = len(shown) - _WITNESS_LINES
    if skipped > 0:
        shown = [*shown[: _WITNESS_LINES // 2], *shown[-_WITNESS_LINES // 2 :]]
        if stale.newer not in shown:
            shown.insert(_WITNESS_LINES // 2, stale.newer)
            skipped -= 1
    for event in shown:
        span = f"  {(event.start - first) / 1e6:13,.3f}{(event.end - first) / 1e6:13,.3f}"
        lines.append(f"{span}  {_words(event)}")
    if skipped > 0:
        lines.append(f"  ({skipped} events between them are not shown)")
    return lines


def _words(event: Write | Load | Fault | Read) -> str:
    if isinstance(event, Fault):
        return f"         {event.name}"
    who = "runner " if event.process == RUNNER else f"{event.process:7}"
    if isinstance(event, Load):
        return f"{who}  load -> {event.version}"
    if isinstance(event, Read):
        return f"{who}  {event.op} -> {event.version}"
    return f"{who}  {event.op} {event.version}: {'acknowledged' if event.acked else 'failed, ' + event.detail}"
