"""Monitoring: readings in, alerts with hysteresis and forecasts out."""

from acgsperf.monitor.alerts import Alert, AlertKind, AlertState
from acgsperf.monitor.monitor import Monitor, Reading, Targets

__all__ = ["Alert", "AlertKind", "AlertState", "Monitor", "Reading", "Targets"]
