"""The events of a history, and the log files that they are written to.

Each process writes a file of its own: one JSON object a line, in the order in which the operations ended. Times are
nanoseconds of `time.monotonic_ns()`. A version is the value of a key's counter, see `truth`.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

__all__ = [
    "RUNNER",
    "Event",
    "Failover",
    "Fault",
    "Finished",
    "History",
    "Load",
    "Log",
    "Read",
    "Write",
    "now",
    "read_history",
]

# The number of the process that starts the others.
RUNNER: Final = -1


class Write(Struct, frozen=True, tag=True):
    """A `set`, or the removal of a key by `delete`, `invalidate_tag` or `clear`.

    Attributes:
        process: the number of the process that wrote.
        op: the method.
        key: the key. A method that changes several keys is one event for each of them.
        version: what the writer raised the key's counter to. A removal raises it, too: what was there before is old.
        start: before the counter was raised.
        end: when the method returned.
        acked: whether the method reported that every tier carried it out.
        ttl: of a value that was set; None for no limit.
        detail: the answer of a method that reported a failure.
        exists: whether the key has a value in the source from this version on. A removal from the cache does not mean
            that it has none: a writer may change the source, and remove what the cache had of it.
        nowhere: whether the method reported that no lower tier carried it out.
    """

    process: int
    op: str
    key: str
    version: int
    start: int
    end: int
    acked: bool
    ttl: float | None = None
    detail: str = ""
    exists: bool = True
    nowhere: bool = False


class Load(Struct, frozen=True, tag=True):
    """A loader call that returned a value.

    Attributes:
        process: the number of the process.
        key: the key.
        version: the counter when the load began.
        start: before the counter was read.
        end: when the loader returned.
        ttl: of the loaded value; None for no limit.
        negative: whether the loader returned None, because the key had no value in that version.
    """

    process: int
    key: str
    version: int
    start: int
    end: int
    ttl: float | None = None
    negative: bool = False


class Read(Struct, frozen=True, tag=True):
    """A read of one key.

    Attributes:
        process: the number of the process.
        op: the method. At rest it is the place that was looked at: "rest l1", "rest l2", "rest l3" or "rest get".
        key: the key.
        version: what was found; None for a miss.
        start: when the method was called.
        end: when the method returned.
    """

    process: int
    op: str
    key: str
    version: int | None
    start: int
    end: int

    @property
    def at_rest(self) -> bool:
        """Whether the read came after all writes."""
        return self.op.startswith("rest")


class Fault(Struct, frozen=True, tag=True):
    """Something that the runner did to a process or a server."""

    name: str
    start: int
    end: int


class Failover(Struct, frozen=True, tag=True):
    """A primary that was killed, and whose replica took over.

    Attributes:
        replicated: every write that was acknowledged before this time had reached the replica.
        start: when the primary was killed.
        end: when the replica had become the primary.
        loses: whether no other tier has what the replica had not received.
        keys: the keys that were on this primary; None for all keys.
    """

    replicated: int
    start: int
    end: int
    loses: bool = True
    keys: tuple[str, ...] | None = None


class Finished(Struct, frozen=True, tag=True):
    """The last line of a log.

    Attributes:
        process: the number of the process.
        events: the number of lines before this one.
        errors: the exceptions that operations raised, and how often.
        stats: counts of the cache, which show what the process has exercised.
    """

    process: int
    events: int
    errors: dict[str, int] = {}
    stats: dict[str, int] = {}


Event = Write | Load | Read | Fault | Failover | Finished
_Timed = TypeVar("_Timed", Write, Load, Read, Fault, Failover)


class Log:
    """Writes the events of one process to a file.

    Args:
        folder: the folder of the history.
        process: the number of the process.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._process = process
        self._file = (folder / f"process{process}.jsonl").open("wb")
        self._encoder = msgspec.json.Encoder()
        self._events = 0

    def add(self, event: Event) -> None:
        """Append an event."""
        self._file.write(self._encoder.encode(event) + b"\n")
        self._events += 1

    def finish(self, errors: Counter[str] | None = None, stats: dict[str, int] | None = None) -> None:
        """Append the last line, and close the file."""
        finished = Finished(self._process, self._events, dict(errors or {}), stats or {})
        self._file.write(self._encoder.encode(finished) + b"\n")
        self._file.close()


class History(Struct, kw_only=True):
    """All events of a run.

    Attributes:
        processes: the numbers of the processes that were started.
        writes, loads, reads, faults, failovers: the events, in the order of their start.
        finished: the last lines of the logs.
        versions: the counter of each key at the end.
        torn: log files with a line that cannot be read.
    """

    processes: tuple[int, ...] = ()
    writes: list[Write] = []
    loads: list[Load] = []
    reads: list[Read] = []
    faults: list[Fault] = []
    failovers: list[Failover] = []
    finished: list[Finished] = []
    versions: dict[str, int] = {}
    torn: list[str] = []

    @classmethod
    def of(
        cls, events: Iterable[Event], *, processes: Iterable[int] = (), versions: dict[str, int] | None = None
    ) -> "History":
        """Return a history of events in any order."""
        events = list(events)
        return cls(
            processes=tuple(processes),
            writes=_in_order(events, Write),
            loads=_in_order(events, Load),
            reads=_in_order(events, Read),
            faults=_in_order(events, Fault),
            failovers=_in_order(events, Failover),
            finished=[event for event in events if isinstance(event, Finished)],
            versions=versions or {},
        )

    @property
    def changes(self) -> list[Write | Load]:
        """The writes and then the loads."""
        return [*self.writes, *self.loads]


def _in_order(events: list[Event], kind: type[_Timed]) -> list[_Timed]:
    return sorted((event for event in events if isinstance(event, kind)), key=lambda event: event.start)


def read_history(folder: Path, *, processes: Iterable[int], versions: dict[str, int]) -> History:
    """Read the log files of a folder."""
    torn: list[str] = []
    decoder = msgspec.json.Decoder(Event)

    def events() -> Iterator[Event]:
        for path in sorted(folder.glob("process*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError:
                    torn.append(path.name)

    history = History.of(events(), processes=processes, versions=versions)
    history.torn = torn
    return history


def now() -> int:
    """Return the time of an event."""
    return time.monotonic_ns()
