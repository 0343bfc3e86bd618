"""The dashboard: a live page of the figures of a service, and the same in a terminal."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acgsperf.dashboard.app import Dashboard
    from acgsperf.dashboard.fleet_source import FleetSource
    from acgsperf.dashboard.page_source import PageSource
    from acgsperf.dashboard.snapshot import (
        AlertState,
        BackplaneState,
        CacheState,
        HotKey,
        HourPoint,
        InstanceState,
        Point,
        PoolState,
        PredictionState,
        RouteState,
        SizeState,
        SizingState,
        Snapshot,
        TargetState,
        TierState,
        TrendState,
        TrialState,
    )
    from acgsperf.dashboard.sources import SnapshotSource

__all__ = [
    "AlertState",
    "BackplaneState",
    "CacheState",
    "Dashboard",
    "FleetSource",
    "HotKey",
    "HourPoint",
    "InstanceState",
    "PageSource",
    "Point",
    "PoolState",
    "PredictionState",
    "RouteState",
    "SizeState",
    "SizingState",
    "Snapshot",
    "SnapshotSource",
    "TargetState",
    "TierState",
    "TrendState",
    "TrialState",
]

_MODULES = {
    "Dashboard": "app",
    "FleetSource": "fleet_source",
    "PageSource": "page_source",
    "SnapshotSource": "sources",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: the command line needs the commands and not the rest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES.get(name, 'snapshot')}")
    value = globals()[name] = getattr(module, name)
    return value
