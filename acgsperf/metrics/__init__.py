"""Metrics of a service for Prometheus and OpenTelemetry. Each exporter is a module that needs an extra of its own."""

from acgsperf.metrics.source import HttpCounts, HttpSource, MetricsSource, RequestCounts

__all__ = ["HttpCounts", "HttpSource", "MetricsSource", "RequestCounts"]
