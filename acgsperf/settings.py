"""The environment variables of the package, parsed and checked in one place."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from acgsperf._native.arguments import (
    checked_at_least,
    checked_bool,
    checked_hashes,
    checked_maxsize,
    checked_namespace,
    checked_policy,
    checked_positive,
    checked_share,
)
from acgsperf._native.types import CONSTITUTIONAL_HASH, Policy
from acgsperf.addresses import checked_dsn, checked_redis_url, hidden, masked
from acgsperf.errors import SettingsError

__all__ = ["HASH_VARIABLE", "Settings", "opened_workers_directory"]

HASH_VARIABLE: Final = "CONSTITUTIONAL_HASH"
_LONGEST_VERSION: Final = 200

_SWITCHES: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of a service.

    The repr shows no password, but the fields contain them.

    Args:
        constitutional_hashes: the accepted hashes, the current one first.
        fast_path_enabled: `fast_path` of a `ComplianceValidator`.
        batch_processing_enabled: its `batch`.
        database_url: the URL of PostgreSQL; None for no PostgreSQL.
        db_pool_min_size: the number of connections kept open.
        db_pool_max_size: the largest number of connections.
        db_statement_cache_size: prepared statements that a connection of the pool or of L3 keeps; must be 0 if a
            PgBouncer in transaction mode is in between.
        db_command_timeout: how long a statement of a borrower may take, in seconds; None for no limit.
        db_pool_health_check_interval: time between two health checks of the pools, in seconds.
        redis_url: the URL of Redis; None for no Redis.
        l1_cache_size: the largest number of entries in L1.
        l1_cache_size_min, l1_cache_size_max: within these bounds, `optimize` resizes L1. None for `l1_cache_size`; with
            None for both, the size does not change.
        l1_policy: which entries L1 evicts: "adaptive", "s3fifo" or "lru".
        l1_prediction: whether to fetch the keys that are likely to be requested next, together with those that are.
        l2_ttl_default: the time until a value expires, in seconds.
        cache_namespace: the prefix of keys in shared servers, 1 to 100 printable characters.
        cache_hit_rate_target: the wanted share of hits, 0.95 for 95 %.
        p50_latency_target_ms, p95_latency_target_ms, p99_latency_target_ms: the latency targets, in milliseconds.
        throughput_target_rps: the throughput target, in requests per second.
        monitoring_interval_s: time between two evaluations of the metrics, in seconds.
        optimization_interval_s: time between two optimizations, in seconds.
        fleet_enabled: whether the instances of the service leave reports in Redis, or in PostgreSQL without a Redis.
        fleet_tuning_enabled: whether instances that leave reports tune their settings together. With False, each tunes
            itself.
        trends_enabled: whether the figures of each hour are kept in PostgreSQL for 90 days, if there is a
            `database_url`.
        service_version: names what runs, for the comparison of versions: up to 200 printable characters; None for no
            name.
        workers_directory: the directory in which the processes of one service on this machine share their metrics; None
            for one process, or if each reports for itself.

    Raises:
        TypeError, ValueError: names the field. The message contains no part of an address.
    """

    constitutional_hashes: tuple[str, ...] = (CONSTITUTIONAL_HASH,)
    fast_path_enabled: bool = True
    batch_processing_enabled: bool = True
    database_url: str | None = None
    db_pool_min_size: int = 20
    db_pool_max_size: int = 100
    db_statement_cache_size: int = 100
    db_command_timeout: float | None = None
    db_pool_health_check_interval: float = 30.0
    redis_url: str | None = None
    l1_cache_size: int = 100_000
    l1_cache_size_min: int | None = None
    l1_cache_size_max: int | None = None
    l1_policy: Policy = "adaptive"
    l1_prediction: bool = True
    l2_ttl_default: float = 3600.0
    cache_namespace: str = "acgsperf"
    cache_hit_rate_target: float = 0.95
    p50_latency_target_ms: float = 1.0
    p95_latency_target_ms: float = 2.0
    p99_latency_target_ms: float = 5.0
    throughput_target_rps: float = 1000.0
    monitoring_interval_s: float = 30.0
    optimization_interval_s: float = 60.0
    fleet_enabled: bool = True
    fleet_tuning_enabled: bool = True
    trends_enabled: bool = True
    service_version: str | None = None
    workers_directory: str | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        for lower, upper in _ORDERED:
            least, most = getattr(self, lower), getattr(self, upper)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{lower} must be at most {upper}, which is {most}, got {least}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Create settings from environment variables, with the default for those that are not set.

        An empty address means none. Any other empty variable is an error.

        Raises:
            SettingsError: names the variable, its value (only the scheme of an address) and what was expected.
        """
        found: dict[str, Any] = {}
        for name, rule in _RULES.items():
            variable = variable_of(name)
            if variable in environ:
                found[name] = rule.read(name, variable, environ[variable])
        for lower, upper in _ORDERED:
            least, most = (found.get(name, _DEFAULTS[name]) for name in (lower, upper))
            if least is not None and most is not None and least > most:
                # The error names a variable that was set: the other one may have its default.
                if lower in found:
                    raise SettingsError(variable_of(lower), str(least), f"at most {upper.upper()}, which is {most}")
                raise SettingsError(variable_of(upper), str(most), f"at least {lower.upper()}, which is {least}")
        return cls(**found)

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _ADDRESSES and value is not None:
                value = masked(value)
            shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def variable_of(name: str) -> str:
    """Return the name of the environment variable of a field."""
    return HASH_VARIABLE if name == "constitutional_hashes" else name.upper()


def opened_workers_directory(path: str | os.PathLike[str]) -> Path:
    """Return a directory that the processes share. It is created if it is missing.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise SettingsError("WORKERS_DIRECTORY", str(path), f"a writable directory ({problem})") from None
    return directory


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a setting is parsed and checked. `check` raises a TypeError or ValueError that names the field."""

    expected: str
    parse: Callable[[str], Any]
    check: Callable[[str, Any], object]

    def read(self, name: str, variable: str, written: str) -> object:
        try:
            return self.check(name, self.parse(written))
        except (ValueError, KeyError) as error:
            shown = hidden(written) if name in _ADDRESSES else written
            # Of an address with several hosts, the check says which part is missing.
            problem, several, form = str(error).partition(": ")
            detail = problem.removeprefix(f"{name} must have ") if several else problem
            expected = f"{form} with {detail}" if detail != problem else self.expected
        raise SettingsError(variable, shown, expected)


def _list(written: str) -> list[str]:
    return [item.strip() for item in written.split(",")]


def _switch(written: str) -> bool:
    return _SWITCHES[written.strip().lower()]


def _address(written: str) -> str | None:
    return written.strip() or None


def _checked_database_url(name: str, url: str | None) -> str | None:
    return None if url is None else checked_dsn(name, url)


def _checked_redis_url(name: str, url: str | None) -> str | None:
    return None if url is None else checked_redis_url(name, url)


def _checked_directory(name: str, path: str | None) -> str | None:
    if path is not None and not isinstance(path, str):
        raise TypeError(f"{name} must be a str or None, got {type(path).__name__}")
    return path


def _checked_version(name: str, version: str | None) -> str | None:
    if version is None:
        return None
    if not isinstance(version, str):
        raise TypeError(f"{name} must be a str or None, got {type(version).__name__}")
    if not 1 <= len(version) <= _LONGEST_VERSION or not version.isprintable():
        raise ValueError(f"{name} must be 1 to {_LONGEST_VERSION} printable characters, got {version[:60]!r}")
    return version


def _checked_policy(name: str, policy: str) -> str:
    checked_policy(policy, name)
    return policy


def _at_least(least: int) -> _Rule:
    return _Rule(f"an integer of at least {least}", int, lambda name, value: checked_at_least(name, value, least))


def _checked_bound(name: str, size: int | None) -> int | None:
    return None if size is None else checked_maxsize(size, name)


_SWITCH: Final = _Rule("true or false", _switch, checked_bool)
_POSITIVE: Final = _Rule("a finite number greater than 0", float, checked_positive)
_RULES: Final = {
    "constitutional_hashes": _Rule(
        "1 to 16 hashes of 16 digits 0-9a-f, separated by commas",
        _list,
        lambda name, value: checked_hashes(value, name),
    ),
    "fast_path_enabled": _SWITCH,
    "batch_processing_enabled": _SWITCH,
    "database_url": _Rule(
        "a postgresql:// URL with ports from 1 to 65535, a valid sslmode, and / in a password written as %2F",
        _address,
        _checked_database_url,
    ),
    "db_pool_min_size": _at_least(0),
    "db_pool_max_size": _at_least(1),
    "db_statement_cache_size": _at_least(0),
    "db_command_timeout": _Rule(
        "a finite number greater than 0",
        float,
        lambda name, value: None if value is None else checked_positive(name, value),
    ),
    "db_pool_health_check_interval": _POSITIVE,
    "redis_url": _Rule(
        "a redis://, rediss:// or unix:// URL with a port from 1 to 65535, a number as database or the path of a"
        " socket, and / in a password written as %2F; or redis+sentinel://[user:password@]host:port,host:port/service"
        ", or redis+cluster://[user:password@]host:port,host:port",
        _address,
        _checked_redis_url,
    ),
    "l1_cache_size": _Rule("an integer from 1 to 2**30", int, lambda name, value: checked_maxsize(value, name)),
    "l1_cache_size_min": _Rule("an integer from 1 to 2**30", int, _checked_bound),
    "l1_cache_size_max": _Rule("an integer from 1 to 2**30", int, _checked_bound),
    "l1_policy": _Rule("adaptive, s3fifo or lru", lambda written: written.strip().lower(), _checked_policy),
    "l1_prediction": _SWITCH,
    "l2_ttl_default": _POSITIVE,
    "cache_namespace": _Rule("1 to 100 printable characters", str, checked_namespace),
    "cache_hit_rate_target": _Rule("a number greater than 0 and at most 1", float, checked_share),
    "p50_latency_target_ms": _POSITIVE,
    "p95_latency_target_ms": _POSITIVE,
    "p99_latency_target_ms": _POSITIVE,
    "throughput_target_rps": _POSITIVE,
    "monitoring_interval_s": _POSITIVE,
    "optimization_interval_s": _POSITIVE,
    "fleet_enabled": _SWITCH,
    "fleet_tuning_enabled": _SWITCH,
    "trends_enabled": _SWITCH,
    "service_version": _Rule("1 to 200 printable characters", _address, _checked_version),
    "workers_directory": _Rule("the path of a directory", _address, _checked_directory),
}
# Of each pair, the first one must not be greater.
_ORDERED: Final = (
    ("db_pool_min_size", "db_pool_max_size"),
    ("l1_cache_size_min", "l1_cache_size"),
    ("l1_cache_size", "l1_cache_size_max"),
)
_DEFAULTS: Final = {field.name: field.default for field in fields(Settings)}
_ADDRESSES: Final = frozenset({"database_url", "redis_url"})
