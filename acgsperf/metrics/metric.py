"""What describes a metric; the catalogue has all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from acgsperf.metrics.readers import Values
from acgsperf.metrics.source import Reading

__all__ = ["Kind", "Merge", "Metric"]


class Kind(StrEnum):
    """The type of a metric, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(StrEnum):
    """How a gauge of several processes is merged into one. Counters and histograms are always added up."""

    SUM = "sum"
    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: in Prometheus, without the prefix and without `_total`.
        kind: see `Kind`.
        help: what it measures.
        labels: the names of its labels.
        read: returns its values, each with the values of the labels in the order of `labels`. See `in_ns`.
        unit: its unit for OpenTelemetry.
        merge: how the gauges of several processes are merged.
        otel_name: its name in OpenTelemetry; if empty, `instrument` derives one from `name`.
        otel_attributes: constant attributes in OpenTelemetry, which distinguish metrics with the same `otel_name`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Reading], Values]
    unit: str = "1"
    merge: Merge = Merge.SUM
    otel_name: str = ""
    otel_attributes: tuple[tuple[str, str], ...] = ()

    @property
    def in_ns(self) -> bool:
        """Whether its values are integers in ns that are exported in seconds.

        A sum of seconds may differ in the last digit, depending on the order. Prometheus treats a lower value as a
        restart.
        """
        return self.unit == "s" and self.kind is not Kind.GAUGE

    @property
    def exported_name(self) -> str:
        """The name in Prometheus, without the prefix."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name

    @property
    def instrument(self) -> str:
        """The name in OpenTelemetry."""
        if self.otel_name:
            return self.otel_name
        group, _, rest = self.name.removesuffix("_seconds").partition("_")
        return f"acgsperf.{group}.{rest}" if rest else f"acgsperf.{group}"
