"""Creates the parts of a service from its settings."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from acgsperf.addresses import masked
from acgsperf.cache import EntryOptions, TieredCache
from acgsperf.dispatch import AdaptiveCache
from acgsperf.errors import SettingsError
from acgsperf.fleet.publisher import Publisher
from acgsperf.fleet.servers import store_of
from acgsperf.monitor import Monitor, Targets
from acgsperf.service.traffic import Traffic
from acgsperf.settings import Settings
from acgsperf.tiers.base import Tier

if TYPE_CHECKING:
    from acgsperf.service.hours import HourKeeper

__all__ = ["cache_of", "fleet_of", "hours_of", "targets_of"]

# Then an instance that has ended, or cannot reach the server, is no longer listed.
_ROUNDS_A_REPORT_LIVES: Final = 3


def targets_of(settings: Settings) -> Targets:
    """Return the targets of a service."""
    return Targets(
        p50_ms=settings.p50_latency_target_ms,
        p95_ms=settings.p95_latency_target_ms,
        p99_ms=settings.p99_latency_target_ms,
        hit_rate=settings.cache_hit_rate_target,
        throughput_rps=settings.throughput_target_rps,
    )


def fleet_of(settings: Settings, namespace: str) -> Publisher | None:
    """Return what publishes the reports of a service; None if there is no server, or the settings do not want it.

    Raises:
        SettingsError: if a URL is not usable.
    """
    url, options = settings.redis_url, {}
    if url is None and settings.database_url is not None:
        url, options = settings.database_url, {"statement_cache_size": settings.db_statement_cache_size}
    if url is None or not settings.fleet_enabled:
        return None
    lifetime = _ROUNDS_A_REPORT_LIVES * settings.monitoring_interval_s
    try:
        return Publisher(store_of(url, namespace, lifetime=lifetime, **options))
    except ValueError as error:
        variable = "DATABASE_URL" if options else "REDIS_URL"
        raise SettingsError(variable, masked(url), f"a URL that its client accepts ({error})") from None


def hours_of(
    settings: Settings, namespace: str, traffic: Traffic, monitor: Monitor, instance: Callable[[], str]
) -> "HourKeeper | None":
    """Return what keeps the hours of a service; None if there is no PostgreSQL, or the settings do not want it.

    Raises:
        SettingsError: if the URL is not usable.
    """
    if settings.database_url is None or not settings.trends_enabled:
        return None
    # Imported here, so that a service without PostgreSQL does not import its driver.
    from acgsperf.service.hours import HourKeeper
    from acgsperf.service.season import SeasonReader
    from acgsperf.trends.store import TrendStore

    try:
        store = TrendStore(settings.database_url, namespace, statement_cache_size=settings.db_statement_cache_size)
    except ValueError as error:
        raise SettingsError(
            "DATABASE_URL", masked(settings.database_url), f"a URL that its client accepts ({error})"
        ) from None
    season = SeasonReader(store, monitor)
    return HourKeeper(store, traffic, instance, settings.service_version or "", season=season)


def cache_of(settings: Settings) -> TieredCache[Any]:
    """Return the cache of a service: with an L2 if there is a Redis, and an L3 if there is a PostgreSQL.

    Raises:
        SettingsError: if a URL is not usable.
    """
    l1: AdaptiveCache[str, Any] = AdaptiveCache(settings.l1_cache_size, policy=settings.l1_policy, sizing=True)
    return TieredCache(
        l1,
        _l2_of(settings),
        _l3_of(settings),
        namespace=settings.cache_namespace,
        options=EntryOptions(ttl=settings.l2_ttl_default),
        prediction=settings.l1_prediction,
    )


def _l2_of(settings: Settings) -> Tier | None:
    if settings.redis_url is None:
        return None
    # Imported here, so that a service without Redis does not import redis-py.
    from acgsperf.tiers.redis import RedisTier

    try:
        return RedisTier(settings.redis_url)
    except ValueError as error:
        raise SettingsError("REDIS_URL", masked(settings.redis_url), f"a URL that redis-py accepts ({error})") from None


def _l3_of(settings: Settings) -> Tier | None:
    if settings.database_url is None:
        return None
    from acgsperf.tiers.postgres import PostgresTier

    return PostgresTier(settings.database_url, statement_cache_size=settings.db_statement_cache_size)
