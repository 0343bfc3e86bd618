"""A process of a test, as the test sees it: each call of a method of its cache runs there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = ["Call", "Process", "RemoteError", "wait_for"]

_T = TypeVar("_T")

# For machines that are busy with other tests. No answer takes that long.
_ANSWER_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.005
_PROGRAM: Final = Path(__file__).with_name("program.py")


class RemoteError(Exception):
    """An exception in another process: "OSError: the source is down"."""


class Call:
    """A call in another process.

    Args:
        process: where it runs.
        number: its number there.
        what: for messages.

    Attributes:
        number: its number there.
    """

    def __init__(self, process: "Process", number: int, what: str) -> None:
        self._process = process
        self.number = number
        self._what = what
        self._begun = threading.Event()
        self._answered = threading.Event()
        self._answer: dict[str, Any] = {}

    def take(self, answer: dict[str, Any]) -> None:
        """Note what the process has said about the call."""
        if "begun" in answer or "error" in answer:
            self._begun.set()
        if "begun" not in answer:
            self._answer = answer
            self._answered.set()

    def begun(self, within: float = _ANSWER_TIMEOUT_S) -> bool:
        """Whether the call reaches its loader or its first read, or fails, within a time."""
        return self._begun.wait(within)

    @property
    def ended(self) -> bool:
        """Whether the call has ended."""
        return self._answered.is_set()

    def result(self, within: float = _ANSWER_TIMEOUT_S) -> Any:
        """Wait for the answer.

        Raises:
            RemoteError: if the call raised an exception.
            TimeoutError: if there is no answer in time.
        """
        if not self._answered.wait(within):
            raise TimeoutError(f"{self._what} was not answered within {within:g} s: {self._process.errors()}")
        if "error" in self._answer:
            raise RemoteError(self._answer["error"])
        return self._answer["value"]

    def finish(self) -> Any:
        """Let the loader return, or the reads end, and wait for the answer."""
        self._process.call("finish", self.number)
        return self.result()


class Process:
    """A process that runs `program.py`. A method that it does not have is one of its cache.

    Args:
        clock_offset_s: how far its wall clock is wrong.
    """

    def __init__(self, clock_offset_s: float = 0.0) -> None:
        self.clock_offset_s = clock_offset_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(clock_offset_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._numbers = iter(range(1, 1 << 60))
        self._calls = {0: Call(self, 0, "the start")}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._calls[0].result()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.call(name, *args, **kwargs)

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Call:
        """Start a call, and do not wait for its answer."""
        number = next(self._numbers)
        call = self._calls[number] = Call(self, number, method)
        self._say({"id": number, "do": method, "args": args, "kwargs": kwargs})
        return call

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Carry out a call, and return its answer."""
        return self.begin(method, *args, **kwargs).result()

    def load(self, keys: str | list[str], value: Any = None, *, seconds: float = 0, error: str = "", **kw: Any) -> Any:
        """`get_or_load`, or `get_or_load_many` for a list, with a loader that returns a value or raises an OSError."""
        return self.call("load", keys, value=value, gated=False, seconds=seconds, error=error, **kw)

    def begin_load(self, keys: str | list[str], value: Any = None, *, error: str = "", **kw: Any) -> Call:
        """Start a `load` whose loader waits for `finish`. Returns when the loader has been called."""
        call = self.begin("load", keys, value=value, gated=True, seconds=0, error=error, **kw)
        assert call.begun(), "the loader was not called"
        return call

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @contextmanager
    def frozen(self, seconds: float = 0.0) -> Iterator[None]:
        """Stop the process during a block, and at least for some time."""
        until = time.monotonic() + seconds
        os.kill(self.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            yield
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def frozen_before_reads(self, keys: list[str], seconds: float) -> Iterator[list[Any]]:
        """Stop the process during a block; the list has what L1 answers before the process does anything else."""
        answers: list[Any] = []
        reads = self.begin("first_reads_after_pause", keys)
        assert reads.begun()
        with self.frozen(seconds):
            yield answers
        self._say({"do": "resume"})
        answers.extend(reads.result())

    @contextmanager
    def frozen_before_load(self, keys: str | list[str], value: Any, seconds: float) -> Iterator[list[Any]]:
        """Stop the process during a block; the list gets the answer of a load that begins before anything else."""
        answers: list[Any] = []
        load = self.begin("first_load_after_pause", keys, value)
        assert load.begun()
        with self.frozen(seconds):
            yield answers
        self._say({"do": "resume"})
        answers.append(load.result(within=10))

    def errors(self) -> str:
        """What the process has written to its standard error."""
        # A seek would move the position of the process as well.
        written = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), written, 0).decode(errors="replace")

    def stop(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._listener.join()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                file.close()

    def _say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):
            for line in self._process.stdout:
                answer = json.loads(line)
                self._calls[answer["id"]].take(answer)
        for call in list(self._calls.values()):
            if not call.ended:
                call.take({"error": "the process has ended"})


def wait_for(check: Callable[[], _T], within: float = 10.0) -> _T:
    """Call a function until its answer is true, and return that; fail if there is none in time."""
    until = time.monotonic() + within
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < until, f"still {answer!r} after {within:g} s"
        time.sleep(_POLL_S)
