"""Where the instances of a service leave their reports, and keep a small document that they share."""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from acgsperf._native.arguments import checked_seconds
from acgsperf.errors import AcgsperfError, FleetError
from acgsperf.fleet.report import OtherFormatError, Report, decode_report, encode_report
from acgsperf.fleet.server_store import ServerStore

__all__ = [
    "AT_ONCE",
    "LARGEST_DOCUMENT_BYTES",
    "MOST_REPORTS",
    "REPORTS_A_PAGE",
    "Found",
    "ReportStore",
    "Stored",
]

# More reports are not read, and those read so far are returned.
MOST_REPORTS: Final = 10_000
# Of usual reports, 10,000 have 50 MiB.
MOST_BYTES: Final = 128 << 20
LARGEST_DOCUMENT_BYTES: Final = 64 << 10
REPORTS_A_PAGE: Final = 200
# Reports decoded at a time, before other tasks of the event loop run: one takes about 0.3 ms.
AT_ONCE: Final = 5
# A report may be replaced after the time was read, and the clocks of a primary and its former replica differ a little.
_TOLERATED_S: Final = 10.0
# Redis refuses times that are too far away.
_LONGEST_LIFETIME_S: Final = 10 * 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored for an instance.

    Attributes:
        instance: names the instance.
        age_s: the seconds since it was stored, by the server's clock.
        blob: the report as bytes; None if it is too large, so that it was not read.
    """

    instance: str
    age_s: float
    blob: bytes | None


@dataclass(slots=True)
class Found:
    """The reports of a fleet.

    Attributes:
        reports: the valid ones.
        ages_s: for each of them, the seconds since it was stored, by the server's clock.
        unreadable: reports that are damaged, too large or have impossible figures.
        other_format: reports of a version of the package that this version cannot read.
        from_the_future: reports that the server stored later than now, by its clock. Its clock was set back.
        more: whether there are more reports than are read: 10,000, or 128 MiB.
    """

    reports: list[Report] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    unreadable: int = 0
    other_format: int = 0
    from_the_future: int = 0
    more: bool = False
    _bytes: int = 0

    async def add(self, page: Iterable[Stored]) -> bool:
        """Add what was stored. Other tasks of the event loop run in between.

        Returns:
            Whether more can be added.
        """
        for number, stored in enumerate(page, 1):
            self._bytes += len(stored.blob or b"")
            if self._bytes > MOST_BYTES:
                self.more = True
                return False
            self._add(stored)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        return True

    def _add(self, stored: Stored) -> None:
        if stored.blob is None:
            self.unreadable += 1
            return
        try:
            report = decode_report(stored.blob)
        except OtherFormatError:
            self.other_format += 1
            return
        except ValueError:
            self.unreadable += 1
            return
        if report.instance != stored.instance or not math.isfinite(stored.age_s):
            self.unreadable += 1
        elif stored.age_s < -_TOLERATED_S:
            self.from_the_future += 1
        else:
            self.reports.append(report)
            self.ages_s.append(max(stored.age_s, 0.0))


class ReportStore(ServerStore):
    """Keeps the reports of the instances that share a namespace, and one small document that they share.

    Use it as an async context manager, or call `open` and `close`. All times are those of the server's clock. The
    clocks of the instances do not matter.

    Args:
        where: the address of the server, for messages; without a password.
        namespace: instances with the same one on the same server see each other.
        lifetime: seconds after which a report that was not replaced is removed.
        timeout: seconds after which a call fails.

    Attributes:
        where: the address of the server, for messages; without a password.
        namespace: the namespace.
    """

    content = "reports"
    error: type[AcgsperfError] = FleetError

    def __init__(self, where: str, namespace: str, *, lifetime: float = 90.0, timeout: float = 5.0) -> None:
        super().__init__(where, namespace, timeout)
        self._lifetime_ms = max(1, round(min(checked_seconds("lifetime", lifetime), _LONGEST_LIFETIME_S) * 1000))

    async def publish(self, report: Report) -> None:
        """Replace the report of an instance, and let it live for `lifetime`.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
            ValueError: if the report has more than 128 KiB.
        """
        blob = encode_report(report)
        await self._call(self._publish(report.instance, blob))

    async def withdraw(self, instance: str) -> None:
        """Remove the report of an instance.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
        """
        await self._call(self._withdraw(instance))

    async def found(self) -> Found:
        """Return the reports that have not expired, and how many cannot be used.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
        """
        found = Found()
        await self._call(self._read(found))
        return found

    async def reports(self) -> list[Report]:
        """Return the valid reports that have not expired.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
        """
        return (await self.found()).reports

    async def state(self) -> tuple[int, bytes]:
        """Return the revision of the shared document, and the document; 0 and b"" if there is none.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
        """
        return await self._call(self._state())

    async def replace_state(self, expected_revision: int, document: bytes) -> bool:
        """Replace the shared document if it still has a revision. The server compares and replaces in one step.

        Each replacement has a greater revision than all before, also than those that the server has lost. Call `state`
        for the new one.

        Args:
            expected_revision: what `state` has returned.
            document: at most 64 KiB.

        Returns:
            Whether it was replaced. After a `FleetError`, that is unknown.

        Raises:
            FleetError: if the server cannot be reached or refuses it.
            ValueError: if the document is too large.
        """
        if len(document) > LARGEST_DOCUMENT_BYTES:
            raise ValueError(f"document must have at most {LARGEST_DOCUMENT_BYTES} bytes, got {len(document)}")
        return await self._call(self._replace_state(expected_revision, document))

    @abstractmethod
    async def _publish(self, instance: str, blob: bytes) -> None:
        """Carry out `publish`."""

    @abstractmethod
    async def _withdraw(self, instance: str) -> None:
        """Carry out `withdraw`."""

    @abstractmethod
    async def _read(self, found: Found) -> None:
        """Add what is stored to `found`, in pages."""

    @abstractmethod
    async def _state(self) -> tuple[int, bytes]:
        """Carry out `state`."""

    @abstractmethod
    async def _replace_state(self, expected_revision: int, document: bytes) -> bool:
        """Carry out `replace_state`."""
