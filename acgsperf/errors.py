"""The package's exceptions, all under `AcgsperfError`."""

import reprlib


class AcgsperfError(Exception):
    """What the package raises of its own, beside TypeError and ValueError for bad arguments."""


class ComplianceError(AcgsperfError):
    """A request whose constitutional hash is not an accepted one."""

    def __init__(self, expected: tuple[str, ...], found: object) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        # The value comes from a client: what is shown of it is bounded.
        shown = reprlib.repr(self.found) if isinstance(self.found, str | None) else type(self.found).__name__
        return f"constitutional hash must be {' or '.join(self.expected)}, not {shown}"


class SettingsError(AcgsperfError, ValueError):
    """An environment variable that cannot be used."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(variable, value, expected)
        self.variable = variable
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.variable} must be {self.expected}, not {self.value!r}"


class PoolError(AcgsperfError):
    """What a connection pool raises; each kind is a class of its own."""


class PoolTimeout(PoolError, TimeoutError):  # noqa: N818
    """No connection became free in time."""


class PoolSaturated(PoolError):  # noqa: N818
    """As many callers as `max_waiting` allows wait already."""


class PoolUnhealthy(PoolError):  # noqa: N818
    """The server cannot be reached now; the pool keeps trying by itself. `__cause__` is what the last try met."""


class PoolClosed(PoolError):  # noqa: N818
    """The pool is closed, is being closed, or was never opened."""


class PoolExists(PoolError, ValueError):  # noqa: N818
    """A manager has a pool of this name already."""


class PoolNotFound(PoolError, LookupError):  # noqa: N818
    """A manager has no pool of this name."""


class TierError(AcgsperfError):
    """A tier that is not open, or that belongs to another event loop or another process."""


class CacheError(AcgsperfError):
    """A tiered cache that is not open, or that belongs to another event loop."""


class ServiceError(AcgsperfError):
    """A service that is used in a way that it is not made for: opened twice, or without a handler."""


class LoadError(AcgsperfError):
    """A load that ended without a value, and without an error of its own."""


class LoadTimeoutError(LoadError, TimeoutError):
    """A load that took longer than the hard time-out."""


class LoadCancelledError(LoadError):
    """A load that was cancelled from inside; those who waited for it were not."""
