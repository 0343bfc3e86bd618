"""Resolves host names in a bounded number of threads of its own.

asyncio resolves names in the default executor of the event loop. If the name server is silent, every connection attempt
keeps one of its threads for many seconds, and soon nothing else of the application gets a thread.
"""

import asyncio
import ipaddress
import os
import socket
import threading
from concurrent.futures import Future
from typing import Final

__all__ = ["resolve"]

MAX_LOOKUPS: Final = 8


class _Lookups:
    """The lookups in flight, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight: dict[str, Future[None]] = {}

    def start(self, host: str) -> "Future[None]":
        """Return the lookup of a name, which is started if none is in flight."""
        with self._lock:
            lookup = self._in_flight.get(host)
            if lookup is None:
                if len(self._in_flight) >= MAX_LOOKUPS:
                    raise OSError(
                        f"cannot look up {host!r}: {MAX_LOOKUPS} lookups of other names have no answer yet;"
                        " the name server may be down"
                    )
                lookup = self._in_flight[host] = Future()
                # A running lookup cannot be cancelled, so that a caller that is cancelled does not harm the others.
                lookup.set_running_or_notify_cancel()
                threading.Thread(target=self._run, args=(host, lookup), name="acgsperf lookup", daemon=True).start()
            return lookup

    def _run(self, host: str, lookup: "Future[None]") -> None:
        error: OSError | None = None
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as failure:
            error = failure
        except UnicodeError:
            error = OSError(f"{host!r} is not a host name")
        with self._lock:
            del self._in_flight[host]
        if error is None:
            lookup.set_result(None)
        else:
            lookup.set_exception(error)


_lookups = _Lookups()


def _forget_lookups() -> None:
    global _lookups
    _lookups = _Lookups()


if hasattr(os, "register_at_fork"):
    # The threads of the parent process do not exist in the child.
    os.register_at_fork(after_in_child=_forget_lookups)


async def resolve(host: str | None) -> None:
    """Return when a host name can be resolved. The caller then connects by name, which is quick.

    Concurrent calls for one name share a thread. If a call is cancelled, the thread ends by itself. It is a daemon
    thread, so that it does not delay the end of the process.

    Args:
        host: a name. An IP address, the path of a Unix socket and None need no lookup.

    Raises:
        OSError: if the name cannot be resolved, or 8 lookups of other names are in flight.
    """
    if host is None or "/" in host or _is_address(host):
        return
    await asyncio.wrap_future(_lookups.start(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
