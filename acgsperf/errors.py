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
