"""The common part of the backplanes: use in one event loop, a queue of records to publish, counts."""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence

from acgsperf._native.arguments import checked_namespace, checked_seconds
from acgsperf.backplane.base import TIMEOUT_S, Backplane, BackplaneState, BackplaneStats, Listener
from acgsperf.backplane.outbox import Outbox
from acgsperf.backplane.receiver import Counts, Receiver
from acgsperf.errors import TierError
from acgsperf.tiers.records import Record

__all__ = ["ServerBackplane"]

WRITER_BYTES = 8


class ServerBackplane(Backplane):
    """A backplane on a server. A subclass says how to join and leave the log, and how to publish records.

    Args:
        timeout: the seconds after which a process that gets no records notices it.
    """

    name: str

    def __init__(self, timeout: float = TIMEOUT_S) -> None:
        self.timeout: float = checked_seconds("timeout", timeout)
        self._namespace = ""
        self._writer = b""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counts = Counts()
        self._receiver: Receiver | None = None
        self._outbox: Outbox | None = None

    @abstractmethod
    async def _join(self, receiver: Receiver) -> None:
        """Start to follow the log. Wait for the server for at most `timeout`; log its errors, and do not raise them."""

    @abstractmethod
    async def _leave(self, receiver: Receiver) -> None:
        """Stop following the log, and release what `_join` has acquired, even partly."""

    @abstractmethod
    async def _publish(self, records: Sequence[Record]) -> int:
        """Publish records, and return how many of the first ones the server has accepted. It may raise."""

    @abstractmethod
    def _now_us(self) -> int:
        """Return the time of the server's clock in microseconds."""

    @property
    def position(self) -> bytes:
        return b"" if self._receiver is None else self._receiver.position

    async def open(self, namespace: str, listener: Listener, writer: bytes) -> None:
        if self._loop is not None:
            raise TierError(f"the {self.name} backplane is already open")
        namespace = checked_namespace("namespace", namespace)
        if not isinstance(writer, bytes) or len(writer) != WRITER_BYTES:
            raise ValueError(f"writer must be {WRITER_BYTES} bytes, got {writer!r:.100}")
        self._namespace, self._writer = namespace, writer
        self._loop = asyncio.get_running_loop()
        self._receiver = Receiver(namespace, listener, writer, self.timeout, self._counts)
        self._outbox = Outbox(self._publish)
        try:
            await self._join(self._receiver)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._loop is None:
            return
        outbox, receiver = self._outbox, self._receiver
        self._check_use()
        assert outbox is not None
        assert receiver is not None
        try:
            await outbox.close(self.timeout)
        finally:
            # Close the backplane even if this call is cancelled.
            self._loop = self._receiver = self._outbox = None
            self._counts.state = BackplaneState.OFF
            await self._leave(receiver)

    def publish(self, record: Record) -> "asyncio.Future[bool]":
        self._check_use()
        assert self._outbox is not None
        return self._outbox.publish(Record(record.kind, record.items, self._writer, self._now_us()))

    def stats(self) -> BackplaneStats:
        return self._counts.stats(0 if self._outbox is None else len(self._outbox))

    def _check_use(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            # This recognizes a fork as well: a child process cannot continue with its parent's loop.
            why = "is not open" if self._loop is None else "belongs to another event loop or process"
            raise TierError(f"the {self.name} backplane {why}")
