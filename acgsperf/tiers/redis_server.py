"""The address of a Redis server: how to find it, and to make connections to it."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.names import resolve
from acgsperf.tiers.breaker import RECOVERY_S
from acgsperf.tiers.redis_parser import CheckedParser
from acgsperf.tiers.redis_tls import SharedContext

__all__ = ["Credentials", "Follower", "RedisServer"]

Credentials = Callable[[], "tuple[str, str] | str | Awaitable[tuple[str, str] | str]"]


class Follower(Protocol):
    """What has connections to a server. Its method may be called in any thread."""

    def note_moved(self) -> None:
        """Close the connections, because the server is at another address now."""


# The options that `_factory` replaces are accepted, because other clients may use the same URL.
_OPTIONS: Final = frozenset(
    {
        *("username", "password", "db", "max_connections", "client_name", "lib_name", "lib_version", "protocol"),
        *("socket_keepalive", "socket_timeout", "socket_connect_timeout", "retry_on_timeout", "decode_responses"),
        "health_check_interval",
    }
)
_TLS_OPTIONS: Final = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"),
        *("ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password"),
    }
)
_SECONDS: Final = (r"[0-9]{1,9}(\.[0-9]{1,9})?", "a number of seconds")
_NAME: Final = ("[!-~]*", "printable ASCII characters without spaces")
# For options whose wrong values the server would refuse: a pattern, and what it stands for.
_VALUES: Final = {
    "db": ("[0-9]{1,9}", "a number of at least 0"),
    "max_connections": ("[0-9]{1,9}", "a number of at least 1"),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "health_check_interval": _SECONDS,
    "client_name": _NAME,
    "lib_name": _NAME,
    "lib_version": _NAME,
    "ssl_cert_reqs": ("none|optional|required", "none, optional or required"),
}


class RedisServer:
    """One server at a fixed address.

    Args:
        url: `redis://`, `rediss://` or `unix://`, checked.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password.
        tls: the attribute below, if several servers of one URL share it.

    Attributes:
        max_connections: the `max_connections` of the URL; None if it has none.
        where: the address, for messages; without a password.
        parser_class: reads the replies.
        recovery_s: after a failure, the server is tried again after this time.
        tls: what its connections share if they speak TLS.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """

    max_connections: int | None
    parser_class: type[CheckedParser] = CheckedParser
    recovery_s: float = RECOVERY_S

    def __init__(self, url: str, credentials: Credentials | None = None, tls: SharedContext | None = None) -> None:
        self._followers: WeakSet[Follower] = WeakSet()
        self.tls: Final = SharedContext() if tls is None else tls
        try:
            _check_options(url)
            options: dict[str, Any] = dict(parse_url(url))
            self.max_connections = options.pop("max_connections", None)
            if credentials is not None and ("username" in options or "password" in options):
                raise _InvalidURLError("must not contain a user name or password if credentials is given")
            self._factory = _factory(url, options | {"parser_class": self.parser_class}, credentials)
            # Checks the options of the URL; it does not connect.
            first = self.new()
        except _InvalidURLError as error:
            raise ValueError(f"the Redis URL {error}") from None
        except Exception as error:
            raise ValueError(f"the Redis URL has an option that is not valid: {type(error).__name__}") from None
        self.where: str = _server_name(self._factory.connection_kwargs)
        if (driver := getattr(first, "driver_info", None)) is not None:
            # Otherwise redis-py reads its version from a file for each connection.
            self._factory.connection_kwargs["driver_info"] = driver

    @property
    def now_at(self) -> str:
        """Where the server is, for health checks."""
        return self.where

    def new(self) -> AbstractConnection:
        """Return a connection that is not connected."""
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        self.tls.give(connection)
        return connection

    def follow(self, follower: Follower) -> None:
        """Tell a follower when the server has been found at another address than before."""
        self._followers.add(follower)

    def note_moved(self) -> None:
        """Tell the followers that the server is at another address now."""
        for follower in tuple(self._followers):
            follower.note_moved()

    def forget(self) -> None:
        """Look for the server again, because it cannot be reached or is not the primary."""

    async def locate(self, connection: AbstractConnection) -> None:
        """Find the server for a connection that will be connected next."""
        await resolve(getattr(connection, "host", None))


class _InvalidURLError(Exception):
    """What is wrong with a URL. It repeats no value, which may be a secret."""


class _Provider(CredentialProvider):
    """Passes a callable to redis-py.

    Attributes:
        password: the last one that the callable has returned.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.password: str | None = None

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        try:
            found = self._credentials()
            if inspect.isawaitable(found):
                found = await found
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the credentials wait for was cancelled, and not the caller.
            raise RedisConnectionError("credentials raised CancelledError") from error
        except Exception as error:
            # Without its text, which may contain a secret.
            raise RedisConnectionError(f"credentials raised {type(error).__name__}") from error
        if isinstance(found, str):
            self.password = found
            return (found,)
        if isinstance(found, tuple) and list(map(type, found)) == [str, str]:
            self.password = found[1]
            return found
        raise RedisConnectionError(
            f"credentials must return a password or (user name, password), got {type(found).__name__}"
        )


def _check_options(url: str) -> None:
    """Check the options of a URL by name, and the values that redis-py does not check.

    Raises:
        _InvalidURLError: for an unknown option, or a value that is not valid.
    """
    parts = urlsplit(url)
    known = _OPTIONS | _TLS_OPTIONS if parts.scheme == "rediss" else _OPTIONS
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # With an @ it may be the rest of a password after a ?.
            named = "an unknown option" if "@" in parts.query else f"the unknown option {name!r:.60}"
            raise _InvalidURLError(f"has {named}; known are {', '.join(sorted(known))}")
        pattern, expected = _VALUES.get(name, ("", ""))
        if pattern and re.fullmatch(pattern, value) is None:
            raise _InvalidURLError(f"has a {name} that is not valid: it must be {expected}")


def _factory(url: str, options: dict[str, Any], credentials: Credentials | None) -> ConnectionPool:
    """Return a factory of connections. Its pool is not used: the pool's checks cost as much as a command."""
    if url.startswith("rediss:"):
        options.setdefault("ssl_check_hostname", True)
    if credentials is not None:
        options["credential_provider"] = _Provider(credentials)
    options |= {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "decode_responses": False,
        "health_check_interval": 0,
        # The tier's deadline covers connecting, sending and reading together.
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
    return ConnectionPool(**options)


def _server_name(options: Mapping[str, Any]) -> str:
    """Return how messages name the server; it contains no secret."""
    if "path" in options:
        return f"unix:{options['path']}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
