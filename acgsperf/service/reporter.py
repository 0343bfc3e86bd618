"""Makes the reports of this instance: its figures since it started, and the settings in force."""

import os
import secrets
import socket
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

from acgsperf.backplane.base import BackplaneState
from acgsperf.cache import TieredCache
from acgsperf.fleet.report import Report
from acgsperf.monitor import Monitor
from acgsperf.pool import PoolManager
from acgsperf.service.traffic import Traffic
from acgsperf.tiers.base import BreakerState

__all__ = ["Reporter", "settings_in_force", "unhealthy_pools"]

_LONGEST_NAME: Final = 100
# A report may name 100 parts.
_MOST_POOLS: Final = 90


class Reporter:
    """Makes reports of a service.

    Args:
        traffic: the requests.
        cache, pools, monitor: those of the service.

    Attributes:
        revision: the revision of the tuning in force; 0 for none.
        arm: the part of a trial in which the instance takes part; empty for none.
        tuning: what the instance tells the coordinator of the tuning, encoded.
    """

    def __init__(self, traffic: Traffic, cache: TieredCache[Any], pools: PoolManager, monitor: Monitor) -> None:
        self.revision: int = 0
        self.arm: str = ""
        self.tuning: bytes = b""
        self._traffic = traffic
        self._cache = cache
        self._pools = pools
        self._monitor = monitor
        self._version = version("acgsperf")
        self._identity = 0, ""
        self._sequence = 0

    @property
    def instance(self) -> str:
        """Names this instance: 16 hexadecimal digits. A forked child is another instance."""
        process, instance = self._identity
        if process != os.getpid():
            process, instance = self._identity = os.getpid(), secrets.token_hex(8)
            self._sequence = 0
        return instance

    def report(self) -> Report:
        """Return a report of the figures until now."""
        instance = self.instance
        self._traffic.flush()
        total, counts = self._traffic.total, self._traffic.total.counts
        stats = self._cache.stats()
        lag = None if stats.backplane is None else stats.backplane.lag
        self._sequence += 1
        return Report(
            instance=instance,
            sequence=self._sequence,
            seconds=total.seconds,
            failed=counts.failed,
            violations=counts.violations,
            missed=counts.missed,
            latency=total.latency_ns.encode(),
            name=f"{_name(socket.gethostname())}:{os.getpid()}",
            version=self._version,
            unhealthy=tuple(self._unhealthy()),
            alerts=tuple(f"{alert.kind} {_name(alert.subject)}" for alert in self._monitor.active)[:_MOST_POOLS],
            backplane_lag_ms=lag.p99 / 1e6 if lag is not None and lag.count else None,
            settings=settings_in_force(self._cache, self._pools),
            revision=self.revision,
            arm=self.arm,
            tuning=self.tuning,
        )

    def _unhealthy(self) -> Iterator[str]:
        stats = self._cache.stats()
        for name, tier in (("l2", stats.l2), ("l3", stats.l3)):
            if tier is not None and tier.breaker is not BreakerState.CLOSED:
                yield name
        if stats.backplane is not None and stats.backplane.state is not BackplaneState.FOLLOWING:
            yield "backplane"
        for name in list(unhealthy_pools(self._pools))[:_MOST_POOLS]:
            yield f"pool {_name(name)}"


def settings_in_force(cache: TieredCache[Any], pools: PoolManager) -> dict[str, float]:
    """Return the settings that may be tuned while the service runs, by name. No other setting is in a report.

    `refresh_ahead` is 1 if entries are not refreshed ahead. The target size of a pool has the name `pool_target` and
    that of the pool.
    """
    found: dict[str, float] = {"l1_size": cache.l1_maxsize, "refresh_ahead": cache.refresh_ahead or 1.0}
    if cache.has_lower_tiers:
        found["promotion_threshold"] = cache.promotion_threshold
    for name in pools.names()[:_MOST_POOLS]:
        found[f"pool_target {_name(name)}"] = pools.get(name).stats().target_size
    return found


def unhealthy_pools(pools: PoolManager) -> Iterator[str]:
    """Yield the names of pools and of replicas whose server does not answer."""
    for name in pools.names():
        pool = pools.get(name)
        yield from (member.name for member in (pool, *pool.replicas) if not member.healthy)


def _name(name: str) -> str:
    """Return a name that a report may contain."""
    return "".join(character if character.isprintable() else "?" for character in name[:_LONGEST_NAME])
