"""Finds out that uvicorn shuts down. It waits for the end of all responses before it tells the application."""

import signal

__all__ = ["server_is_ending"]


def server_is_ending() -> bool:
    """Return whether the uvicorn that handles the signals of this process was told to exit."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
