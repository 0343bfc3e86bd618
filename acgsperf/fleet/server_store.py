"""The common part of the stores on a server: they are opened and closed, and their calls have a timeout."""

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from acgsperf._native.arguments import checked_namespace, checked_seconds
from acgsperf.errors import AcgsperfError
from acgsperf.timeouts import time_limit

__all__ = ["ServerStore"]

_T = TypeVar("_T")


class ServerStore(ABC):
    """Calls a server for what the instances of a service keep there.

    A subclass sets the two class attributes.

    Args:
        where: the address of the server, for messages; without a password.
        namespace: instances with the same one on the same server see each other.
        timeout: seconds after which a call fails.

    Attributes:
        content: what it keeps, for messages.
        error: what a call raises if the server cannot be reached or refuses it.
        where: the address of the server, for messages; without a password.
        namespace: the namespace.
    """

    content: str
    error: type[AcgsperfError]

    def __init__(self, where: str, namespace: str, timeout: float) -> None:
        self.where: Final = where
        self.namespace: Final = checked_namespace("namespace", namespace)
        self._timeout = checked_seconds("timeout", timeout)
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Bind to the running event loop. The first call connects to the server."""
        if self._is_open:
            raise self.error(f"a store of {self.content} is already open")
        await self._open()
        self._is_open = True

    async def close(self) -> None:
        """Close all connections. You may call it again."""
        if self._is_open:
            self._is_open = False
            await self._close()

    async def _call(self, call: Coroutine[Any, Any, _T]) -> _T:
        if not self._is_open:
            call.close()
            raise self.error(f"a store of {self.content} must be opened first")
        try:
            async with time_limit(self._timeout):
                return await call
        except TimeoutError as error:
            self._timed_out()
            detail = str(error) or f"no answer within {self._timeout:g} s"
            raise self.error(f"cannot use the {self.content} at {self.where}: {detail}") from error
        except self._errors as error:
            raise self.error(f"cannot use the {self.content} at {self.where}: {self._described(error)}") from error

    @property
    @abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]:
        """What the client of the server raises."""

    def _described(self, error: Exception) -> str:
        """Return an error as text; without a password."""
        return " ".join(str(error).split()) or type(error).__name__

    def _timed_out(self) -> None:  # noqa: B027
        """React to a call that the timeout has ended: other connections may be dead as well."""

    @abstractmethod
    async def _open(self) -> None:
        """Carry out `open`."""

    @abstractmethod
    async def _close(self) -> None:
        """Carry out `close`."""
