"""A clock that moves only when a test moves it."""

__all__ = ["ManualClock"]


class ManualClock:
    """Returns monotonic seconds, as `time.monotonic` does. Pass it as `clock` to every part of a test.

    Attributes:
        now: the seconds that it returns.
    """

    def __init__(self, now: float = 1_000.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: if `seconds` is negative: a monotonic clock never goes back.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds must be at least 0, got {seconds!r}")
        self.now += seconds
