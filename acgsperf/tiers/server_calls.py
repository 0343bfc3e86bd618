"""Calls to the server of a tier: each has a deadline and reports to the circuit breaker; none raises."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from math import inf
from typing import Any, Final, TypeVar

from acgsperf import hooks
from acgsperf.tiers.breaker import CircuitBreaker
from acgsperf.tiers.deadline import Deadline, Wait

__all__ = ["Attempt", "ServerCalls"]

_log: Final = logging.getLogger("acgsperf.tiers")
_T = TypeVar("_T")


# If a tier has no deadline, its writes have this one, so that their outcome does not stay unknown for longer.
_LONGEST_ATTEMPT_S: Final = 60.0


class Attempt:
    """A write that the server may carry out until a deadline, and not later.

    Attributes:
        began_at: when its deadline began, in the event loop's time.
        until: when the deadline passes, in the event loop's time.
        sent: whether anything of it may have reached the server. Set it before you send.
    """

    __slots__ = ("began_at", "sent", "until")

    def __init__(self) -> None:
        self.began_at: float = 0.0
        self.until: float = inf
        self.sent: bool = False

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline, some seconds after the beginning."""
        self.until = self.began_at + min(seconds, _LONGEST_ATTEMPT_S)

    def remaining(self) -> float:
        """Return the seconds until the deadline; negative if it has passed."""
        return self.until - asyncio.get_running_loop().time()

    def mark_sent(self) -> None:
        """Note that the server may get the write from now on."""
        self.sent = True

    async def wait_for_deadline(self) -> None:
        """Return when the server cannot carry the write out any more."""
        await asyncio.sleep(max(self.remaining(), 0))


class ServerCalls:
    """Runs calls to one server, and owns the tasks that make them.

    Args:
        tier: name of the tier, for log lines.
        deadline: seconds after which a call ends.
        timed_out: called when the deadline has ended a call.
        is_refusal: returns whether an error is the server's answer to this call alone. The server works then, so the
            error does not count for the breaker.
        owner: for one server of several, the calls of all of them, which own the tasks and count the errors and the
            skipped keys.

    Attributes:
        label: names the tier and its namespace in messages.
        hint: what to add to the message that says that the server did not answer.
        breaker: decides whether calls go to the server.
        errors: failed calls, by kind.
        last_error: the type of the last error.
        skipped: keys and entries that were not sent because the breaker was open.
        tasks: tasks in flight; `ServerTier.close` ends them.
        of_tier: the calls of all servers of the tier.
    """

    def __init__(
        self,
        tier: str,
        deadline: float,
        timed_out: Callable[[], None],
        is_refusal: Callable[[Exception], bool],
        owner: "ServerCalls | None" = None,
    ) -> None:
        self.breaker: Final = CircuitBreaker()
        self.errors: Final[Counter[str]] = Counter() if owner is None else owner.errors
        self.last_error: type[Exception] | None = None
        self.skipped: int = 0
        self.tasks: Final[set[asyncio.Task[None]]] = set() if owner is None else owner.tasks
        self.of_tier: Final = self if owner is None else owner
        self._skipping = "this tier" if owner is None else "this node"
        self._tier = tier
        self.label: str = f"{tier} tier"
        self.hint: str = ""
        self._timed_out = timed_out
        self._is_refusal = is_refusal
        self._deadline = Deadline(deadline)
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, namespace: str) -> None:
        """Bind to the running event loop."""
        self.label = f"{self._tier} tier {namespace!r}"
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        """Whether calls may begin."""
        return self._loop is not None

    def close(self) -> None:
        """Release the event loop. Call it when no call is in flight."""
        self._loop = None
        self._deadline.close()

    def allow(self, keys: int) -> bool:
        """Return whether a call for some keys may go to the server. If not, count them as skipped."""
        if self.breaker.allow():
            return True
        self.of_tier.skipped += keys
        return False

    async def run(
        self, call: Callable[[], Awaitable[_T]], wait: Wait | None = None, problems: list[str] | None = None
    ) -> _T | None:
        """Return the result of a call; None if it fails or its deadline passes.

        Args:
            call: makes the call.
            wait: its deadline; None for one that begins now.
            problems: receives the error message.
        """
        if wait is None:
            wait = self._deadline.wait()
        try:
            with wait:
                result = await call()
            if wait.passed:
                self._timed_out()
                raise TimeoutError(f"no answer within {wait.seconds:g} s{self.hint}")
        except Exception as error:
            kind = type(error).__name__
            self.errors[kind] += 1
            self.last_error = type(error)
            problem = f"{kind}: {error}" if str(error) else kind
            if problems is not None:
                problems.append(problem)
            breaker = self.breaker
            if self._is_refusal(error):
                if breaker.succeeded():
                    self._log_closed()
            elif breaker.failed():
                _log.warning(
                    "%s: circuit opened after %d failures (%s); calls skip %s for %g s",
                    *(self.label, breaker.failures_in_a_row, problem, self._skipping, breaker.recovery_s),
                )
            return None
        if self.breaker.succeeded():
            self._log_closed()
        return result

    def batch_ended(self, name: str, keys: int, started_ns: int, failed: bool) -> None:
        """Pass a batch that has just ended to the hook of the spans, if there is one.

        Args:
            name: the name of its span.
            keys: the number of its keys.
            started_ns: when it began, by `time.perf_counter_ns`.
            failed: whether the last call was that of the batch, and failed.
        """
        if hooks.spans is not None:
            elapsed_ns = time.perf_counter_ns() - started_ns
            error = self.last_error if failed else None
            # The nodes of a cluster are compared with each other, so a slow one makes spans.
            hooks.spans.batch(name, self.of_tier, self.label, keys, elapsed_ns, error)

    def without_errors(self, replies: Iterable[Any]) -> list[Any]:
        """Return replies of single commands with None in place of errors, which are counted."""
        values: list[Any] = []
        for reply in replies:
            if isinstance(reply, Exception):
                self.errors[type(reply).__name__] += 1
                values.append(None)
            else:
                values.append(reply)
        return values

    def _log_closed(self) -> None:
        _log.info("%s: circuit closed; the server answers again", self.label)

    def cannot_reach(self, server: str, problem: str) -> None:
        """Log that the server did not answer when the tier opened."""
        _log.warning("%s: cannot reach %s (%s); later calls try again", self.label, server, problem)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a task that is owned here."""
        # A task created directly starts in the next turn, even if the loop has an eager task factory.
        task = asyncio.Task(work, loop=self._loop)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
