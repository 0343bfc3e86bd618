"""The verdict over a history, and the stories of the simplest stale read and of keys that disagree."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .checker import (
    Disagreement,
    StaleRead,
    disagreements,
    expired_reads,
    lost_writes,
    problems,
    stale_reads,
    unknown_reads,
    unreplicated_writes,
    without_lost,
)
from .history import RUNNER, Fault, History, Load, Read, Write

__all__ = ["Report", "check"]

# The report counts stale reads for these lags, besides the allowed one.
LAGS_S: Final = (0.0, 0.1, 1.0)
_WITNESSES_COMPARED: Final = 300
_WITNESS_LINES: Final = 14
_LINES_AT_REST: Final = 60


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict over a history.

    Attributes:
        history: the history.
        lag_s: the allowed lag.
        superseded: all reads of a superseded version, including those within the lag; the oldest first.
        own: the reads of a version that the same process had superseded; the oldest first.
        disagreements: see `disagreements`.
        expired: see `expired_reads`.
        unknown: see `unknown_reads`.
        problems: see `problems`.
        unreplicated: how many acknowledged writes a replica which took over may not have received.
        lost: see `lost_writes`; they are no reason to fail.
        lost_reads: how many reads after the lag found what only lost writes had superseded.
        title: what was run.
    """

    history: History
    lag_s: float
    superseded: list[StaleRead]
    own: list[StaleRead]
    disagreements: list[Disagreement]
    expired: list[Read]
    unknown: list[Read]
    problems: list[str]
    unreplicated: int = 0
    lost: list[Write] = field(default_factory=list)
    lost_reads: int = 0
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
        verdicts = (self.stale, self.own, self.disagreements, self.expired, self.unknown, self.problems)
        return not any(verdicts)

    @property
    def reads(self) -> int:
        """The number of reads, without those at rest."""
        return sum(not read.at_rest for read in self.history.reads)

    @property
    def found(self) -> int:
        """How many of these reads found a value. A cache that always misses is never stale."""
        return sum(not read.at_rest and read.version is not None for read in self.history.reads)

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged by every tier. The others prove nothing."""
        return sum(write.acked for write in self.history.writes)

    def __str__(self) -> str:
        history = self.history
        lines = [
            f"{self.title}: {'ok' if self.ok else 'NOT OK'}",
            f"  processes        {len(history.processes)}",
            f"  reads            {self.reads:,}, of which {self.found:,} found a value",
            f"  writes           {len(history.writes):,}, of which {self.acknowledged:,} were acknowledged everywhere",
            f"  loads            {len(history.loads):,}",
            f"  stale reads      {len(self.stale):,} later than {self.lag_s:g} s after the acknowledgment"
            + "".join(f"; {len(self.stale_after(lag)):,} later than {lag:g} s" for lag in LAGS_S if lag != self.lag_s),
            f"  worst staleness  {max(0.0, self.superseded[0].age_s if self.superseded else 0.0):.3f} s",
            f"  own writes       {len(self.own):,} reads older than an acknowledged write of the same process",
            f"  at rest          {len(self.disagreements)} of {len(history.versions)} keys disagree",
            f"  expired reads    {len(self.expired):,}",
            f"  unknown reads    {len(self.unknown):,}",
        ]
        faults = Counter(fault.name for fault in history.faults)
        if faults:
            lines.append("  faults           " + ", ".join(f"{count} x {name}" for name, count in faults.items()))
        if history.failovers:
            lines.append(
                f"  replication      {self.unreplicated:,} acknowledged writes had not reached the replica in time;"
                f" {len(self.lost):,} of them were lost, and {self.lost_reads:,} reads found what these had superseded"
            )
        if self.stats:
            lines.append("  the caches       " + ", ".join(f"{name} {count:,}" for name, count in self.stats.items()))
        lines += [f"  problem          {problem}" for problem in self.problems[:10]]
        lines += [f"  disagreement     {disagreement}" for disagreement in self.disagreements[:5]]
        for story in [self.witness(), *map(self.witness_at_rest, self.disagreements[:2])]:
            if story:
                lines += ["", *story]
        return "\n".join(lines)

    def witness(self) -> list[str]:
        """Return the story of the stale read that takes the fewest events to tell, a line for each event."""
        stale = self.stale or self.own
        if not stale:
            return []
        # From the newer write to the read: what is short here has a short story.
        shortest = sorted(stale, key=lambda stale: stale.read.end - stale.newer.start)[:_WITNESSES_COMPARED]
        by_key: dict[str, list[Write | Load]] = defaultdict(list)
        for event in self.history.changes:
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

    def witness_at_rest(self, disagreement: Disagreement) -> list[str]:
        """Return the events of a key since its newest write that every tier acknowledged, a line for each event.

        Without such a write, the story begins with the first event. The last events are shown if there are many.
        """
        key, newest = disagreement.key, disagreement.newest
        begin = 0 if newest is None else newest.start
        story = [
            *(event for event in self.history.changes if event.key == key and event.end >= begin),
            *(fault for fault in self.history.faults if fault.end >= begin),
            *(read for read in self.history.reads if read.key == key and read.at_rest),
        ]
        story.sort(key=lambda event: event.start)
        skipped = max(0, len(story) - _LINES_AT_REST)
        lines = _lines(f"what happened to {key}:", story[skipped:])
        return [*lines, f"  ({skipped} earlier events are not shown)"] if skipped else lines


def check(history: History, *, lag_s: float = 1.0, stale_ttl_s: float = 0.0, title: str = "history") -> Report:
    """Judge a history.

    Args:
        history: the history.
        lag_s: how long after its acknowledgment a write may be unknown to other processes.
        stale_ttl_s: how long `get_or_load` may serve an expired value.
        title: the first words of the report.
    """
    stats: Counter[str] = Counter()
    for last in history.finished:
        stats.update(last.stats)
    lost, superseded_or_lost = lost_writes(history), 0
    unreplicated = len(unreplicated_writes(history))
    if lost:
        superseded_or_lost = sum(stale.age_s > lag_s for stale in stale_reads(history))
        history = without_lost(history)
    report = Report(
        history,
        lag_s,
        stale_reads(history),
        stale_reads(history, own=True),
        disagreements(history, lost),
        expired_reads(history, lag_s=lag_s, stale_ttl_s=stale_ttl_s),
        unknown_reads(history),
        problems(history),
        unreplicated,
        lost,
        title=title,
        stats=stats,
    )
    return replace(report, lost_reads=max(0, superseded_or_lost - len(report.stale)))


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
    stored = [event for event in events if event.start <= read.end and _stores(event, read.version)]
    begin = min(max((event.start for event in stored), default=stale.newer.start), stale.newer.start)
    story: list[Write | Load | Fault | Read] = [
        *(event for event in events if begin <= event.start <= read.end),
        *(fault for fault in faults if fault.end >= begin and fault.start <= read.end),
        *([first_read] if begin <= first_read.start and first_read != read else []),
        read,
    ]
    return sorted(story, key=lambda event: event.start)


def _stores(event: Write | Load, version: int | None) -> bool:
    """Return whether an event stores a version, or a negative entry for None."""
    if isinstance(event, Load):
        return version == (None if event.negative else event.version)
    return event.version == version and event.op.startswith("set")


def _told(stale: StaleRead, story: Sequence[Write | Load | Fault | Read]) -> list[str]:
    read, newer = stale.read, stale.newer
    title = (
        f"process {read.process} read {'nothing' if read.version is None else f'version {read.version}'} of {read.key}"
        f" {stale.age_s:.3f} s after version {newer.version} was acknowledged ({newer.op} in process {newer.process}):"
    )
    shown = list(story)
    skipped = len(shown) - _WITNESS_LINES
    if skipped <= 0:
        return _lines(title, shown)
    shown = [*shown[: _WITNESS_LINES // 2], *shown[-_WITNESS_LINES // 2 :]]
    if newer not in shown:
        shown.insert(_WITNESS_LINES // 2, newer)
        skipped -= 1
    return [*_lines(title, shown), f"  ({skipped} events between them are not shown)"]


def _lines(title: str, story: Sequence[Write | Load | Fault | Read]) -> list[str]:
    first = story[0].start
    lines = [title, "        from ms        to ms  process"]
    for event in story:
        span = f"  {(event.start - first) / 1e6:13,.3f}{(event.end - first) / 1e6:13,.3f}"
        lines.append(f"{span}  {_words(event)}")
    return lines


def _words(event: Write | Load | Fault | Read) -> str:
    if isinstance(event, Fault):
        return f"         {event.name}"
    who = "runner " if event.process == RUNNER else f"{event.process:7}"
    if isinstance(event, Load):
        return f"{who}  load -> {event.version}{', which is no value' if event.negative else ''}"
    if isinstance(event, Read):
        return f"{who}  {event.op} -> {event.version}"
    return f"{who}  {event.op} {event.version}: {'acknowledged' if event.acked else 'failed, ' + event.detail}"
