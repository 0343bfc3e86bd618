"""TLS to Redis: one context for many connections, and what a failure says about the server."""

from time import monotonic
from typing import Final

from redis.asyncio.connection import AbstractConnection, RedisSSLContext, SSLConnection

__all__ = ["SharedContext", "explained", "hint_of"]

# What OpenSSL says of an answer in plain text.
_PLAIN: Final = ("[SSL: WRONG_VERSION_NUMBER]", "[SSL: RECORD_LAYER_FAILURE]", "[SSL] record layer failure")
# After this time, certificates are read from their files again.
_MAX_AGE_S: Final = 60.0


class SharedContext:
    """Lets the connections to the servers of one URL share what they have read from certificate files.

    Reading the certificates of the system takes about 20 ms, during which the event loop does nothing else.
    """

    def __init__(self) -> None:
        self._context: RedisSSLContext | None = None
        self._made_at = 0.0

    def give(self, connection: AbstractConnection) -> None:
        """Let a new connection use the context, if it speaks TLS."""
        if isinstance(connection, SSLConnection):
            now = monotonic()
            if self._context is None or now - self._made_at > _MAX_AGE_S:
                self._context, self._made_at = connection.ssl_context, now
            connection.ssl_context = self._context


def explained(error: object) -> str:
    """Return an error as text, with its meaning if the server has answered in plain text."""
    text = str(error)
    return f"{text.rstrip('.')}: the server does not speak TLS" if any(mark in text for mark in _PLAIN) else text


def hint_of(url: str) -> str:
    """Return what to add to `no answer within 1 s`.

    A Redis without TLS waits for the end of the line that it takes the first message of TLS for.
    """
    return " (this may be a server that does not speak TLS)" if url.startswith("rediss") else ""
