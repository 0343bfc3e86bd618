"""Monitoring: takes readings, and raises alerts and forecasts with hysteresis."""

from acgsperf.monitor.alerts import Alert, AlertKind, AlertState
from acgsperf.monitor.monitor import Monitor, Reading, Targets

__all__ = ["Alert", "AlertKind", "AlertState", "Monitor", "Reading", "Targets"]
