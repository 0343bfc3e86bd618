"""The other processes of a replay: how the first one starts them, and what they do.

The first process sends messages to the standard input of another one, and reads its standard output. A message is JSON
or numbers, after its length. If the standard input of a process ends, the first process is gone, and it ends too.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import msgspec

from acgsperf.errors import AcgsperfError
from acgsperf.workbench.replay_origin import as_failure, connected
from acgsperf.workbench.replay_run import Load, Measured, Options, Run, cache_of
from acgsperf.workbench.replay_writes import Acknowledged, ChangedKeys

__all__ = ["OtherProcess", "main"]

_LENGTH_BYTES: Final = 8
_END_S: Final = 10.0
_KEPT_ERRORS: Final = 4096


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


async def _received(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big"))


class OtherProcess:
    """A process that answers the requests too, with an L1 of its own. Use it as an async context manager.

    Args:
        options: its options.

    Raises:
        AcgsperfError: if it cannot be started.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._name = f"process {options.process}"
        self._process: asyncio.subprocess.Process
        self._errors = b""
        self._draining: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # The terminal's Ctrl-C is for the first process, which ends this one.
                start_new_session=True,
            )
        except OSError as error:
            raise AcgsperfError(f"{self._name} cannot be started: {error}") from None
        self._draining = asyncio.create_task(self._drain())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process.stdin is not None
        try:
            if error is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _END_S)
        finally:
            # The process has no files or servers to clean up.
            with suppress(ProcessLookupError):
                process.kill()
            process.stdin.close()
            await process.wait()
            await self._draining
            with suppress(OSError):
                await process.stdin.wait_closed()

    async def _drain(self) -> None:
        """Keep the end of the error output of the process."""
        assert self._process.stderr is not None
        while printed := await self._process.stderr.read(_KEPT_ERRORS):
            self._errors = (self._errors + printed)[-_KEPT_ERRORS:]

    async def prepare(self, load: Load, changed: Sequence[int]) -> None:
        """Send the requests to the process, and wait until its cache is open.

        Args:
            load: the requests.
            changed: which of the distinct requests are changed.
        """
        task = {"options": msgspec.to_builtins(self._options), "changed": changed}
        # Not msgspec: requests may have integers of any size.
        await self._send(json.dumps(task | {"distinct": list(load.distinct.values())}).encode())
        await self._send(array("I", load.indices()).tobytes())
        await self._receive()

    async def run(self) -> list[Acknowledged]:
        """Let the process send the requests, and return its acknowledged writes, by key."""
        await self._send(b"")
        return msgspec.json.decode(await self._receive(), type=list[Acknowledged])

    async def measured(self, acknowledged: Sequence[Acknowledged]) -> Measured:
        """Return the measurements of the process.

        Args:
            acknowledged: the writes of all processes, by key.
        """
        await self._send(msgspec.json.encode(acknowledged))
        return msgspec.json.decode(await self._receive(), type=Measured)

    async def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        # If the process has ended, its last output says why.
        with suppress(ConnectionError):
            self._process.stdin.write(_framed(message))
            await self._process.stdin.drain()

    async def _receive(self) -> bytes:
        """Return its answer: a byte that tells whether it has failed, and a message."""
        assert self._process.stdout is not None
        try:
            message = await _received(self._process.stdout)
        except asyncio.IncompleteReadError:
            raise AcgsperfError(f"{self._name} {await self._ending()}") from None
        if message[:1] == b"!":
            raise AcgsperfError(f"{self._name}: {message[1:].decode()}")
        return message[1:]

    async def _ending(self) -> str:
        status = await self._process.wait()
        await self._draining
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        lines = self._errors.decode(errors="replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"ended with status {status}: {reason}"


class _FirstProcess:
    """The first process, as another one sees it."""

    def __init__(self, reader: asyncio.StreamReader, output: int) -> None:
        self._reader = reader
        self._output = output

    def say(self, message: bytes, mark: bytes = b"=") -> None:
        """Send a message. The first process waits for it, so it need not be sent in the background."""
        rest = memoryview(_framed(mark + message))
        while rest:
            rest = rest[os.write(self._output, rest) :]

    async def hear(self) -> bytes:
        """Return the next message.

        Raises:
            IncompleteReadError: if there is no first process any more.
        """
        return await _received(self._reader)


async def _take_part(first: _FirstProcess) -> None:
    task = json.loads(await first.hear())
    options = msgspec.convert(task["options"], Options)
    indices = array("I")
    indices.frombytes(await first.hear())
    distinct = task["distinct"]
    requests = [distinct[index] for index in indices]
    changed = None
    if task["changed"]:
        keys = [distinct[index] for index in task["changed"]]
        changed = ChangedKeys(keys, options.process, options.processes)
    connection = connected(
        options.database_url, options.table, concurrency=options.concurrency, patience=options.patience
    )
    async with cache_of(options) as cache, connection as (origin, pools):
        first.say(b"")
        await first.hear()
        run = Run(options, cache, origin, changed, pools)
        await run.send(requests)
        first.say(msgspec.json.encode(changed.acknowledged if changed is not None else []))
        acknowledged = msgspec.json.decode(await first.hear(), type=list[Acknowledged])
        first.say(msgspec.json.encode(run.measured(acknowledged)))


class _Input(asyncio.StreamReaderProtocol):
    """The standard input; its end cancels the part of this process."""

    def __init__(self, reader: asyncio.StreamReader, part: "asyncio.Task[None]") -> None:
        super().__init__(reader)
        self._part = part

    def eof_received(self) -> bool | None:
        self._part.cancel()
        return super().eof_received()


async def _serve(output: int) -> None:
    reader = asyncio.StreamReader()
    first = _FirstProcess(reader, output)
    part = asyncio.create_task(_take_part(first))
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Input(reader, part), sys.stdin)
    (failed,) = await asyncio.gather(part, return_exceptions=True)
    if failed is None or isinstance(failed, asyncio.CancelledError):
        return
    error = as_failure(failed)
    first.say(" ".join(str(error).split()).encode() or type(error).__name__.encode(), b"!")


def main() -> None:
    """Take part in the replay of the process that started this one."""
    # Only the first process prints messages.
    logging.getLogger("acgsperf").addHandler(logging.NullHandler())
    with suppress(BrokenPipeError):
        asyncio.run(_serve(sys.stdout.fileno()))


if __name__ == "__main__":
    main()
