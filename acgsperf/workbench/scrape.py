"""What a running service says of itself on its page of metrics."""

import http.client
import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from acgsperf.errors import AcgsperfError

try:
    from prometheus_client.parser import text_string_to_metric_families
except ImportError as missing:
    raise ImportError("prometheus_client is not installed: pip install 'acgsperf[cli]'") from missing

__all__ = ["ServiceFigures", "fetch", "figures"]

_MAX_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 1 << 16
_QUANTILES: Final = (0.5, 0.95, 0.99)


class ScrapeError(AcgsperfError):
    """A page of metrics that cannot be had or read."""


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """Figures since the service began.

    Attributes:
        requests: answered.
        error_rate: the share of all requests that failed or were refused; None before the first.
        p50_ms, p95_ms, p99_ms: estimated from buckets, as Prometheus does; None before the first request.
        hit_rates: by tier, of those that were asked.
        pools: by name: connections, those in use, the most allowed, and callers who wait.
    """

    requests: int
    errors: int
    violations: int
    error_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    hit_rates: Mapping[str, float]
    pools: Mapping[str, Mapping[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return asdict(self)


def fetch(url: str, timeout: float = 5.0) -> str:
    """The text of a page of metrics.

    Args:
        url: http or https.
        timeout: seconds, for the whole page.

    Raises:
        ScrapeError: when it cannot be had in time, or is larger than 16 MiB.
    """
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            # Not repeated: what stands before it is a password.
            raise ScrapeError("the URL must not hold a user name or a password")
        # Reading the port checks it: the resolver takes it modulo 65,536.
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ScrapeError(f"{url}: must begin with http:// or https:// and name a host")
        deadline = time.monotonic() + timeout
        page = bytearray()
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            while piece := answer.read1(_PIECE_BYTES):
                page += piece
                if len(page) > _MAX_BYTES:
                    raise ScrapeError(f"{url}: more than {_MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
        return page.decode()
    except TimeoutError:
        raise ScrapeError(f"{url}: no answer within {timeout:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ScrapeError(f"{url}: no answer within {timeout:g} s") from None
        raise ScrapeError(f"{url}: {error if isinstance(error, urllib.error.HTTPError) else error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ScrapeError(f"{url}: cannot be read: {error}") from None


def figures(page: str, namespace: str = "acgsperf") -> ServiceFigures:
    """The figures on a page; those of a middleware stand in where there is no service.

    Raises:
        ScrapeError: when it is no page of metrics, or has none of ours.
    """
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name.startswith(f"{namespace}_"):
                    value = float(sample.value)
                    if not (math.isfinite(value) and value >= 0):
                        raise ValueError(f"{sample.name} is {value}")
                    found[sample.name.removeprefix(f"{namespace}_")].append((sample.labels, value))
        return _figures(found)
    except ScrapeError:
        raise
    except Exception as error:
        # The parser says in many ways that it cannot go on.
        raise ScrapeError(f"not a page of metrics: {error}") from None


def _figures(found: Mapping[str, list[tuple[dict[str, str], float]]]) -> ServiceFigures:
    def total(name: str) -> int:
        return round(sum(value for _, value in found.get(name, ())))

    def by(label: str, name: str) -> dict[str, int]:
        sums: dict[str, float] = defaultdict(float)
        for labels, value in found.get(name, ()):
            sums[labels[label]] += value
        return {key: round(value) for key, value in sums.items()}

    own = "requests_total" in found
    durations = "request_duration_seconds" if own else "http_request_duration_seconds"
    if f"{durations}_bucket" not in found and not own and "http_refused_total" not in found:
        raise ScrapeError("no metrics of ours on this page")
    buckets: dict[float, float] = defaultdict(float)
    for labels, value in found.get(f"{durations}_bucket", ()):
        buckets[float(labels["le"])] += value
    requests = total("requests_total") if own else total(f"{durations}_count")
    errors = total("request_errors_total")
    violations = total("compliance_violations_total") if own else total("http_refused_total")
    asked = requests + errors + violations
    hits, misses = by("tier", "cache_hits_total"), by("tier", "cache_misses_total")
    pools = {
        name: {
            "connections": size,
            "in_use": by("pool", "pool_used_connections").get(name, 0),
            "max": by("pool", "pool_max_connections").get(name, 0),
            "waiting": by("pool", "pool_waiting_requests").get(name, 0),
        }
        for name, size in by("pool", "pool_connections").items()
    }
    p50, p95, p99 = (_quantile(buckets, quantile) for quantile in _QUANTILES)
    return ServiceFigures(
        requests=requests,
        errors=errors,
        violations=violations,
        error_rate=(errors + violations) / asked if asked else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        hit_rates={
            tier: hits.get(tier, 0) / (hits.get(tier, 0) + missed)
            for tier, missed in misses.items()
            if hits.get(tier, 0) + missed
        },
        pools=pools,
    )


def _quantile(buckets: Mapping[float, float], quantile: float) -> float | None:
    """In ms, linear within a bucket; what is beyond the last bound counts as that bound (`histogram_quantile`)."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    rank = quantile * total
    lower = below = 0.0
    for bound in bounds:
        within = buckets[bound]
        if within >= rank:
            if math.isinf(bound):
                break
            share = (rank - below) / (within - below) if within > below else 1.0
            return 1e3 * (lower + (bound - lower) * share)
        lower, below = bound, within
    return 1e3 * lower
