"""How a pool opens one connection, and what its messages may say about the server."""

import asyncio
import inspect
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from acgsperf.addresses import secrets_of
from acgsperf.names import resolve
from acgsperf.pool.hosts import Hosts
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.pooled_connection import pooled_class
from acgsperf.pool.second_attempt import Spare, first_to_connect
from acgsperf.pool.server_address import Endpoint, ServerAddress, chosen_endpoints
from acgsperf.pool.wire import WiredLoop
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

# Connection refused, no such host, no reply; the server starts up, shuts down, or has no room for another session; no
# server is of the kind that `target_session_attrs` asks for.
_MAY_PASS: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    TargetServerAttributeNotMatched,
)
_SOCKET_OPTIONS: Final = {
    "keepalives_count": "TCP_KEEPCNT",
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Connector:
    """Opens connections to one server, or to one of several, with the options of a pool.

    If there are several servers, each has an equal share of what remains of `connect_timeout`. `Hosts` has their order.

    Args:
        dsn: the DSN, for messages.
        address: what is in the DSN.
        options: the options of the pool; `connect_timeout`, `reset_timeout`, `init` and `max_message_bytes` are
            used.
        connect_options: keyword arguments for `asyncpg.connect`.
        owner: what uses the connections, for log lines.

    Attributes:
        where: the hosts and ports for messages, without any secret.
        wanted: the kind of server, as in `target_session_attrs`.

    Raises:
        TypeError: if asyncpg does not have one of the options.
    """

    def __init__(
        self,
        dsn: str,
        address: ServerAddress,
        options: PoolOptions,
        connect_options: Mapping[str, Any],
        owner: str,
    ) -> None:
        if unknown := connect_options.keys() - inspect.signature(asyncpg.connect).parameters.keys():
            names = ", ".join(sorted(unknown))
            raise TypeError(f"options must be those of ConnectionPool or asyncpg.connect, got {names}")
        self._dsn = dsn
        self._address = address
        self._options = options
        connection_class = pooled_class(
            connect_options.get("connection_class", asyncpg.Connection), options.reset_timeout
        )
        self._connect_options: dict[str, Any] = {**connect_options, "connection_class": connection_class}
        endpoints = chosen_endpoints(address, connect_options, os.environ)
        self._hosts = Hosts(endpoints, address.shuffled, options.clock)
        self.where: Final = address.name_of(endpoints)
        self._owner = f"{owner} at {self.where}"
        attributes = connect_options.get("target_session_attrs") or address.session_attributes
        self.wanted: str = attributes or os.environ.get("PGTARGETSESSIONATTRS") or "any"
        self._prefer_writable_until = 0.0

    async def connect(self, spare: Spare | None = None) -> "Connection":
        """Open a connection within `connect_timeout`, then run `init` on it within another `connect_timeout`.

        Args:
            spare: the permission for a second attempt, if the first one is silent; None for a single attempt.
        """
        timeout = self._options.connect_timeout
        if spare is None:
            connection = await self._attempt(timeout)
        else:
            connection = await first_to_connect(self._attempt, timeout, spare)
        try:
            self._set_socket_options(connection)
            if self._options.init is not None:
                async with time_limit(timeout):
                    await self._options.init(connection)
                    # If init has cancelled its own task, this raises the error.
                    await asyncio.sleep(0)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _attempt(self, timeout: float) -> "Connection":  # noqa: ASYNC109
        several = len(self._hosts.endpoints) > 1 or self._prefer_writable_until > self._options.clock()
        return await (self._connect_to_one(timeout) if several else self._connect(timeout, {}))

    def prefer_writable(self, until: float) -> None:
        """Try servers that accept writes first, until a time of the clock of the options."""
        self._prefer_writable_until = until

    async def _connect(self, timeout: float, choice: Endpoint) -> "Connection":  # noqa: ASYNC109
        loop = self._connect_options.get("loop") or asyncio.get_running_loop()
        wired = WiredLoop(loop, self._owner, self._options.max_message_bytes)
        options = {**self._connect_options, **choice, "loop": wired}
        async with time_limit(timeout):
            for host in self._names(options):
                await resolve(host)
            connection: Connection = await asyncpg.connect(self._address.dsn, timeout=timeout, **options)
        return connection

    def _names(self, options: Mapping[str, Any]) -> "Sequence[str]":
        """Return the names that asyncpg is going to look up."""
        hosts = options.get("host") or [endpoint.get("host") for endpoint in self._hosts.endpoints]
        return [hosts] if isinstance(hosts, str) else [host for host in hosts if host]

    async def _connect_to_one(self, timeout: float) -> "Connection":  # noqa: ASYNC109
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        attempts = self._attempts()
        failure: Exception | None = None
        for position, (endpoint, attributes) in enumerate(attempts):
            share = (deadline - clock()) / (len(attempts) - position)
            if share <= 0:
                break
            try:
                connection = await self._connect(share, {**endpoint, "target_session_attrs": attributes})
            except _MAY_PASS as error:
                failure = error
                self._hosts.note_failure(endpoint)
            else:
                self._hosts.note_success(endpoint)
                return connection
        raise failure or TimeoutError

    def _attempts(self) -> "Sequence[tuple[Endpoint, str]]":
        # Without a known endpoint, asyncpg finds the server.
        endpoints = self._hosts.in_order() or [{}]
        kinds: tuple[str, ...] = (self.wanted,)
        if self.wanted == "prefer-standby":
            # asyncpg tries the servers one by one here, so it cannot fall back to a primary itself.
            kinds = ("standby", "any")
        elif self.wanted == "any" and self._prefer_writable_until > self._options.clock():
            kinds = ("read-write", "any")
        return [(endpoint, kind) for kind in kinds for endpoint in endpoints]

    def _set_socket_options(self, connection: "Connection") -> None:
        wanted = self._address.socket_options
        transport = getattr(connection, "_transport", None)
        sock = transport.get_extra_info("socket") if wanted and transport is not None else None
        if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        keepalives = wanted.get("keepalives", int(any(name.startswith("keepalives_") for name in wanted)))
        if keepalives or "keepalives" in wanted:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalives)
        for name, constant in _SOCKET_OPTIONS.items():
            # As in libpq, 0 means the default of the system, and an option that the system lacks is ignored.
            if wanted.get(name) and hasattr(socket, constant):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, constant), wanted[name])

    @staticmethod
    def may_pass(error: Exception) -> bool:
        """Return whether a connection attempt may succeed later, because the server was not ready or not reachable."""
        return isinstance(error, _MAY_PASS)

    def describe(self, error: Exception) -> str:
        """Return an error as text for messages, without the password."""
        kind, text = type(error).__name__, str(error)
        # The server and the system never repeat the password. But a short password may occur in their messages by
        # chance.
        if not isinstance(error, asyncpg.PostgresError | OSError) and any(
            secret in text for secret in secrets_of(self._dsn, self._connect_options.get("password"))
        ):
            text = "(not shown because it contains the password)"
        return f"{kind}: {text}" if text else kind
