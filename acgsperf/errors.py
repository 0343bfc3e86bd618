"""The exceptions of the package, all of them subclasses of `AcgsperfError`."""

import reprlib


class AcgsperfError(Exception):
    """The base class of all errors of the package. Bad arguments raise TypeError or ValueError instead."""


class ComplianceError(AcgsperfError):
    """A request whose constitutional hash is missing or not accepted."""

    def __init__(self, expected: tuple[str, ...], found: object) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        # The value comes from a client, so what is shown of it is bounded.
        shown = reprlib.repr(self.found) if isinstance(self.found, str | None) else type(self.found).__name__
        return f"constitutional hash must be {' or '.join(self.expected)}, got {shown}"


class SettingsError(AcgsperfError, ValueError):
    """An environment variable with a value that cannot be used."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(variable, value, expected)
        self.variable = variable
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.variable} must be {self.expected}, got {self.value!r}"


class PoolError(AcgsperfError):
    """The base class of what a connection pool raises."""


class PoolTimeout(PoolError, TimeoutError):  # noqa: N818
    """No connection became free before the timeout."""


class PoolSaturated(PoolError):  # noqa: N818
    """The maximum number of callers, `max_waiting`, are already waiting."""


class PoolUnhealthy(PoolError):  # noqa: N818
    """The server cannot be reached now; the pool keeps trying. `__cause__` is the error of the last attempt."""


class MessageTooLarge(PoolError):  # noqa: N818
    """The server sent a message that is larger than `max_message_bytes`, and its connection was closed.

    It is the `__cause__` of the `asyncpg.ConnectionDoesNotExistError` that the borrower gets.
    """


class PoolClosed(PoolError):  # noqa: N818
    """The pool is closed, is closing, or was never opened."""


class PoolExists(PoolError, ValueError):  # noqa: N818
    """The manager already has a pool of this name."""


class PoolNotFound(PoolError, LookupError):  # noqa: N818
    """The manager has no pool of this name."""


class TierError(AcgsperfError):
    """A tier that is not open, or that belongs to another event loop or process."""


class FleetError(AcgsperfError):
    """The reports of the instances of a service cannot be read or written: no server, or it refuses."""


class TrendError(AcgsperfError):
    """The hours of a service cannot be read or written: no server, or it refuses."""


class BackplaneError(AcgsperfError):
    """A table that cannot be watched."""


class CacheError(AcgsperfError):
    """A tiered cache that is not open, or that belongs to another event loop."""


class SnapshotError(AcgsperfError):
    """A file that a cache cannot load: damaged, or of another version, namespace, kind of cache or type of values."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path = path
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"cannot load {self.path}: expected {self.expected}, got {self.found}"


class ServiceError(AcgsperfError):
    """A service that is opened twice, or used without a handler."""


class LoadError(AcgsperfError):
    """A load that ended without a value and without an error of the loader."""


class LoadTimeoutError(LoadError, TimeoutError):
    """A load that took longer than the hard timeout."""


class LoadCancelledError(LoadError):
    """A load that was cancelled from inside, while its callers were not."""
