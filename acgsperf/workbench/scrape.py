"""Reads the page of metrics of a running application."""

import io
import math
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from acgsperf.errors import AcgsperfError
from acgsperf.printable import printable

try:
    from prometheus_client.parser import text_fd_to_metric_families
except ImportError as _missing:
    raise ImportError("prometheus_client is not installed: pip install 'acgsperf[cli]'") from _missing

__all__ = ["ScrapeError", "ServiceFigures", "checked_url", "fetch", "figures", "samples"]

_MAX_BYTES: Final = 16 << 20
# The parser takes quadratic time for the labels of a line.
_LONGEST_LINE: Final = 1 << 16
_PIECE_BYTES: Final = 1 << 16
_MOST_ROUTES: Final = 10
_QUANTILES: Final = (0.5, 0.95, 0.99)


class ScrapeError(AcgsperfError):
    """A page of metrics cannot be fetched or read."""


@dataclass(frozen=True, slots=True)
class RouteFigures:
    """Responses of a route: their number, and their latency in ms, estimated from buckets."""

    responses: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """Figures of an application since it started: those of its service or, without a service, those of its middleware.

    Attributes:
        processes: the number of processes whose figures are added up.
        requests: answered requests. Without a service, the responses of all routes.
        errors: requests that failed; None without a service.
        violations: requests that the compliance gate refused.
        error_rate: the share of all requests that failed or were refused; None before the first request, or without a
            service.
        p50_ms, p95_ms, p99_ms: estimated from buckets, as Prometheus does; None before the first request.
        hit_rate: the share of requests that did not wait for the handler, as in the summary of the service; None before
            the first request, or without a service.
        hit_rates: for each tier that was read, the share of its look-ups that found a value. It differs from
            `hit_rate`: if a tier has no value, the next one may have it. With several caches, a key is the name of the
            cache, a space and the tier.
        pools: for each pool `connections`, `in_use`, `max` and `waiting` (callers).
        routes: the figures of each route; the route with the most responses first.
        response_hit_rate: of the requests that the response cache of the middleware could answer, the share that it
            answered; None before the first of them.
    """

    processes: int
    requests: int
    errors: int | None
    violations: int
    error_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    hit_rate: float | None
    hit_rates: Mapping[str, float]
    pools: Mapping[str, Mapping[str, int]]
    routes: Mapping[str, RouteFigures]
    response_hit_rate: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-like values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures as the rows of a table."""
        rows = [
            ("Processes", f"{self.processes:,}"),
            ("Requests", f"{self.requests:,}"),
            ("Errors", _shown(self.errors, ",")),
            ("Violations", f"{self.violations:,}"),
            ("Error rate", _shown(self.error_rate, ".2%")),
        ]
        for name, value in (("P50", self.p50_ms), ("P95", self.p95_ms), ("P99", self.p99_ms)):
            rows.append((f"{name}, estimated from buckets", _shown(value, ".3f", " ms")))
        rows.append(("Hits per request", _shown(self.hit_rate, ".2%")))
        if self.response_hit_rate is not None:
            rows.append(("Hits per request in the response cache", f"{self.response_hit_rate:.2%}"))
        for name, rate in self.hit_rates.items():
            cache, _, tier = name.rpartition(" ")
            rows.append((f"Hits per look-up in {cache} {tier.upper()}".replace("  ", " "), f"{rate:.2%}"))
        for route, figures in list(self.routes.items())[:_MOST_ROUTES]:
            rows.append(
                (f"Route {route}", f"{figures.responses:,} responses, P95 {_shown(figures.p95_ms, '.3f', ' ms')}")
            )
        if len(self.routes) > _MOST_ROUTES:
            rows.append(("Other routes", f"{len(self.routes) - _MOST_ROUTES:,}, see --json"))
        for name, pool in self.pools.items():
            rows.append(
                (f"Pool {name}", "{in_use} of {connections} in use, limit {max}, {waiting} waiting".format(**pool))
            )
        # Clients choose the names of routes.
        return [(printable(name), text) for name, text in rows]


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit


def fetch(url: str, timeout: float = 5.0) -> str:
    """Fetch a page of metrics.

    Args:
        url: an address with http or https.
        timeout: seconds for everything: the name look-up, the connection, and the whole page.

    Raises:
        ScrapeError: when the page cannot be fetched in time, or is larger than 16 MiB.
    """
    checked_url(url)
    outcome: list[tuple[str, str]] = []

    def work() -> None:
        # As text: an exception would keep the frames, and the socket, of this thread alive.
        try:
            outcome.append((_page(url, time.monotonic() + timeout), ""))
        except Exception as error:
            outcome.append(("", _problem(url, timeout, error)))
            if isinstance(error, urllib.error.HTTPError):
                error.close()

    # In a thread: nothing else ends the look-up of a name before its own deadline.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    page, problem = outcome[0] if outcome else ("", _problem(url, timeout, TimeoutError()))
    if problem:
        raise ScrapeError(problem)
    return page


def checked_url(url: str) -> str:
    """Return the address of a page if it can be fetched and has no password.

    Raises:
        ScrapeError: if it cannot be fetched.
    """
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            # The message must not repeat a password.
            raise ScrapeError("the URL must not contain a user name or a password")
        # Reading the port checks it: the resolver takes it modulo 65,536.
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ScrapeError(f"the URL must begin with http:// or https:// and name a host, got {url[:200]!r}")
    except ValueError as error:
        raise ScrapeError(f"{url}: cannot be read: {error}") from None
    return url


def _problem(url: str, timeout: float, error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"{url}: no answer within {timeout:g} s"
    if isinstance(error, ScrapeError):
        return str(error)
    if isinstance(error, urllib.error.URLError):
        return f"{url}: {error if isinstance(error, urllib.error.HTTPError) else reason}"
    return f"{url}: cannot be read: {error}"


def _page(url: str, deadline: float) -> str:
    page = bytearray()
    with urllib.request.urlopen(url, timeout=max(0.001, deadline - time.monotonic())) as answer:
        while piece := answer.read1(_PIECE_BYTES):
            page += piece
            if len(page) > _MAX_BYTES:
                raise ScrapeError(f"{url}: the page must have at most {_MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
    return page.decode()


def figures(page: str, namespace: str = "acgsperf", *, timeout: float = 5.0) -> ServiceFigures:
    """Read the figures from a page. Without metrics of a service, it uses those of the middleware.

    Args:
        page: the text of the page.
        namespace: the prefix of the metrics' names.
        timeout: seconds for reading the text.

    Raises:
        ScrapeError: when the text is not a page of metrics, has no metrics of acgsperf, or cannot be read in time.
    """
    found = samples(page, namespace, timeout=timeout)
    try:
        return _figures(found)
    except Exception as error:
        raise ScrapeError(f"not a page of metrics: {error}") from None


def samples(
    page: str, namespace: str = "acgsperf", *, timeout: float = 5.0
) -> Mapping[str, list[tuple[dict[str, str], float]]]:
    """Read the samples of acgsperf from a page: labels and values by name, without the prefix.

    Args:
        page: the text of the page.
        namespace: the prefix of the metrics' names.
        timeout: seconds for reading the text.

    Raises:
        ScrapeError: when the text is not a page of metrics, has no metrics of acgsperf, or cannot be read in time.
    """
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    try:
        for family in text_fd_to_metric_families(_Lines(page, timeout)):
            for sample in family.samples:
                if sample.name.startswith(f"{namespace}_"):
                    value = float(sample.value)
                    if not (math.isfinite(value) and value >= 0):
                        raise ValueError(f"{sample.name} is {value}")
                    found[sample.name.removeprefix(f"{namespace}_")].append((sample.labels, value))
    except TimeoutError:
        raise ScrapeError("the page cannot be read before the deadline") from None
    except Exception as error:
        # The parser raises many types of exceptions.
        raise ScrapeError(f"not a page of metrics: {error}") from None
    durations = "request_duration_seconds" if "requests_total" in found else "http_request_duration_seconds"
    if found.keys().isdisjoint({"processes", "requests_total", "http_refused_total", f"{durations}_bucket"}):
        raise ScrapeError(f"the page has no metrics of acgsperf: no name begins with {namespace}_")
    return found


class _Lines(io.StringIO):
    """The lines of a page, for as long as there is time to read them."""

    def __init__(self, page: str, timeout: float) -> None:
        super().__init__(page)
        self._deadline = time.monotonic() + timeout

    def __next__(self) -> str:  # type: ignore[override]
        line = super().__next__()
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"a line must have at most {_LONGEST_LINE:,} characters")
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return line


def _bound(labels: Mapping[str, str]) -> float:
    """Return the bound of a bucket of latencies."""
    bound = float(labels["le"])
    if not bound >= 0:
        raise ValueError(f"le is {labels['le']}")
    return bound


def _figures(found: Mapping[str, list[tuple[dict[str, str], float]]]) -> ServiceFigures:
    def total(name: str) -> int:
        return round(sum(value for _, value in found.get(name, ())))

    def by(name: str, *names: str) -> dict[str, int]:
        sums: dict[str, float] = defaultdict(float)
        for labels, value in found.get(name, ()):
            sums[" ".join(labels[label] for label in names)] += value
        return {key: round(value) for key, value in sums.items()}

    several = len({labels.get("cache") for labels, _ in found.get("cache_hits_total", ())}) > 1
    of_tier = ("cache", "tier") if several else ("tier",)
    own = "requests_total" in found
    durations = "request_duration_seconds" if own else "http_request_duration_seconds"
    buckets: dict[float, float] = defaultdict(float)
    for labels, value in found.get(f"{durations}_bucket", ()):
        buckets[_bound(labels)] += value
    requests = total("requests_total") if own else total(f"{durations}_count")
    errors = total("request_errors_total") if own else None
    violations = total("compliance_violations_total") if own else total("http_refused_total")
    passed = requests + (errors or 0)
    asked = passed + violations
    hits, misses = by("cache_hits_total", *of_tier), by("cache_misses_total", *of_tier)
    responses = by("http_cache_requests_total", "result")
    cacheable = responses.get("hit", 0) + responses.get("miss", 0)
    in_use, limit = by("pool_used_connections", "pool"), by("pool_max_connections", "pool")
    waiting = by("pool_waiting_requests", "pool")
    pools = {
        name: {
            "connections": size,
            "in_use": in_use.get(name, 0),
            "max": limit.get(name, 0),
            "waiting": waiting.get(name, 0),
        }
        for name, size in by("pool_connections", "pool").items()
    }
    p50, p95, p99 = (_quantile(buckets, quantile) for quantile in _QUANTILES)
    return ServiceFigures(
        processes=total("processes") if "processes" in found else 1,
        requests=requests,
        errors=errors,
        violations=violations,
        error_rate=(errors + violations) / asked if errors is not None and asked else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        hit_rate=max(0, passed - total("request_misses_total")) / passed if own and passed else None,
        hit_rates={
            tier: hits.get(tier, 0) / (hits.get(tier, 0) + missed)
            for tier, missed in misses.items()
            if hits.get(tier, 0) + missed
        },
        pools=pools,
        routes=_routes(found.get("http_request_duration_seconds_bucket", ())),
        response_hit_rate=responses["hit"] / cacheable if cacheable else None,
    )


def _routes(samples: Iterable[tuple[dict[str, str], float]]) -> dict[str, RouteFigures]:
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for labels, value in samples:
        buckets[labels["route"]][_bound(labels)] += value
    routes = {
        route: RouteFigures(round(max(within.values())), *(_quantile(within, quantile) for quantile in _QUANTILES))
        for route, within in buckets.items()
    }
    return dict(sorted(routes.items(), key=lambda item: -item[1].responses))


def _quantile(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Return a quantile in ms, linear within a bucket, and at most the last bound, as `histogram_quantile` does."""
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
