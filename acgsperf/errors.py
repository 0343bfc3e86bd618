"""The package's exceptions, all under `AcgsperfError`."""

import reprlib


class AcgsperfError(Exception):
    """What the package raises of its own, beside TypeError and ValueError for bad arguments."""


class ComplianceError(AcgsperfError):
    """A request whose constitutional hash is not an accepted one."""

    def __init__(self, expected: tuple[str, ...], found: object) -> None:
        self.expected = expected
        self.found = found
        # The value comes from a client: its repr is bounded.
        super().__init__(f"constitutional hash must be {' or '.join(expected)}, not {reprlib.repr(found)}")


class SettingsError(AcgsperfError, ValueError):
    """An environment variable that cannot be used."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(f"{variable} must be {expected}, not {value!r}")


class TierError(AcgsperfError):
    """A tier that is not open, or that belongs to another event loop or another process."""


class CacheError(AcgsperfError):
    """A tiered cache that is not open, or that belongs to another event loop."""


class LoadError(AcgsperfError):
    """A load that ended without a value, and without an error of its own."""


class LoadTimeoutError(LoadError, TimeoutError):
    """A load that took longer than the hard time-out."""


class LoadCancelledError(LoadError):
    """A load that was cancelled from inside; those who waited for it were not."""
