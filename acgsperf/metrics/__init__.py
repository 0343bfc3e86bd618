"""What a service tells Prometheus and OpenTelemetry; each exporter is a module that needs an extra of its own."""

from acgsperf.metrics.source import HttpCounts, HttpSource, MetricsSource, RequestCounts

__all__ = ["HttpCounts", "HttpSource", "MetricsSource", "RequestCounts"]
