"""The report of an instance: its figures since it started, and the settings in force. It contains no password."""

import math
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from acgsperf._native.hdr_codec import layout_of
from acgsperf.dispatch import LatencyHistogram

__all__ = [
    "FORMAT",
    "LARGEST_REPORT_BYTES",
    "MOST_PER_S",
    "OtherFormatError",
    "Report",
    "decode_report",
    "encode_report",
]

# It changes when older readers would misunderstand a report. New fields with defaults do not change it.
FORMAT: Final = 1
# A report has about 5 KiB. Larger ones are neither written nor read.
LARGEST_REPORT_BYTES: Final = 128 << 10
# Requests per second. No process can answer so many, so a report of more is false.
MOST_PER_S: Final = 1e8

# The largest integer that every JSON reader and a float can hold.
_MOST: Final = 2**53
_LONGEST_S: Final = 1e10
_LONGEST_TEXT: Final = 200
_MOST_ITEMS: Final = 100
_INSTANCE: Final = re.compile("[0-9a-f]{16}")
_EMPTY: Final = LatencyHistogram()
_LAYOUT: Final = _EMPTY.lowest_ns, _EMPTY.highest_ns, _EMPTY.significant_figures


class OtherFormatError(ValueError):
    """A report of another version of the package, which this version cannot read."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one instance since it started.

    A counter of an instance never decreases: an instance that was restarted has another `instance`.

    Attributes:
        instance: names the instance: 16 hexadecimal digits, chosen at random when it starts.
        sequence: the number of the report, from 1.
        seconds: how long the instance has run.
        failed, violations, missed: as in `Counts` of the service.
        latency: of its answered requests, in ns, encoded as HdrHistogram V2.
        name: names the instance for people: host name and process id.
        version: of the package.
        unhealthy: what does not work now: pools, tiers and the backplane.
        alerts: the names of the alerts that are raised now.
        backplane_lag_ms: P99 of the time from a write in another process to the arrival of its record here; None if no
            record has arrived.
        settings: the settings in force that may be tuned, by name.
        revision: the revision of the tuning in force; 0 for none.
        arm: the part of a trial in which the instance takes part; empty for none.
        tuning: what the instance tells the coordinator of the tuning: an encoded `Standing`; empty for nothing.
        format: the format of the report.
    """

    instance: str
    sequence: int
    seconds: float
    failed: int
    violations: int
    missed: int
    latency: bytes
    name: str = ""
    version: str = ""
    unhealthy: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()
    backplane_lag_ms: float | None = None
    settings: dict[str, float] = {}
    revision: int = 0
    arm: str = ""
    tuning: bytes = b""
    format: int = FORMAT

    @property
    def is_valid(self) -> bool:
        """Whether a real instance can have these figures, and everything has a reasonable size.

        The counts of `latency` are not looked at.
        """
        counts = self.failed, self.violations, self.missed
        lag_ms = self.backplane_lag_ms
        return (
            self.format == FORMAT
            and _INSTANCE.fullmatch(self.instance) is not None
            and 1 <= self.sequence <= _MOST
            and 0 <= self.revision <= _MOST
            and 0 <= self.seconds <= _LONGEST_S
            and all(0 <= count <= self._most for count in counts)
            and (lag_ms is None or 0 <= lag_ms <= _LONGEST_S)
            and max(len(self.unhealthy), len(self.alerts), len(self.settings)) <= _MOST_ITEMS
            and _are_texts((self.name, self.version, self.arm, *self.unhealthy, *self.alerts, *self.settings))
            and all(map(math.isfinite, self.settings.values()))
            and _has_usual_layout(self.latency)
        )

    @property
    def latency_ns(self) -> LatencyHistogram:
        """The decoded latency histogram.

        Raises:
            ValueError: if it cannot be decoded, or has an impossible number of latencies.
        """
        latency_ns = LatencyHistogram.decode(self.latency)
        if latency_ns.count > self._most:
            raise ValueError(f"a report of {self.seconds:g} s cannot have {latency_ns.count} latencies")
        return latency_ns

    @property
    def _most(self) -> float:
        """The highest count that the instance can have reached. A second more, because it has just started perhaps."""
        return min(MOST_PER_S * (self.seconds + 1), _MOST)


class _Format(msgspec.Struct):
    format: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Report).decode
_decode_format: Final = msgspec.msgpack.Decoder(_Format).decode


def encode_report(report: Report) -> bytes:
    """Return a report as bytes.

    Raises:
        ValueError: if they are more than 128 KiB.
    """
    blob = _encode(report)
    if len(blob) > LARGEST_REPORT_BYTES:
        raise ValueError(f"a report must have at most {LARGEST_REPORT_BYTES} bytes, got {len(blob)}")
    return blob


def decode_report(blob: bytes) -> Report:
    """Return the report in some bytes.

    Time and memory are bounded by `LARGEST_REPORT_BYTES`.

    Raises:
        OtherFormatError: if it has another format.
        ValueError: if it is no report, has more than 128 KiB, or is not valid.
    """
    if len(blob) > LARGEST_REPORT_BYTES:
        raise ValueError(f"a report must have at most {LARGEST_REPORT_BYTES} bytes, got {len(blob)}")
    try:
        try:
            report = _decode(blob)
            found = report.format
        except ValueError as error:
            problem, found = error, _decode_format(blob).format
            if found == FORMAT:
                raise problem from None
    # A hostile report may be nested.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a report: {error}") from None
    if found != FORMAT:
        raise OtherFormatError(f"format of a report must be {FORMAT}, got {found}")
    if not report.is_valid:
        raise ValueError("not a report: it has impossible figures")
    return report


def _are_texts(texts: Iterable[str]) -> bool:
    return all(len(text) <= _LONGEST_TEXT and text.isprintable() for text in texts)


def _has_usual_layout(latency: bytes) -> bool:
    """Return whether a histogram has the layout of all instances. A few bytes can ask for another one of 50 MB."""
    try:
        return layout_of(latency) == _LAYOUT
    except ValueError:
        return False
