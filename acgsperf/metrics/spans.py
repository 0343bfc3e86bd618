"""Spans of OpenTelemetry for what takes time. The caches, tiers and pools call this through `acgsperf.hooks`."""

import time
from collections.abc import Awaitable, Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    Link,
    ProxyTracerProvider,
    SpanContext,
    Status,
    StatusCode,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
)

from acgsperf import hooks

if TYPE_CHECKING:
    from acgsperf.dispatch import LatencyHistogram

__all__ = ["OpenTelemetrySpans"]

_T = TypeVar("_T")
# While the SDK is not set up, look for it that often.
_LOOK_EVERY_S: Final = 1.0
# With fewer calls it is not known what is usual. The percentile is computed anew after some calls.
_ENOUGH_CALLS: Final = 100
_REFRESH_AFTER: Final = 50
_ERROR: Final = "error.type"


class OpenTelemetrySpans:
    """Makes spans with the tracer of a provider.

    Args:
        provider: None for the global one. While that is not set up, nothing is made.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = (provider or get_tracer_provider()).get_tracer("acgsperf", version("acgsperf"))
        self._is_set_up = provider is not None
        self._look_at = 0.0
        # For each histogram: the calls until the percentile is computed anew, and the percentile in ns.
        self._usual: dict[int, tuple[int, int]] = {}

    def _makes_spans(self) -> bool:
        if not self._is_set_up and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._is_set_up = not isinstance(get_tracer_provider(), ProxyTracerProvider)
        return self._is_set_up

    def during(
        self,
        name: str,
        attributes: Mapping[str, str | int],
        work: Awaitable[_T],
        *,
        load: Any = None,
        waits: Iterable[Any] = (),
    ) -> Awaitable[_T]:
        """Return what awaits some work within a span, and returns its result."""
        if not self._makes_spans():
            return work
        return self._during(name, attributes, work, load, waits)

    async def _during(
        self, name: str, attributes: Mapping[str, str | int], work: Awaitable[_T], load: Any, waits: Iterable[Any]
    ) -> _T:
        links = [Link(flight.span) for flight in waits if isinstance(flight.span, SpanContext)]
        span = self._tracer.start_span(f"acgsperf.{name}", attributes=attributes, links=links)
        token = None
        if load is not None:
            load.span = span.get_span_context()
            # The spans of what the loader does are children of this one.
            token = attach(set_span_in_context(span))
        try:
            return await work
        except BaseException as error:
            span.set_attribute(_ERROR, type(error).__qualname__)
            if isinstance(error, Exception):
                span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            if token is not None:
                detach(token)
            span.end()

    def past(self, name: str, attributes: Mapping[str, str | int], seconds: float) -> None:
        """Make a span of the last `seconds`."""
        if self._makes_spans():
            now_ns = time.time_ns()
            began_ns = now_ns - round(seconds * 1e9)
            self._tracer.start_span(f"acgsperf.{name}", attributes=attributes, start_time=began_ns).end(now_ns)

    def tier_call(self, tier: str, keys: int, usual: "LatencyHistogram", elapsed_ns: int) -> None:
        """Make a span of a call that has just ended if it took longer than 95 % of the calls before."""
        remaining, limit_ns = self._usual.get(id(usual), (0, 0))
        if not remaining:
            if usual.count < _ENOUGH_CALLS:
                return
            remaining, limit_ns = _REFRESH_AFTER, usual.percentile(95)
        self._usual[id(usual)] = (remaining - 1, limit_ns)
        if elapsed_ns > limit_ns:
            self.past("tier.read", {hooks.SERVER: tier, hooks.KEYS: keys}, elapsed_ns / 1e9)
