"""Spans of OpenTelemetry for slow operations. The caches, tiers and pools call this module through `acgsperf.hooks`.

A span of the SDK costs half as much as a load without lower tiers. So the span of an operation is made when the
operation ends, and only if it took long enough. The span is made earlier if something needs its context: a loader that
makes spans itself, or another caller whose span has a link to it.
"""

import time
from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import (
    Link,
    ProxyTracerProvider,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)

from acgsperf import hooks
from acgsperf.dispatch import LatencyHistogram

__all__ = ["CHECK_EVERY_S", "MIN_SPAN_S", "OpenTelemetrySpans"]

_T = TypeVar("_T")
MIN_SPAN_S: Final = 0.001
# While the SDK is not set up: the time between two checks for it.
CHECK_EVERY_S: Final = 1.0
# With fewer batches, the percentile says too little.
_ENOUGH_BATCHES: Final = 100
# The number of batches after which the percentile is computed again.
_REFRESH_AFTER: Final = 50
_ERROR: Final = "error.type"


def _set_error(span: Span, error: type[BaseException]) -> None:
    span.set_attribute(_ERROR, error.__qualname__)
    # An operation that nobody waits for any more has not failed.
    if not issubclass(error, (CancelledError, GeneratorExit)):
        span.set_status(Status(StatusCode.ERROR))


class _Deferred(Span):
    """The span of an operation. It makes the span of the SDK when that is needed."""

    __slots__ = ("_attributes", "_began_ns", "_context", "_is_dropped", "_made", "_name", "_tracer")

    def __init__(self, tracer: Tracer, name: str, attributes: Mapping[str, str | int], context: Context | None) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._context = context
        self._began_ns = time.time_ns()
        self._made: Span | None = None
        self._is_dropped = False

    def _span(self) -> Span:
        if self._made is None:
            self._made = self._tracer.start_span(
                f"acgsperf.{self._name}",
                context=self._context,
                attributes=self._attributes,
                start_time=self._began_ns,
            )
        return self._made

    @property
    def is_dropped(self) -> bool:
        """Whether the operation has ended, and no span was made of it."""
        return self._is_dropped

    def fail(self, error: type[BaseException]) -> None:
        """Record that the operation failed, or was cancelled."""
        _set_error(self._span(), error)

    def finish(self, min_ns: int) -> None:
        """End the span. If the operation took less than `min_ns`, and nothing needed the span, no span is made."""
        ended_ns = time.time_ns()
        if self._made is not None or ended_ns - self._began_ns >= min_ns:
            self._span().end(ended_ns)
        else:
            # A task that the loader has started still has this span as its current one: its spans become children of
            # the span around the load, as without this package.
            self._is_dropped, self._made = True, get_current_span(self._context)

    def end(self, end_time: int | None = None) -> None:
        self._span().end(end_time)

    def get_span_context(self) -> SpanContext:
        return self._span().get_span_context()

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._span().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._span().set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._span().add_event(name, attributes, timestamp)

    def update_name(self, name: str) -> None:
        self._span().update_name(name)

    def is_recording(self) -> bool:
        return self._span().is_recording()

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._span().set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._span().record_exception(exception, attributes, timestamp, escaped)


class _UsualTime:
    """The time that 95 % of some batches took at most."""

    __slots__ = ("_durations", "_limit_ns", "_outdated_at")

    def __init__(self) -> None:
        # With 3 figures, it would need eight times the memory.
        self._durations: Final = LatencyHistogram(significant_figures=2)
        self._limit_ns = 0
        self._outdated_at = _ENOUGH_BATCHES

    def add(self, elapsed_ns: int) -> None:
        self._durations.record(elapsed_ns)

    def is_exceeded_by(self, elapsed_ns: int) -> bool:
        """Return whether a batch took longer. It is False as long as there are too few batches to compare it with."""
        count = self._durations.count
        if count < _ENOUGH_BATCHES:
            return False
        if count >= self._outdated_at:
            self._outdated_at, self._limit_ns = count + _REFRESH_AFTER, self._durations.percentile(95)
        return elapsed_ns > self._limit_ns


class OpenTelemetrySpans:
    """Makes spans with the tracer of a provider.

    Args:
        provider: None for the global one. No spans are made until it is set up.
        min_span_s: an operation that takes less time makes no span.
    """

    def __init__(self, provider: TracerProvider | None, min_span_s: float) -> None:
        self._tracer = (provider or get_tracer_provider()).get_tracer("acgsperf", version("acgsperf"))
        self._min_ns = round(min_span_s * 1e9)
        self._is_set_up = provider is not None
        # For each object whose batches are compared, by name.
        self._usual: WeakKeyDictionary[object, defaultdict[str, _UsualTime]] = WeakKeyDictionary()

    def is_set_up(self) -> bool:
        """Return whether the SDK is set up."""
        self._is_set_up = self._is_set_up or not isinstance(get_tracer_provider(), ProxyTracerProvider)
        return self._is_set_up

    def during(
        self,
        name: str,
        attributes: Mapping[str, str | int],
        work: Awaitable[_T],
        *,
        load: Any = None,
    ) -> Awaitable[_T]:
        """Return an awaitable that awaits `work` within a span, and returns its result."""
        return self._during(name, attributes, work, load)

    async def _during(self, name: str, attributes: Mapping[str, str | int], work: Awaitable[_T], load: Any) -> _T:
        context = None if load is None else get_current()
        span = _Deferred(self._tracer, name, attributes, context)
        token = None
        if load is not None:
            load.span = span
            # Spans that the loader makes are children of this one.
            token = attach(set_span_in_context(span, context))
        failure: type[BaseException] | None = None
        try:
            return await work
        except BaseException as error:
            failure = type(error)
            raise
        finally:
            if token is not None:
                detach(token)
            if load is not None:
                failure = load.failure_of(failure)
            if failure is not None:
                span.fail(failure)
            span.finish(self._min_ns)

    def past(
        self,
        name: str,
        attributes: Mapping[str, str | int],
        seconds: float,
        error: type[BaseException] | None = None,
        loads: Iterable[Any] = (),
    ) -> None:
        """Make a span of the operation that took the last `seconds`, with links to the spans of loads."""
        duration_ns = round(seconds * 1e9)
        if error is not None or duration_ns >= self._min_ns:
            now_ns = time.time_ns()
            spans = [load.span for load in loads if load.span is not None and not load.span.is_dropped]
            contexts = [span.get_span_context() for span in spans]
            span = self._tracer.start_span(
                f"acgsperf.{name}",
                attributes=attributes,
                links=[Link(context) for context in contexts if context.is_valid],
                start_time=now_ns - duration_ns,
            )
            if error is not None:
                _set_error(span, error)
            span.end(now_ns)

    def batch(
        self, name: str, of: object, tier: str, keys: int, elapsed_ns: int, error: type[BaseException] | None
    ) -> None:
        """Make a span of a batch that has just ended, if it failed, or took longer than 95 % of the others."""
        of_object = self._usual.get(of)
        if of_object is None:
            of_object = self._usual[of] = defaultdict(_UsualTime)
        usual = of_object[name]
        if error is not None or (elapsed_ns >= self._min_ns and usual.is_exceeded_by(elapsed_ns)):
            self.past(name, {hooks.TIER_LABEL: tier, hooks.KEYS: keys}, elapsed_ns / 1e9, error)
        usual.add(elapsed_ns)
